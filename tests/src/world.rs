//! A fleet, its repository, and the commands over them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_demo::{Fleet, FleetConfig, RepositoryPlace, Shard, TopologyOptions};
use muster_services::{Minio, Postgres};
use tempfile::TempDir;

use crate::command::Ran;
use crate::server::Server;
use crate::services::Services;
use crate::shard::query;

/// Between two polls of a shard under `capture --follow`.
const POLL_INTERVAL_MILLISECONDS: u64 = 1000;

/// As many replication slots as the shared PostgreSQL has.
const SLOTS_MAX: u64 = 64;

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

/// A temporary folder with a fleet, its topology, and a repository.
#[derive(Debug)]
pub struct World {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// Its folder; the working directory of all commands.
    pub dir: PathBuf,
    /// The seed of everything.
    pub seed: u64,
    server: Option<Server>,
    services: Option<Services>,
    /// Environment of every command.
    variables: Vec<(String, String)>,
    helpers: Vec<Child>,
    /// None if the folder is to be kept.
    temp: Option<TempDir>,
}

impl World {
    /// A world with triggers and a snapshot: ready for writers.
    pub fn captured(size: Size, seed: u64) -> Self {
        let world = Self::new(size, seed);
        world.capture();
        world
    }

    /// Installs capture in the shards and takes a snapshot of each.
    pub fn capture(&self) {
        self.muster(&["capture", "init"]).ok();
        self.capture_once();
    }

    /// Sets a variable in the environment of every later command; none leaves it out.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// A world that nothing was done to.
    pub fn new(size: Size, seed: u64) -> Self {
        let (dir, temp) = folder();
        let fleet = Fleet::generate(&config(&dir, size, seed)).expect("a fleet");
        let server = Server::start(&dir.join("s3"), 0);
        let repository = RepositoryPlace::Embedded { folder: dir.join("s3"), port: server.port };
        write_topology(&fleet, &dir, "muster", repository);
        let (variables, helpers) = (Vec::new(), Vec::new());
        Self { fleet, dir, seed, server: Some(server), services: None, variables, helpers, temp }
    }

    /// A world with its shards in SQLite and its repository in a bucket of a MinIO, which nothing was done to. What
    /// looks at the repository's files ([`Self::repository`], [`Self::objects`]) is of no use there.
    pub fn on_minio(size: Size, seed: u64, minio: &Minio, bucket: &str) -> Self {
        let (dir, temp) = folder();
        let fleet = Fleet::generate(&config(&dir, size, seed)).expect("a fleet");
        write_topology(&fleet, &dir, bucket, RepositoryPlace::Endpoint { url: minio.endpoint() });
        let (variables, helpers) = (Vec::new(), Vec::new());
        let mut world = Self { fleet, dir, seed, server: None, services: None, variables, helpers, temp };
        world.set("AWS_ACCESS_KEY_ID", Some(minio.access_key()));
        world.set("AWS_SECRET_ACCESS_KEY", Some(minio.secret_key()));
        world
    }

    /// A world on the shared PostgreSQL and MinIO that nothing was done to.
    pub fn on_services(size: Size, seed: u64) -> Self {
        Self::on(Services::shared(), size, seed)
    }

    /// The same on servers of its own, which may be crashed.
    pub fn on_own_services(size: Size, seed: u64) -> Self {
        Self::on(Services::own(), size, seed)
    }

    fn on(services: Services, size: Size, seed: u64) -> Self {
        let (dir, temp) = folder();
        let fleet = services.fleet(&config(&dir, size, seed));
        write_topology(&fleet, &dir, services.bucket(), services.repository());
        let (services, variables, helpers) = (Some(services), Vec::new(), Vec::new());
        Self { fleet, dir, seed, server: None, services, variables, helpers, temp }
    }

    /// Its shards are in PostgreSQL and its repository is in MinIO.
    pub fn is_on_services(&self) -> bool {
        self.services.is_some()
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The repository's objects as files, where the server is Muster's own.
    pub fn repository(&self) -> PathBuf {
        self.path("s3/muster")
    }

    /// A `muster` command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(super::muster());
        command.args(args);
        self.prepare(&mut command);
        command
    }

    /// Folder and environment of a command in this world.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command.current_dir(&self.dir).stdin(Stdio::null());
        command.env("MUSTER_TOPOLOGY", "muster.toml").env_remove("MUSTER_LOG");
        for name in
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"]
        {
            command.env_remove(name);
        }
        if let Some(services) = &self.services {
            command.envs(services.credentials());
        }
        command.envs(self.variables.iter().cloned());
    }

    /// Runs a command to its end.
    pub fn muster(&self, args: &[&str]) -> Ran {
        Ran::run(&mut self.command(args))
    }

    /// As [`Self::muster`], with another topology file of its folder.
    pub fn muster_with(&self, topology: &str, args: &[&str]) -> Ran {
        Ran::run(self.command(args).env("MUSTER_TOPOLOGY", topology))
    }

    /// A command on a machine that has nothing but the bucket's name and credentials: its folder is empty, and so is its
    /// environment but for what an AWS client reads. Without a server of Muster's own, the repository is in MinIO.
    #[track_caller]
    pub fn bare(&self, empty: &Path, args: &[&str]) -> Ran {
        Ran::run(&mut self.bare_command(empty, args))
    }

    fn bare_command(&self, empty: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(super::muster());
        command.args(args).current_dir(empty).env_clear().stdin(Stdio::null());
        let bucket = self.services.as_ref().map_or("muster", Services::bucket);
        command.env("MUSTER_TOPOLOGY", format!("s3://{bucket}"));
        match (&self.services, &self.server) {
            (Some(services), _) => {
                command.envs(services.credentials()).env("AWS_ENDPOINT_URL", services.endpoint());
            }
            (None, Some(server)) => {
                command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", server.port));
                let file = self.path("s3/.muster/credentials");
                command.env("AWS_SHARED_CREDENTIALS_FILE", file);
            }
            (None, None) => panic!("this world's repository is nowhere"),
        }
        command
    }

    /// [`Self::follow`], on the machine of [`Self::bare`].
    pub fn follow_bare(&mut self, empty: &Path) {
        let command = self.bare_command(empty, &["capture", "--follow"]);
        self.help(command);
    }

    /// Polls every shard once: a recovery point each, durable when this returns.
    pub fn capture_once(&self) {
        self.muster(&["capture", "--once"]).ok();
    }

    /// Polls all shards until this is dropped.
    pub fn follow(&mut self) {
        let command = self.command(&["capture", "--follow"]);
        self.help(command);
    }

    fn help(&mut self, mut command: Command) {
        let log = std::fs::File::create(self.path("follow.log")).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.helpers.push(command.spawn().expect("muster capture starts"));
    }

    /// `kill -9` of what [`Self::follow`] began, which must not have ended by itself.
    #[track_caller]
    pub fn kill_following(&mut self) {
        for mut helper in self.helpers.drain(..) {
            let ended = helper.try_wait().expect("it can be asked");
            let log = std::fs::read_to_string(self.dir.join("follow.log")).unwrap_or_default();
            assert!(ended.is_none(), "capture ended by itself ({ended:?}):\n{log}");
            helper.kill().expect("it can be killed");
            helper.wait().expect("it ends");
        }
    }

    /// The repository's objects as files below a folder, copied from MinIO.
    pub fn download_repository(&self, to: &Path) {
        std::fs::create_dir(to).expect("a folder");
        self.services.as_ref().expect("a world on PostgreSQL and MinIO").download(to);
    }

    /// Where its S3 server listens.
    pub fn s3_addr(&self) -> SocketAddr {
        match &self.services {
            Some(services) => services.s3_addr(),
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, self.server.as_ref().expect("an S3 server").port)),
        }
    }

    /// From here on commands go to `addr` for the repository, and serve it no more themselves.
    pub fn reach_repository_at(&mut self, addr: SocketAddr) {
        let topology = std::fs::read_to_string(self.path("muster.toml")).expect("a topology");
        let line = |line: &str| match line.split(' ').next() {
            Some("endpoint") => format!("endpoint = \"http://{addr}\"\n"),
            Some("embedded") => String::new(),
            _ => format!("{line}\n"),
        };
        let topology: String = topology.lines().map(line).collect();
        std::fs::write(self.path("muster.toml"), topology).expect("a topology");
        if self.services.is_none() {
            let credentials = self.path("s3/.muster/credentials").display().to_string();
            self.set("AWS_SHARED_CREDENTIALS_FILE", Some(&credentials));
        }
    }

    /// `kill -9` of the S3 server. MinIO is started again; of an embedded repository, whoever of Muster is at work serves on.
    pub fn crash_object_store(&mut self) {
        match &mut self.services {
            Some(services) => services.crash_minio(),
            None => drop(self.server.take()),
        }
    }

    /// An embedded repository has a server of its own again, and capture follows. Nothing else may be at work.
    pub fn serve_and_follow(&mut self, port: u16) {
        if self.services.is_none() && self.server.is_none() {
            self.stop_helpers();
            self.start_server(port);
        }
        if self.helpers.is_empty() {
            self.follow();
        }
    }

    /// A command as another machine would run it: in a folder of its own, where there is nothing but the topology.
    pub fn command_elsewhere(&self, dir: &Path, args: &[&str]) -> Command {
        std::fs::copy(self.path("muster.toml"), dir.join("muster.toml")).expect("a topology");
        let mut command = self.command(args);
        command.current_dir(dir).envs([("HOME", dir), ("TMPDIR", dir)]);
        command
    }

    /// Stores that some run claims, over all shards.
    pub fn claims(&self) -> u64 {
        let claims = |shard: &Shard| match &shard.database {
            Some(database) => {
                let mut client = database.connect().expect("a session");
                // Made by the first run that comes there.
                let there = client.query_one("SELECT to_regclass('muster.claim') IS NOT NULL", &[]);
                if !there.expect("an answer").get::<_, bool>(0) {
                    return 0;
                }
                let row = client.query_one("SELECT count(*) FROM muster.claim", &[]).expect("claims");
                row.get::<_, i64>(0)
            }
            None => match query(&shard.path, "SELECT count(*) FROM _muster_claim")[0][0] {
                rusqlite::types::Value::Integer(count) => count,
                ref other => panic!("{other:?}"),
            },
        };
        self.fleet.shards.iter().map(|shard| claims(shard).unsigned_abs()).sum()
    }

    /// Crashes the world's own PostgreSQL, and starts it again.
    pub fn crash_postgres(&mut self) {
        self.services.as_mut().expect("a world on servers of its own").crash_postgres();
    }

    /// Crashes the world's own MinIO, and starts it again.
    pub fn crash_minio(&mut self) {
        self.services.as_mut().expect("a world on servers of its own").crash_minio();
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

    /// Contents of the repository's objects below a prefix that ends at a folder, in the order of their keys.
    pub fn documents(&self, prefix: &str) -> Vec<Vec<u8>> {
        match &self.services {
            Some(services) => services.documents(prefix),
            None => self.objects(prefix).iter().filter_map(|file| std::fs::read(file).ok()).collect(),
        }
    }

    /// The PostgreSQL of a world on services.
    pub fn postgres(&self) -> &Postgres {
        self.services.as_ref().expect("a world on services").postgres()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_helpers();
        drop(self.server.take());
        if let Some(services) = &self.services
            && self.temp.is_some()
        {
            services.drop_databases();
        }
    }
}

/// A folder, and what removes it again unless it is to be kept.
fn folder() -> (PathBuf, Option<TempDir>) {
    let temp = TempDir::with_prefix("muster-test-").expect("a temporary folder");
    let dir = temp.path().canonicalize().expect("it is there");
    if std::env::var_os("MUSTER_KEEP").is_some() {
        eprintln!("kept: {}", temp.keep().display());
        return (dir, None);
    }
    (dir, Some(temp))
}

fn config(dir: &Path, size: Size, seed: u64) -> FleetConfig {
    let mut config = FleetConfig::new(dir);
    (config.sites, config.rows_per_site, config.seed) = (size.sites, size.rows_per_site, seed);
    config
}

fn write_topology(fleet: &Fleet, dir: &Path, bucket: &str, repository: RepositoryPlace) {
    let options = TopologyOptions {
        bucket: bucket.to_owned(),
        repository,
        poll_interval_milliseconds: POLL_INTERVAL_MILLISECONDS,
    };
    let file = dir.join("muster.toml");
    fleet.write_topology(&file, &options).expect("a topology");
    // Worlds of several tests share one server.
    let topology = std::fs::read_to_string(&file).expect("a topology");
    let driver = "driver = \"postgres\"\n";
    std::fs::write(&file, topology.replace(driver, &format!("{driver}slots_max = {SLOTS_MAX}\n")))
        .expect("a file");
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
