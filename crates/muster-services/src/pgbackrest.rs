//! pgBackRest over a cluster of one's own: what most PostgreSQL shards are backed up with.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::postgres::Postgres;
use crate::process::{on_path, output, wait_until};

const PROGRAM: &str = "pgbackrest";

/// Its name for the cluster.
const STANZA: &str = "shard";

/// A busy machine takes its time to copy a segment.
const ARCHIVE_SECONDS_MAX: u64 = 120;

/// Replaying hours of log takes minutes.
const REPLAY_SECONDS_MAX: u64 = 600;

/// A cluster of one's own with its base backup and all its log in a pgBackRest repository on the same disk.
///
/// The repository is compressed with lz4, the quickest to restore, and read by as many processes as there are
/// processors. It goes with the cluster.
#[derive(Debug)]
pub struct PgBackRest {
    cluster: Postgres,
    program: PathBuf,
    config: PathBuf,
}

/// What a cluster was at a moment, restored beside it. It goes with this value.
#[derive(Debug)]
pub struct SideInstance {
    /// Takes reads only: its recovery stands at the target.
    pub cluster: Postgres,
    /// How long the files took.
    pub files: Duration,
    /// How long start and replay took.
    pub recovery: Duration,
}

impl PgBackRest {
    /// Whether it can be used.
    pub fn is_installed() -> bool {
        on_path(PROGRAM).is_some()
    }

    /// A new cluster as [`Postgres::own`] makes it, whose log is archived from now on. It has no backup yet.
    ///
    /// # Errors
    /// pgBackRest is missing; as [`Postgres::own`]; what pgBackRest says.
    pub fn own(settings: &[(&str, &str)]) -> Result<Self> {
        let program = on_path(PROGRAM)
            .context("pgBackRest is missing: install it (Debian: apt-get install pgbackrest)")?;
        let cluster = Postgres::own(&[&[("archive_mode", "on")], settings].concat())?;
        for name in ["pgbackrest", "pgbackrest/repository", "pgbackrest/log", "pgbackrest/lock"] {
            cluster.create_folder(name)?;
        }
        let config = cluster.dir().join("pgbackrest/pgbackrest.conf");
        let kept = Self { cluster, program, config };
        kept.configure()?;
        kept.run(&["stanza-create"])?;
        let push = format!(
            "{} --config={} --stanza={STANZA} archive-push %p",
            kept.program.display(),
            kept.config.display()
        );
        let sql = format!("ALTER SYSTEM SET archive_command = '{push}'; SELECT pg_reload_conf()");
        kept.cluster.psql("postgres", &sql)?;
        Ok(kept)
    }

    fn configure(&self) -> Result<()> {
        let (dir, folder) = (self.cluster.dir().display(), self.cluster.dir().join("pgbackrest"));
        let folder = folder.display();
        let text = format!(
            "[global]\nrepo1-path={folder}/repository\nlog-path={folder}/log\nlock-path={folder}/lock\n\
             log-level-file=off\nlog-level-console=warn\nlog-level-stderr=warn\nprocess-max={}\nstart-fast=y\n\
             compress-type=lz4\n\n[{STANZA}]\npg1-path={}\npg1-port={}\npg1-socket-path={dir}\npg1-user={}\n\
             pg1-database=postgres\n",
            std::thread::available_parallelism().map_or(2, usize::from),
            self.cluster.data_dir().display(),
            self.cluster.port(),
            Postgres::SUPERUSER,
        );
        self.cluster.write_private(&self.config, text.as_bytes())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("--config={}", self.config.display())).arg(format!("--stanza={STANZA}"));
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.run_as_owner(&mut self.command(arguments))
    }

    /// The cluster.
    pub fn cluster(&self) -> &Postgres {
        &self.cluster
    }

    /// What `pgbackrest version` prints.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn version(&self) -> Result<String> {
        Ok(output(Command::new(&self.program).arg("version"))?.trim().to_owned())
    }

    /// Takes a full backup. Every later moment can be restored: pgBackRest looks for a backup by whole seconds, so the one
    /// in which it ended is over when this returns.
    ///
    /// # Errors
    /// What pgBackRest says.
    pub fn back_up(&self) -> Result<()> {
        self.run(&["--type=full", "backup"])?;
        let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let ended = second();
        wait_until("the next second", 10, || Ok(second() > ended))
    }

    /// Waits until the log up to now is in the repository.
    ///
    /// # Errors
    /// The archive does not get there; what the server says.
    pub fn archive_everything(&self) -> Result<()> {
        let last = self.cluster.psql("postgres", "SELECT pg_walfile_name(pg_switch_wal())")?;
        let sql =
            format!("SELECT coalesce(last_archived_wal >= '{}', false) FROM pg_stat_archiver", last.trim());
        wait_until("the archive", ARCHIVE_SECONDS_MAX, || {
            Ok(self.cluster.psql("postgres", &sql)?.trim() == "t")
        })
    }

    /// Restores the cluster as it was at a moment, such as `2026-02-28 12:00:00.5+00`, to a folder of its own.
    ///
    /// # Errors
    /// What pgBackRest says; recovery does not get there, for want of log behind the moment for example.
    pub fn restore(&self, at: &str) -> Result<SideInstance> {
        let mut files = Duration::ZERO;
        let began = Instant::now();
        let cluster = Postgres::own_with(&[("archive_mode", "off")], |side| {
            let began = Instant::now();
            let data = side.data_dir();
            side.run_as_owner(Command::new("mkdir").args(["-m", "700"]).arg(&data))?;
            let path = format!("--pg1-path={}", data.display());
            let target = format!("--target={at}");
            self.run(&[&path, "--type=time", &target, "--target-action=pause", "restore"])?;
            files = began.elapsed();
            Ok(())
        })?;
        wait_until("the end of recovery", REPLAY_SECONDS_MAX, || {
            let state = cluster.psql("postgres", "SELECT pg_get_wal_replay_pause_state()");
            let state = state.with_context(|| {
                let log = std::fs::read_to_string(cluster.log()).unwrap_or_default();
                format!("recovery to {at} failed:\n{log}")
            })?;
            Ok(state.trim() == "paused")
        })?;
        Ok(SideInstance { cluster, files, recovery: began.elapsed().saturating_sub(files) })
    }
}
