//! Reading table definitions from the catalog, the whole database at once.
//!
//! - [`read`]: every table as a [`LiveTable`]. [`live_tables`]: the portable definitions, for checking a topology.
//! - [`around`], [`Phase`]: what beside the table comes back with it, and in which order.
//! - [`quote`], [`literal`], [`qualified`]: identifiers and texts in SQL.
//!
//! # Invariants
//! - Partitions are part of their root. System schemas, temporary tables and schema `muster` are left out.
//! - Texts are those of a session with `search_path = pg_catalog`, so that they name every schema but that one: the
//!   session must have it, as [`connect`](super::connect) sees to.
//! - Definitions do not change with partitions that come and go: the statements create a default partition instead.

mod around;
mod create;
mod name;
mod phase;
mod query;
mod roles;
mod table;

use muster_types::table::TableDef;
use tokio_postgres::GenericClient;

pub use around::{Around, around};
pub use name::{literal, qualified, quote, topology_name};
pub use phase::Phase;
pub use roles::roles_of;
pub use table::{
    Firing, Identity, LiveForeignKey, LiveKey, LiveTable, LiveTrigger, OwnedSequence, Partition,
    ReplicaIdentity,
};

use super::connect::{PostgresConfig, block_on};
use crate::capture::CaptureError;

/// Every table of the database, by topology name.
///
/// # Errors
/// Those of the connection.
pub async fn read(client: &impl GenericClient) -> Result<Vec<LiveTable>, tokio_postgres::Error> {
    query::read(client, None).await
}

/// Those of the tables with these oids that are there.
///
/// # Errors
/// Those of the connection.
pub async fn read_some(
    client: &impl GenericClient,
    oids: &[u32],
) -> Result<Vec<LiveTable>, tokio_postgres::Error> {
    query::read(client, Some(oids)).await
}

/// Changes whenever a definition among the tables with these oids does, partitions' own included if they are named.
///
/// # Errors
/// Those of the connection.
pub async fn version(client: &impl GenericClient, oids: &[u32]) -> Result<String, tokio_postgres::Error> {
    query::version(client, oids).await
}

/// The tables of the database, without the system's and Muster's own. Blocks.
///
/// # Errors
/// [`CaptureError`] when the database cannot be reached or read.
pub fn live_tables(connection: &str) -> Result<Vec<TableDef>, CaptureError> {
    let config = PostgresConfig::parse(connection)?;
    block_on(async {
        let client = config.connect().await?;
        let tables = read(&client).await.map_err(|error| {
            CaptureError::new(
                format!("cannot read the definitions of {config}: {}", sql_text(&error)),
                "check that the role may connect to it and that it runs PostgreSQL 12 or newer",
            )
        })?;
        Ok(tables.into_iter().map(|table| table.def).collect())
    })?
}

/// What the server says of an error; the error's own text hides it.
pub(crate) fn sql_text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(answer) => {
            let detail = answer.detail().map_or_else(String::new, |detail| format!(" ({detail})"));
            format!("{}{detail}, SQLSTATE {}", answer.message(), answer.code().code())
        }
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
