//! A fleet, its repository, and the commands over them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_demo::{Fleet, FleetConfig, Shard, TopologyOptions};
use tempfile::TempDir;

use crate::command::Ran;
use crate::server::Server;

/// Between two polls of a shard under `capture --follow`.
const POLL_INTERVAL_MILLISECONDS: u64 = 1000;

/// No condition of a test takes longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for a condition, and fails loudly at a deadline.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How large a fleet is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Sites.
    pub sites: usize,
    /// Rows per site, on average.
    pub rows_per_site: usize,
}

/// A temporary folder with a fleet, its topology, and a running S3 server.
#[derive(Debug)]
pub struct World {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// Its folder; the working directory of all commands.
    pub dir: PathBuf,
    /// The seed of everything.
    pub seed: u64,
    server: Option<Server>,
    helpers: Vec<Child>,
    _temp: Option<TempDir>,
}

impl World {
    /// A world with triggers and a snapshot: ready for writers.
    pub fn captured(size: Size, seed: u64) -> Self {
        let world = Self::new(size, seed);
        world.muster(&["capture", "init"]).ok();
        world.capture_once();
        world
    }

    /// A world that nothing was done to.
    pub fn new(size: Size, seed: u64) -> Self {
        let temp = TempDir::with_prefix("muster-test-").expect("a temporary folder");
        let dir = temp.path().canonicalize().expect("it is there");
        let mut config = FleetConfig::new(&dir);
        (config.sites, config.rows_per_site, config.seed) = (size.sites, size.rows_per_site, seed);
        let fleet = Fleet::generate(&config).expect("a fleet");
        let server = Server::start(&dir.join("s3"), 0);
        let options = TopologyOptions {
            bucket: "muster".to_owned(),
            embedded: dir.join("s3"),
            port: server.port,
            poll_interval_milliseconds: POLL_INTERVAL_MILLISECONDS,
        };
        fleet.write_topology(&dir.join("muster.toml"), &options).expect("a topology");
        let kept = std::env::var_os("MUSTER_KEEP").is_some();
        let temp = if kept {
            eprintln!("kept: {}", temp.keep().display());
            None
        } else {
            Some(temp)
        };
        Self { fleet, dir, seed, server: Some(server), helpers: Vec::new(), _temp: temp }
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The repository's objects as files.
    pub fn repository(&self) -> PathBuf {
        self.path("s3/muster")
    }

    /// A `muster` command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(super::muster());
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
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

    /// Polls every shard once: a recovery point each, durable when this returns.
    pub fn capture_once(&self) {
        self.muster(&["capture", "--once"]).ok();
    }

    /// Polls all shards until this is dropped.
    pub fn follow(&mut self) {
        let log = std::fs::File::create(self.path("follow.log")).expect("a log");
        let mut command = self.command(&["capture", "--follow"]);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.helpers.push(command.spawn().expect("muster capture starts"));
    }

    /// Ends what [`Self::follow`] began, with the last poll durable.
    pub fn stop_following(&mut self) {
        self.muster(&["capture", "wait", "--covers", "now"]).ok();
        self.stop_helpers();
    }

    fn stop_helpers(&mut self) {
        for mut helper in self.helpers.drain(..) {
            // It may be gone already; a capture may be killed at any time.
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }

    /// Kills the S3 server, as a crash of its machine would.
    pub fn stop_server(&mut self) -> u16 {
        self.server.take().map_or(0, |server| server.port)
    }

    /// Starts it again on the same port.
    pub fn start_server(&mut self, port: u16) {
        self.server = Some(Server::start(&self.path("s3"), port));
    }

    /// A shard by its name.
    #[track_caller]
    pub fn shard(&self, name: &str) -> &Shard {
        self.fleet.shards.iter().find(|shard| shard.name == name).unwrap_or_else(|| panic!("no shard {name}"))
    }

    /// Number of objects under a prefix of the repository.
    pub fn objects(&self, prefix: &str) -> Vec<PathBuf> {
        files(&self.repository().join(prefix))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_helpers();
        drop(self.server.take());
    }
}

/// Files under a folder, in order of their names.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
