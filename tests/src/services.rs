//! One world's part of the shared PostgreSQL and MinIO.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use muster_demo::{Fleet, FleetConfig, PostgresServer, RepositoryPlace};
use muster_services::{Minio, Postgres};

/// Databases and a bucket of its own.
#[derive(Debug)]
pub(crate) struct Services {
    postgres: Postgres,
    minio: Minio,
    server: PostgresServer,
    bucket: String,
}

impl Services {
    pub(crate) fn shared() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let postgres = Postgres::shared().expect("PostgreSQL: make services");
        let minio = Minio::shared().expect("MinIO: make services");
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let prefix = format!("world_{seconds}_{process}_{count}");
        let server = PostgresServer::new(&postgres.url("postgres"), &prefix).expect("its URL is understood");
        let bucket = minio.create_bucket("world").expect("a bucket");
        Self { postgres, minio, server, bucket }
    }

    /// A fleet in databases that end with this process.
    pub(crate) fn fleet(&self, config: &FleetConfig) -> Arc<Fleet> {
        let fleet = Fleet::generate_on(&self.server, config).expect("a fleet");
        for database in fleet.shards.iter().filter_map(|shard| shard.database.as_ref()) {
            self.postgres.adopt_database(&database.name).expect("a database of ours");
        }
        fleet
    }

    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    pub(crate) fn repository(&self) -> RepositoryPlace {
        RepositoryPlace::Endpoint { url: self.minio.endpoint() }
    }

    /// For the environment of commands.
    pub(crate) fn credentials(&self) -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", self.minio.access_key()), ("AWS_SECRET_ACCESS_KEY", self.minio.secret_key())]
    }

    pub(crate) fn drop_databases(&self) {
        // A panic in a drop would hide the test's own; whoever asks for the server next removes what is left.
        if let Err(error) = self.server.drop_databases() {
            eprintln!("the world's databases are left behind: {error:#}");
        }
    }
}
