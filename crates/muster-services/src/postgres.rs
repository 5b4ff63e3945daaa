//! A PostgreSQL cluster.

mod admin;
mod settings;

pub(crate) use admin::unique;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::owner::Owner;
use crate::process::{cannot_run, output, text};
use crate::tls::Tls;
use crate::watchdog::Watchdog;
use crate::{binaries, place};

/// Starting may have to replay WAL after a crash.
const START_SECONDS_MAX: &str = "120";

/// How many times another port is tried when someone took it between looking and starting.
const START_ATTEMPTS: usize = 5;

/// How a cluster ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// When all clients have gone.
    Smart,
    /// Clients are thrown out, everything is written.
    Fast,
    /// As a crash: the next start replays WAL, and unlogged tables are empty.
    Immediate,
}

impl StopMode {
    fn name(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// A running PostgreSQL cluster.
///
/// Its superuser is `muster`, without a password from this machine. Logical decoding, commit times, and many slots and
/// connections are on. Roles made by [`Self::create_role`] need their password.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    owner: Owner,
    /// Holds `data`, `log` and `port`.
    dir: PathBuf,
    port: u16,
    /// Of a cluster of one's own.
    watchdog: Option<Watchdog>,
}

impl Postgres {
    /// The superuser, who needs no password.
    pub(crate) const SUPERUSER: &str = "muster";

    /// The shared cluster of this clone, started if it is not running. It goes on when this value and process end.
    /// Its `fsync` is off: a crash of the machine may cost its data.
    ///
    /// # Errors
    /// PostgreSQL is missing, or does not start; with its log.
    pub fn shared() -> Result<Self> {
        let (mut cluster, _lock) = Self::shared_locked()?;
        if !cluster.is_running() {
            if !cluster.data_dir().join("muster.conf").is_file() {
                cluster.initialise()?;
                cluster.configure(&[("fsync", "off")])?;
            }
            cluster.start_on_free_port()?;
        }
        cluster.sweep()?;
        Ok(cluster)
    }

    /// The shared cluster if it is running.
    ///
    /// # Errors
    /// PostgreSQL is missing.
    pub fn shared_if_running() -> Result<Option<Self>> {
        let (cluster, _lock) = Self::shared_locked()?;
        Ok(cluster.is_running().then_some(cluster))
    }

    fn shared_locked() -> Result<(Self, File)> {
        let owner = Owner::unprivileged()?;
        let dir = place::shared_dir_of(&owner, "postgres")?;
        owner.give(&dir)?;
        let lock = place::lock(&dir)?;
        let port = place::remembered_port(&dir).unwrap_or(0);
        Ok((Self { bin: binaries::postgres()?, owner, dir, port, watchdog: None }, lock))
    }

    /// A new cluster in a temporary folder, with `fsync` on and these settings beside the usual ones. It is stopped and
    /// removed when this value is dropped or the process ends.
    ///
    /// # Errors
    /// PostgreSQL is missing, or does not start; with its log.
    pub fn own(settings: &[(&str, &str)]) -> Result<Self> {
        Self::own_with(settings, Self::initialise)
    }

    /// As [`Self::own`], and it takes TLS connections with a certificate of `tls`.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub fn own_with_tls(tls: &Tls, settings: &[(&str, &str)]) -> Result<Self> {
        Self::own_with(settings, |cluster| {
            cluster.initialise()?;
            for (name, content) in [("server.crt", tls.certificate()?), ("server.key", tls.key()?)] {
                cluster.write_private(&cluster.data_dir().join(name), &content)?;
            }
            cluster.configure(&[("ssl", "on")])
        })
    }

    /// As [`Self::own`], but `fill` makes the data folder ([`Self::data_dir`], absent so far), for example by
    /// `pg_basebackup` from another cluster, with whatever it needs (`recovery.signal`).
    ///
    /// # Errors
    /// What `fill` says, and as [`Self::own`].
    pub fn own_with(settings: &[(&str, &str)], fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        let owner = Owner::unprivileged()?;
        let bin = binaries::postgres()?;
        let dir = place::temporary_dir(&owner, "muster-postgres-")?;
        // SIGQUIT is what an immediate stop sends.
        let watchdog = Watchdog::over(&dir, &dir.join("data/postmaster.pid"), "QUIT")?;
        let mut cluster = Self { bin, owner, dir, port: 0, watchdog: Some(watchdog) };
        fill(&cluster)?;
        cluster.configure(settings)?;
        cluster.start_on_free_port()?;
        Ok(cluster)
    }

    /// A new data folder.
    fn initialise(&self) -> Result<()> {
        let data = self.data_dir();
        if data.exists() {
            // Left behind by someone who was killed before it was whole.
            std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove `{}`", data.display()))?;
        }
        let mut command = Command::new(self.bin("initdb"));
        command
            .args(["-U", Self::SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(data);
        self.run_as_owner(&mut command)?;
        Ok(())
    }

    /// Ends the cluster; [`Self::start`] brings it back on the same port.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let mut command = Command::new(self.bin("pg_ctl"));
        command.args(["stop", "-w", "-t", START_SECONDS_MAX, "-m", mode.name(), "-D"]).arg(self.data_dir());
        self.run_as_owner(&mut command)?;
        Ok(())
    }

    /// Starts it again.
    ///
    /// # Errors
    /// It does not start; with its log.
    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(self.bin("pg_ctl"));
        command.args(["start", "-w", "-s", "-t", START_SECONDS_MAX, "-D"]).arg(self.data_dir());
        command.arg("-l").arg(self.log()).args(["-o", &format!("-p {}", self.port)]);
        self.run_as_owner(&mut command).with_context(|| {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(10).collect();
            let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            format!("PostgreSQL in `{}` does not start; the end of its log:\n{last}", self.dir.display())
        })?;
        Ok(())
    }

    fn start_on_free_port(&mut self) -> Result<()> {
        for attempt in 1.. {
            self.port = place::settle_port(&self.dir)?;
            match self.start() {
                Ok(()) => return Ok(()),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(_) => {}
            }
        }
        bail!("PostgreSQL in `{}` was not tried", self.dir.display())
    }

    /// Whether this very cluster answers.
    fn is_running(&self) -> bool {
        let answer = self.psql("postgres", "SHOW data_directory");
        self.port != 0 && answer.is_ok_and(|answer| Path::new(answer.trim()) == self.data_dir())
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What everything of it lies in, its Unix socket too.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// One of the programs that belong to its server.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Runs a command to its end as the user who owns the cluster's files, from `/`; what it printed.
    ///
    /// # Errors
    /// It cannot be run, or fails; with what it said.
    pub fn run_as_owner(&self, command: &mut Command) -> Result<String> {
        self.owner.run(command);
        without_libpq_variables(command);
        if command.get_program() != self.bin("pg_ctl").as_os_str() {
            return output(command);
        }
        // A server that it starts would hold a pipe open for ever: what `pg_ctl` says goes into a file.
        let said = tempfile::tempfile().context("cannot create a temporary file")?;
        let clone = || said.try_clone().context("cannot share a temporary file");
        command.stdin(std::process::Stdio::null()).stdout(clone()?).stderr(clone()?);
        let status = command.status().with_context(|| cannot_run(command))?;
        let stderr = read_from_start(said)?;
        text(command, &std::process::Output { status, stdout: Vec::new(), stderr })
    }

    /// A new temporary folder in which the cluster's user may write, for base backups and archives. It goes with a
    /// cluster of one's own.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn create_folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        self.owner.give(&dir)?;
        Ok(dir)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The watchdog stops a cluster of one's own and removes it.
        drop(self.watchdog.take());
    }
}

fn read_from_start(mut file: File) -> Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _};
    let mut said = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut said)).context("cannot read a temporary file")?;
    Ok(said)
}

/// What the caller's environment says about other servers is not meant for this one.
fn without_libpq_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
}
