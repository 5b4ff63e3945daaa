//! One world's PostgreSQL and MinIO: a part of the shared ones, or servers of its own, which may be crashed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use muster_demo::{Fleet, FleetConfig, PostgresServer, RepositoryPlace};
use muster_repo::{Objects as _, S3Config, S3Objects};
use muster_services::{Minio, Postgres, StopMode};

/// Databases and a bucket of its own.
#[derive(Debug)]
pub(crate) struct Services {
    postgres: Postgres,
    minio: Minio,
    server: PostgresServer,
    bucket: String,
    shared: bool,
}

impl Services {
    pub(crate) fn shared() -> Self {
        let postgres = Postgres::shared().expect("PostgreSQL: make services");
        let minio = Minio::shared().expect("MinIO: make services");
        Self::on(postgres, minio, true)
    }

    pub(crate) fn own() -> Self {
        let postgres = Postgres::own(&[]).expect("PostgreSQL: make services");
        Self::on(postgres, Minio::own().expect("MinIO: make services"), false)
    }

    fn on(postgres: Postgres, minio: Minio, shared: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let prefix = format!("world_{seconds}_{process}_{count}");
        let server = PostgresServer::new(&postgres.url("postgres"), &prefix).expect("its URL is understood");
        let bucket = minio.create_bucket("world").expect("a bucket");
        Self { postgres, minio, server, bucket, shared }
    }

    /// A fleet in databases that end with this process.
    pub(crate) fn fleet(&self, config: &FleetConfig) -> Arc<Fleet> {
        let fleet = Fleet::generate_on(&self.server, config).expect("a fleet");
        for database in
            fleet.shards.iter().filter(|_| self.shared).filter_map(|shard| shard.database.as_ref())
        {
            self.postgres.adopt_database(&database.name).expect("a database of ours");
        }
        fleet
    }

    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    pub(crate) fn endpoint(&self) -> String {
        self.minio.endpoint()
    }

    pub(crate) fn repository(&self) -> RepositoryPlace {
        RepositoryPlace::Endpoint { url: self.minio.endpoint() }
    }

    pub(crate) fn s3_addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.minio.port()))
    }

    /// For the environment of commands.
    pub(crate) fn credentials(&self) -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", self.minio.access_key()), ("AWS_SECRET_ACCESS_KEY", self.minio.secret_key())]
    }

    pub(crate) fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// All objects of the bucket, as files in a folder.
    pub(crate) fn download(&self, to: &Path) {
        for (key, body) in self.read("") {
            let path = to.join(&key);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, body).expect("a file");
        }
    }

    /// Contents of objects below a folder, in the order of their keys.
    pub(crate) fn documents(&self, folder: &str) -> Vec<Vec<u8>> {
        self.read(&format!("{folder}/")).into_iter().map(|(_, body)| body).collect()
    }

    /// Objects with this prefix; those that go meanwhile are left out.
    fn read(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = folder.path().join("credentials");
        let keys = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.minio.access_key(),
            self.minio.secret_key()
        );
        std::fs::write(&credentials, keys).expect("a file");
        let config = S3Config {
            bucket: self.bucket.clone(),
            prefix: String::new(),
            region: None,
            endpoint: Some(self.minio.endpoint()),
            path_style: true,
            credentials_file: Some(credentials),
            requests_in_flight: 16,
        };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let objects = S3Objects::connect(&config).await.expect("MinIO answers");
            let mut found = Vec::new();
            for entry in objects.list(prefix, None).await.expect("a listing") {
                if let Some(body) = objects.get(&entry.key).await.expect("an answer") {
                    found.push((entry.key, body.to_vec()));
                }
            }
            found.sort();
            found
        })
    }

    /// An immediate stop, and a start: all that was committed is there, and unlogged tables are empty.
    pub(crate) fn crash_postgres(&mut self) {
        self.postgres.stop(StopMode::Immediate).expect("PostgreSQL stops");
        self.postgres.start().expect("PostgreSQL starts again");
    }

    /// `kill -9`, and a start.
    pub(crate) fn crash_minio(&mut self) {
        self.minio.kill().expect("MinIO ends");
        self.minio.start().expect("MinIO starts again");
    }

    pub(crate) fn drop_databases(&self) {
        if !self.shared {
            return;
        }
        // A panic in a drop would hide the test's own; whoever asks for the server next removes what is left.
        if let Err(error) = self.server.drop_databases() {
            eprintln!("the world's databases are left behind: {error:#}");
        }
    }
}
