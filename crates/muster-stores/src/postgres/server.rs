//! The server that databases are on: which databases and slots it has.

use std::collections::BTreeSet;
use std::fmt;

use super::connect::{PostgresConfig, block_on};
use super::schema::sql_text;
use crate::capture::CaptureError;

/// A server, by host and port: shards with the same share its slots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    host: String,
    port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a server has, of that which its databases share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Databases that can be connected to, without templates and `postgres`.
    pub databases: BTreeSet<String>,
    /// Slots of logical decoding, whoever made them.
    pub slots: BTreeSet<String>,
}

/// The server and the database that a connection names.
///
/// # Errors
/// [`CaptureError`] when the connection cannot be understood.
pub fn place(connection: &str) -> Result<(Server, String), CaptureError> {
    let config = PostgresConfig::parse(connection)?;
    let server = Server { host: config.host().to_owned(), port: config.port() };
    Ok((server, config.database().to_owned()))
}

/// What the server has, asked over `connection`. Blocks; reads only.
///
/// # Errors
/// [`CaptureError`] when the database cannot be reached or read.
pub fn inventory(connection: &str) -> Result<Inventory, CaptureError> {
    let config = PostgresConfig::parse(connection)?;
    block_on(async {
        let client = config.connect().await?;
        // Temporary slots are those of snapshots, and gone soon.
        let sql = "SELECT true, datname::text FROM pg_database \
            WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' \
            UNION ALL SELECT false, slot_name::text FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary";
        let rows = client.query(sql, &[]).await.map_err(|error| {
            CaptureError::new(
                format!("{config}: cannot list databases and slots: {}", sql_text(&error)),
                "see the server's log",
            )
        })?;
        let mut found = Inventory::default();
        for row in rows {
            let set = if row.get(0) { &mut found.databases } else { &mut found.slots };
            set.insert(row.get(1));
        }
        Ok(found)
    })?
}
