//! PostgreSQL's own point-in-time recovery: a cluster that archives its log, a base backup of it, and what comes out of
//! both at a place in the log.

use std::path::PathBuf;
use std::process::Command;

use muster_services::Postgres;
use muster_tests::{lsn, position, until};
use muster_types::{Position, Timestamp};

/// Small, so that a recovery takes a second; the log is kept for `pg_waldump`, too.
const SETTINGS: [(&str, &str); 6] = [
    ("archive_mode", "on"),
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("max_wal_size", "1GB"),
    ("shared_buffers", "32MB"),
    ("wal_keep_size", "4GB"),
];

/// Where a recovery stops.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Behind the record that begins here.
    Lsn(Position),
    /// Before the first commit with a later time.
    Time(Timestamp),
}

/// A cluster with an archive of its log.
pub(crate) struct Archived {
    pub(crate) cluster: Postgres,
    pub(crate) database: String,
    archive: PathBuf,
    backup: Option<PathBuf>,
    /// Where the base backup is whole: recoveries stop behind it.
    pub(crate) backed_up: Position,
}

impl Archived {
    /// A new cluster with an empty database.
    pub(crate) fn new() -> Self {
        let cluster = Postgres::own(&SETTINGS).unwrap();
        let archive = cluster.create_folder("archive").unwrap();
        let command = format!(
            "cp %p {archive}/%f.part && mv {archive}/%f.part {archive}/%f",
            archive = archive.display()
        );
        cluster.psql("postgres", &format!("ALTER SYSTEM SET archive_command = '{command}'")).unwrap();
        cluster.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        let database = cluster.create_database("judged").unwrap();
        Self { cluster, database, archive, backup: None, backed_up: Position(0) }
    }

    /// A connection string of its database.
    pub(crate) fn url(&self) -> String {
        self.cluster.url(&self.database)
    }

    /// Takes the base backup.
    pub(crate) fn back_up(&mut self) {
        // A folder that is not there yet, so that it is closed to others: a server insists on that.
        let backup = self.cluster.create_folder("backup").unwrap().join("data");
        let mut command = Command::new(self.cluster.bin("pg_basebackup"));
        command.args(["-h", "127.0.0.1", "-p", &self.cluster.port().to_string(), "-U", "muster"]);
        command.args(["-X", "none", "-c", "fast", "--no-sync", "-D"]).arg(&backup);
        self.cluster.run_as_owner(&mut command).unwrap();
        self.backed_up =
            position(&self.cluster.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap());
        self.backup = Some(backup);
    }

    /// Waits until the log up to now is in the archive.
    pub(crate) fn archive_everything(&self) {
        let last = self.cluster.psql("postgres", "SELECT pg_walfile_name(pg_switch_wal())").unwrap();
        let file = self.archive.join(last.trim());
        until("the archive", || file.is_file());
    }

    /// The base backup, recovered to a target; it takes no writes.
    pub(crate) fn recover(&self, target: Target) -> Postgres {
        let restore = format!("cp {}/%f %p", self.archive.display());
        let (name, value) = match target {
            Target::Lsn(position) => ("recovery_target_lsn", lsn(position)),
            Target::Time(at) => {
                ("recovery_target_time", at.to_string().replace('T', " ").replace('Z', "+00"))
            }
        };
        let settings = [
            ("archive_mode", "off"),
            ("restore_command", restore.as_str()),
            (name, value.as_str()),
            ("recovery_target_inclusive", "on"),
            ("recovery_target_action", "pause"),
        ];
        let backup = self.backup.as_deref().expect("a base backup was taken");
        let recovered = Postgres::own_with(&settings, |cluster| {
            cluster.run_as_owner(Command::new("cp").arg("-a").arg(backup).arg(cluster.data_dir()))?;
            let mut signal = Command::new("touch");
            cluster.run_as_owner(signal.arg(cluster.data_dir().join("recovery.signal")))?;
            Ok(())
        })
        .unwrap();
        until("the end of recovery", || {
            let state = recovered.psql("postgres", "SELECT pg_get_wal_replay_pause_state()");
            let state = state.unwrap_or_else(|error| {
                let log = std::fs::read_to_string(recovered.log()).unwrap_or_default();
                panic!("recovery to {target:?}: {error}\n{log}")
            });
            state.trim() == "paused"
        });
        recovered
    }
}
