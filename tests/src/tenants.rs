//! Databases of a test's own on the shared PostgreSQL, with a topology and a repository, and `pg_dump` as the judge.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use muster_services::Postgres;
use postgres::{Client, NoTls};
use tempfile::TempDir;

use crate::command::Ran;
use crate::server::Server;

/// A temporary folder with a topology and a repository, beside databases.
#[derive(Debug)]
pub struct Tenants {
    dir: TempDir,
    server: Server,
    postgres: Postgres,
    helpers: Vec<Child>,
}

impl Tenants {
    /// Nothing but the services.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("muster-tenants-").expect("a temporary folder");
        let server = Server::start(&dir.path().join("s3"), 0);
        let postgres = Postgres::shared().expect("PostgreSQL: make services");
        Self { dir, server, postgres, helpers: Vec::new() }
    }

    /// A fresh database; its name begins with `prefix`.
    pub fn database(&self, prefix: &str) -> String {
        self.postgres.create_database(prefix).expect("a database")
    }

    /// The shared server.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// A session there.
    pub fn session(&self, database: &str) -> Client {
        let mut client = Client::connect(&self.postgres.url(database), NoTls).expect("a session");
        let settings = "SET search_path = public; SET client_min_messages = warning";
        client.batch_execute(settings).expect("settings");
        client
    }

    /// Writes `muster.toml`: fleet, repository and tiers, and then `rest`.
    pub fn topology(&self, rest: &str) {
        let text = format!(
            "fleet = \"tenants\"\n\n[repository]\nbucket = \"muster\"\nendpoint = \"http://127.0.0.1:{}\"\nembedded = \"s3\"\n\n\
             [capture]\npoll_interval_milliseconds = 200\n\n[tiers.standard]\nrto_seconds = 3600\nrpo_seconds = 60\n\n{rest}",
            self.server.port
        );
        std::fs::write(self.path("muster.toml"), text).expect("a topology");
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The repository's objects with their sizes, a line each.
    pub fn objects(&self) -> Vec<String> {
        let root = self.path("s3");
        let size = |path: &PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
        let line = |path: &PathBuf| {
            format!("{:>10} {}", size(path), path.strip_prefix(&root).unwrap_or(path).display())
        };
        crate::world::files(&root).iter().map(line).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(super::muster());
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("MUSTER_TOPOLOGY", "muster.toml").env_remove("MUSTER_LOG");
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    pub fn muster(&self, args: &[&str]) -> Ran {
        Ran::run(&mut self.command(args))
    }

    /// Polls all shards until this is dropped.
    pub fn follow(&mut self) {
        let log = std::fs::File::create(self.path("follow.log")).expect("a log");
        let mut command = self.command(&["capture", "--follow"]);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.helpers.push(command.spawn().expect("muster capture starts"));
    }

    /// Ends what [`Self::follow`] began.
    pub fn stop_following(&mut self) {
        for mut helper in self.helpers.drain(..) {
            // It may be gone already; a capture may be killed at any time.
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }

    /// Everything up to now is in the repository.
    #[track_caller]
    pub fn covered(&self) {
        self.muster(&["capture", "wait", "--covers", "now"]).ok();
    }

    /// What `pg_dump` writes of a database, without what differs each time and without what is Muster's.
    pub fn dump(&self, database: &str, options: &[&str]) -> String {
        let mut command = Command::new(self.postgres.bin("pg_dump"));
        command.args(["--no-publications", "--exclude-schema=muster"]).args(options);
        let output = command.arg(self.postgres.url(database)).output().expect("pg_dump runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let wanted = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        in_order(text.lines().filter(wanted))
    }
}

/// The rows of each table in an order of their own: that of the file says nothing.
fn in_order<'l>(lines: impl Iterator<Item = &'l str>) -> String {
    let (mut found, mut rows): (Vec<&str>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in lines {
        match rows.take() {
            Some(mut open) if line == "\\." => {
                open.sort_unstable();
                found.append(&mut open);
                found.push(line);
            }
            Some(mut open) => {
                open.push(line);
                rows = Some(open);
            }
            None => {
                found.push(line);
                rows = line.starts_with("COPY ").then(Vec::new);
            }
        }
    }
    found.join("\n")
}

/// Fails with the first line in which two dumps differ.
#[track_caller]
pub fn assert_same_dump(what: &str, found: &str, wanted: &str) {
    let first = found.lines().zip(wanted.lines()).find(|(one, other)| one != other);
    assert!(first.is_none(), "{what}: (found, wanted) {first:?}");
    assert_eq!(found.lines().count(), wanted.lines().count(), "{what}: lines");
}

impl Default for Tenants {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Tenants {
    /// Slots are few on a server that many tests share.
    fn drop(&mut self) {
        self.stop_following();
        if self.path("muster.toml").exists() {
            self.muster(&["capture", "remove"]);
        }
    }
}
