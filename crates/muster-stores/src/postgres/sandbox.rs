//! A server on which drills make databases.

use muster_types::DrillId;
use muster_types::topology::{DriverConfig, MADE_PREFIX, Topology};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::PostgresConfig;
use super::schema::{quote, sql_text};

/// Why the connection leads to something alive, if it does: to a live shard's database, or to a server of a live database
/// that is named like those that drills remove.
pub(crate) fn is_live(topology: &Topology, connection: &str) -> Result<Option<String>, String> {
    let sandbox = PostgresConfig::parse(connection).map_err(|error| error.to_string())?;
    for (shard, config) in &topology.shards {
        let DriverConfig::Postgres { connection } = &config.driver else { continue };
        // What cannot be understood is told where the shard is used.
        let Ok(live) = PostgresConfig::parse(connection) else { continue };
        if live.is_same_database(&sandbox) {
            return Ok(Some(format!(
                "its connection leads to the database of live shard `{shard}` ({live})"
            )));
        }
        if live.database().starts_with(MADE_PREFIX) {
            let database = live.database();
            return Ok(Some(format!(
                "the database `{database}` of live shard `{shard}` is named like a drill's"
            )));
        }
    }
    Ok(None)
}

/// The server, by the connection from which databases are made and dropped.
pub(crate) struct Server(PostgresConfig);

impl Server {
    pub(crate) fn new(connection: &str) -> Result<Self, String> {
        PostgresConfig::parse(connection).map(Self).map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Client, String> {
        self.0.connect().await.map_err(|error| error.to_string())
    }

    /// A session that holds the drill's lock.
    pub(crate) async fn hold(&self, drill: &DrillId) -> Result<Option<Client>, String> {
        let client = self.connect().await?;
        let key = format!("{MADE_PREFIX}{drill}");
        let sql = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))";
        let row = client.query_one(sql, &[&key]).await.map_err(|error| self.failed("lock", &error))?;
        Ok(row.get::<_, bool>(0).then_some(client))
    }

    pub(crate) async fn make(&self, name: &str) -> Result<(), String> {
        // Not from template1, which may hold what someone put there.
        let sql = format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", quote(name));
        self.run(&sql).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<String>, String> {
        let client = self.connect().await?;
        let sql = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY 1";
        let rows = client.query(sql, &[&MADE_PREFIX]).await;
        let rows = rows.map_err(|error| self.failed("list its databases", &error))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Whoever is connected is cut off: a drill's own engine, which may be gone.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), String> {
        let client = self.connect().await?;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()";
        client.query(sql, &[&name]).await.map_err(|error| self.failed("end its sessions", &error))?;
        let sql = format!("DROP DATABASE IF EXISTS {}", quote(name));
        // Servers before version 13 know no force; there, sessions were just ended.
        match client.batch_execute(&format!("{sql} WITH (FORCE)")).await {
            Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => client.batch_execute(&sql).await,
            done => done,
        }
        .map_err(|error| self.failed(&sql, &error))
    }

    async fn run(&self, sql: &str) -> Result<(), String> {
        self.connect().await?.batch_execute(sql).await.map_err(|error| self.failed(sql, &error))
    }

    fn failed(&self, doing: &str, error: &tokio_postgres::Error) -> String {
        format!(
            "could not {doing} on {}: {}; the role must be allowed to make databases there (ALTER ROLE … CREATEDB), and its \
             disk must have room",
            self.0,
            sql_text(error)
        )
    }
}
