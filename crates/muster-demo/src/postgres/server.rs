//! The server and the databases of one fleet on it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use postgres::{Client, Config, NoTls};

/// A server for shards, and the name that the databases of one fleet start with.
#[derive(Clone, Debug)]
pub struct PostgresServer {
    connection: String,
    prefix: String,
}

/// One shard's database.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Where it is, as a topology says it: without a password.
    pub connection: String,
    /// What was made in it.
    pub(crate) definitions: BTreeSet<(String, String)>,
}

impl PostgresServer {
    /// A server by any of its databases, in which no table is made: a `postgresql://` URL or `key=value` pairs without
    /// a password, which comes from `PGPASSWORD`. The role must be a superuser, or may make databases and is allowed
    /// replication. The fleet's databases are named `PREFIX_SHARD`.
    ///
    /// # Errors
    /// If `connection` is not understood or has a password in it, or `prefix` has anything but small letters, digits and
    /// underscores in it.
    pub fn new(connection: &str, prefix: &str) -> Result<Self> {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        ensure!(
            !prefix.is_empty() && prefix.len() <= 40 && prefix.chars().all(plain),
            "`{prefix}` must be up to 40 small letters, digits and underscores"
        );
        let config: Config = connection.parse().context(
            "the PostgreSQL connection is not understood: give postgresql://USER@HOST:PORT/DATABASE",
        )?;
        ensure!(
            config.get_password().is_none(),
            "the PostgreSQL connection has a password in it, which would end up in the topology: take it out and set PGPASSWORD"
        );
        Ok(Self { connection: connection.to_owned(), prefix: prefix.to_owned() })
    }

    /// Where it is, as given.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// What its databases' names start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Databases on the server that start with `PREFIX_`.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn databases(&self, prefix: &str) -> Result<Vec<String>> {
        let mut client = self.connect()?;
        let sql = "SELECT datname FROM pg_database WHERE starts_with(datname, $1) ORDER BY datname";
        let rows = client.query(sql, &[&format!("{prefix}_")])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Drops the fleet's databases with the replication slots in them. Whoever is connected is cut off.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub fn drop_databases(&self) -> Result<Vec<String>> {
        let names = self.databases(&self.prefix)?;
        let mut client = self.connect()?;
        for name in &names {
            drop_slots(&mut client, name)?;
            client
                .batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", quoted(name)))
                .with_context(|| format!("cannot drop the database {name}"))?;
        }
        Ok(names)
    }

    /// Makes an empty database for a shard.
    pub(crate) fn create(&self, shard: &str) -> Result<Database> {
        let name = format!("{}_{}", self.prefix, shard.replace('-', "_"));
        self.connect()?
            .batch_execute(&format!(
                "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'",
                quoted(&name)
            ))
            .with_context(|| format!("cannot make the database {name}"))?;
        let connection = with_database(&self.connection, &name);
        Ok(Database { name, connection, definitions: BTreeSet::new() })
    }

    fn connect(&self) -> Result<Client> {
        connect(&self.connection)
    }
}

impl Database {
    /// A session as an application has it.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn connect(&self) -> Result<Client> {
        connect(&self.connection)
    }
}

fn connect(connection: &str) -> Result<Client> {
    let mut config: Config = connection.parse()?;
    if let Ok(password) = std::env::var("PGPASSWORD") {
        config.password(password);
    }
    config.application_name("muster-demo");
    let mut client = config.connect(NoTls).with_context(|| format!("cannot connect to {connection}"))?;
    client.batch_execute("SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'")?;
    Ok(client)
}

/// A slot keeps its database from being dropped, and the server from forgetting its log.
fn drop_slots(client: &mut Client, database: &str) -> Result<()> {
    let slots = client.query(
        "SELECT slot_name::text, active_pid FROM pg_replication_slots WHERE database = $1",
        &[&database],
    )?;
    for slot in slots {
        let (name, pid): (String, Option<i32>) = (slot.get(0), slot.get(1));
        if let Some(pid) = pid {
            // With a time limit, the call waits for the process to end.
            client.execute("SELECT pg_terminate_backend($1, 10000)", &[&pid])?;
        }
        client
            .execute("SELECT pg_drop_replication_slot($1)", &[&name])
            .with_context(|| format!("cannot drop the replication slot {name} of {database}"))?;
    }
    Ok(())
}

/// The same connection to another database.
fn with_database(connection: &str, database: &str) -> String {
    let Some((scheme, rest)) = connection.split_once("://") else {
        // Of a key given twice, the last counts.
        return format!("{connection} dbname={database}");
    };
    let (place, options) =
        rest.split_once('?').map_or((rest, None), |(place, options)| (place, Some(options)));
    let host = place.split_once('/').map_or(place, |(host, _)| host);
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    format!("{scheme}://{host}/{database}{options}")
}

/// A quoted identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_leads_to_another_database() {
        for (from, to) in [
            ("postgresql://a@h:5/postgres", "postgresql://a@h:5/x"),
            ("postgresql://a@h:5", "postgresql://a@h:5/x"),
            ("postgres://h/p?connect_timeout=3", "postgres://h/x?connect_timeout=3"),
            ("host=h dbname=p", "host=h dbname=p dbname=x"),
        ] {
            assert_eq!(with_database(from, "x"), to);
        }
    }

    #[test]
    fn a_password_in_a_connection_is_refused_and_not_shown() {
        let error = PostgresServer::new("postgresql://a:hidden@h/p", "x").unwrap_err().to_string();
        assert!(error.contains("PGPASSWORD") && !error.contains("hidden"), "{error}");
        assert!(PostgresServer::new("postgresql://a@h/p", "x; y").is_err());
    }
}
