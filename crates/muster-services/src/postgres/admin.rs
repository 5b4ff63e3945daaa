//! Databases, roles and statements.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use super::settings::PASSWORD_GROUP;
use super::{Postgres, without_libpq_variables};
use crate::process::{cannot_run, text};

/// Comments on databases that end with the process which made them begin so; its number follows.
const MADE_BY: &str = "made by process ";

impl Postgres {
    /// URL of a database for the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{}@127.0.0.1:{}/{database}", Self::SUPERUSER, self.port)
    }

    /// URL of a database for a role of [`Self::create_role`].
    pub fn url_as(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgresql://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database with a name of its own that begins with `prefix`. In the shared cluster it is removed, with its
    /// slots, by someone who comes after this process has ended.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_database(&self, prefix: &str) -> Result<String> {
        let name = self.create_lasting_database(prefix)?;
        self.adopt_database(&name)?;
        Ok(name)
    }

    /// Has a database that this process made in its own way removed as one of [`Self::create_database`] is.
    ///
    /// # Errors
    /// What the server says.
    pub fn adopt_database(&self, name: &str) -> Result<()> {
        let comment = format!("COMMENT ON DATABASE {name} IS '{MADE_BY}{}'", std::process::id());
        self.psql("postgres", &comment)?;
        Ok(())
    }

    /// As [`Self::create_database`], but nobody removes it.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_lasting_database(&self, prefix: &str) -> Result<String> {
        let name = unique(prefix);
        // The template's lock is busy while others create theirs, too.
        self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        Ok(name)
    }

    /// Makes a role with a name of its own that logs in by password, with more attributes such as `REPLICATION`.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_role(&self, prefix: &str, password: &str, attributes: &str) -> Result<String> {
        let name = unique(prefix);
        let password = password.replace('\'', "''");
        let sql = format!(
            "SET standard_conforming_strings = on;
             DO $$ BEGIN CREATE ROLE {PASSWORD_GROUP};
             EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
             CREATE ROLE {name} LOGIN {attributes} PASSWORD '{password}' IN ROLE {PASSWORD_GROUP};"
        );
        self.psql("postgres", &sql)?;
        Ok(name)
    }

    /// Runs SQL as the superuser, one transaction a statement, up to the first error; what it printed, unaligned,
    /// tuples only.
    ///
    /// # Errors
    /// What the server says.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.bin("psql"));
        without_libpq_variables(&mut command);
        command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database)]);
        command.env("PGCONNECT_TIMEOUT", "10").env("PGOPTIONS", "-c client_min_messages=warning");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| cannot_run(&command))?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // A server that refuses the first statement may not read the others.
            scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(sql.as_bytes())));
            child.wait_with_output()
        })
        .with_context(|| cannot_run(&command))?;
        text(&command, &output).with_context(|| {
            let shown: String = sql.chars().take(200).collect();
            format!("SQL in database {database}: {shown}")
        })
    }

    /// Removes databases, with their slots, whose processes have ended.
    pub(super) fn sweep(&self) -> Result<()> {
        let sql = format!(
            "SELECT d.datname, substr(s.description, {}) FROM pg_database d
             JOIN pg_shdescription s ON s.objoid = d.oid AND s.classoid = 'pg_database'::regclass
             WHERE s.description LIKE '{MADE_BY}%'",
            MADE_BY.len() + 1
        );
        for line in self.psql("postgres", &sql)?.lines() {
            let Some((name, process)) = line.split_once('|') else { continue };
            if process.parse().is_ok_and(is_alive) {
                continue;
            }
            let sql = format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}' AND active;
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}';
                 DROP DATABASE IF EXISTS {name} WITH (FORCE);"
            );
            // A slot that is just let go can be dropped by whoever comes next.
            let _ = self.psql("postgres", &sql);
        }
        Ok(())
    }
}

fn is_alive(process: u32) -> bool {
    Command::new("kill")
        .args(["-0", &process.to_string()])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A name that nobody else has: a prefix of letters, the time, the process, a number.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{prefix}_{:x}_{:x}_{count}", seconds & 0xff_ffff, std::process::id())
}
