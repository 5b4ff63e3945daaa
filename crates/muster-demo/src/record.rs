//! Every write of the demo goes through here, so that the oracle knows all committed states.
//!
//! A transaction is a list of statements with their values. It is run on the live shard; when its COMMIT has
//! returned, the list goes into the shard's ledger with the times right before and right after the COMMIT. Writers of one
//! shard take turns (SQLite has one writer anyway; in PostgreSQL they do for the COMMIT only), so the ledger has the
//! shard's order of commits. The first rows (a copy of the file) and the ledger together are every committed state;
//! nothing is read back from the live shard.
//!
//! # Invariants
//! - A statement touches rows of one site and one kind, or of a reference table: histories of stores are independent.
//! - A statement's effect depends on its values and those rows alone: no clock, no random value, no implicit id.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params_from_iter};

use crate::kind::{Kind, Role};
use crate::postgres::{self, Database};

/// How long a writer waits for its turn: far above any publish, so that a demo never fails by waiting.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Microseconds since the Unix epoch.
pub(crate) fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// One statement and its values.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) sql: &'static str,
    /// The same for PostgreSQL, where that takes other words; the values are the same.
    pub(crate) postgres: &'static [&'static str],
    pub(crate) values: Vec<Value>,
}

impl Statement {
    /// Runs it.
    pub(crate) fn run(&self, connection: &Connection) -> rusqlite::Result<usize> {
        connection.prepare_cached(self.sql)?.execute(params_from_iter(&self.values))
    }

    /// What to run in PostgreSQL, with `?1` for values.
    pub(crate) fn in_postgres(&self) -> &[&'static str] {
        if self.postgres.is_empty() { std::slice::from_ref(&self.sql) } else { self.postgres }
    }
}

/// `statement!(SQL; values…)`, or `statement!(SQL, postgres: [SQL…]; values…)` where the dialects differ.
macro_rules! statement {
    ($sql:expr $(, postgres: [$($postgres:expr),*])? $(; $($value:expr),*)?) => {
        $crate::record::Statement {
            sql: $sql,
            postgres: &[$($($postgres),*)?],
            values: vec![$($(rusqlite::types::Value::from($value)),*)?],
        }
    };
}
pub(crate) use statement;

/// What a transaction is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    /// Index of the site; none for reference tables.
    pub(crate) site: Option<usize>,
    /// The kind whose rows are written.
    pub(crate) kind: Kind,
    /// Part of the deletion of the site.
    pub(crate) deletion: bool,
    /// Rolled back in the end, as applications do.
    pub(crate) roll_back: bool,
}

/// A committed transaction.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Place in the shard's order of commits, from 1.
    pub(crate) number: u64,
    pub(crate) site: Option<usize>,
    pub(crate) kind: Kind,
    pub(crate) deletion: bool,
    /// Right before COMMIT.
    pub(crate) commit_started: i64,
    /// Right after it returned.
    pub(crate) commit_done: i64,
    pub(crate) statements: Vec<Statement>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Committed and in the ledger.
    Committed,
    /// Rolled back, by intent or because of a constraint.
    RolledBack,
    /// Nothing to do, no row changed by it, or the site is gone.
    Skipped,
}

/// One database shared by all sites of a region.
#[derive(Debug)]
pub struct Shard {
    /// Name in the topology; in PostgreSQL that of its database.
    pub name: String,
    /// Index into [`crate::site::REGIONS`].
    pub region: usize,
    /// What it is for.
    pub role: Role,
    /// The live SQLite file; of a shard in PostgreSQL, what the application has committed.
    pub path: PathBuf,
    /// Its copy with the first rows.
    pub first: PathBuf,
    /// Where the live rows are if that is PostgreSQL.
    pub database: Option<Database>,
    /// Rows at first.
    pub rows: u64,
    pub(crate) ledger: Mutex<Ledger>,
}

/// Committed transactions in their order.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) entries: Vec<Entry>,
    /// The longest that a writer waited for the shard's write lock; in PostgreSQL, from its first statement to its
    /// COMMIT.
    pub(crate) waited_most: Duration,
}

impl Ledger {
    /// Adds a transaction that has just been committed.
    pub(crate) fn push(&mut self, intent: Intent, started: i64, done: i64, statements: Vec<Statement>) {
        let Intent { site, kind, deletion, .. } = intent;
        self.entries.push(Entry {
            number: self.entries.len() as u64 + 1,
            site,
            kind,
            deletion,
            commit_started: started,
            commit_done: done,
            statements,
        });
    }
}

/// An application's connections to one shard.
pub(crate) struct Session {
    /// To [`Shard::path`].
    file: Connection,
    server: Option<postgres::Session>,
}

impl Shard {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panicking writer has pushed its entry or not; the ledger itself is whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session as an application has it.
    pub(crate) fn connect(&self) -> Result<Session> {
        let file =
            Connection::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        file.busy_timeout(BUSY_TIMEOUT)?;
        file.set_prepared_statement_cache_capacity(128);
        file.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL;")?;
        let server = self.database.as_ref().map(postgres::Session::new).transpose()?;
        Ok(Session { file, server })
    }

    /// Runs one transaction; `build` may read the shard as the transaction sees it. `turn` is the site's.
    pub(crate) fn commit(
        &self,
        session: &mut Session,
        turn: &Mutex<()>,
        intent: Intent,
        is_gone: impl Fn() -> bool,
        build: impl FnOnce(&Connection) -> Result<Vec<Statement>>,
    ) -> Result<Outcome> {
        let Session { file, server } = session;
        match server {
            Some(server) => postgres::commit(server, self, file, turn, intent, is_gone, build),
            None => self.commit_to_file(file, intent, is_gone, build),
        }
    }

    fn commit_to_file(
        &self,
        connection: &mut Connection,
        intent: Intent,
        is_gone: impl Fn() -> bool,
        build: impl FnOnce(&Connection) -> Result<Vec<Statement>>,
    ) -> Result<Outcome> {
        let mut ledger = self.ledger();
        if !intent.deletion && is_gone() {
            return Ok(Outcome::Skipped);
        }
        let asked = Instant::now();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        ledger.waited_most = ledger.waited_most.max(asked.elapsed());
        let statements = build(&transaction)?;
        if statements.is_empty() {
            return Ok(Outcome::Skipped);
        }
        let mut rows = 0;
        for statement in &statements {
            match statement.run(&transaction) {
                Ok(changed) => rows += changed,
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    if intent.deletion {
                        bail!("the deletion met a constraint in {}: {error}: {}", self.name, statement.sql);
                    }
                    transaction.rollback()?;
                    return Ok(Outcome::RolledBack);
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("{}: {}", self.name, statement.sql));
                }
            }
        }
        if rows == 0 {
            // No log has it: a store right behind it is one right before it.
            return Ok(Outcome::Skipped);
        }
        if intent.roll_back {
            transaction.rollback()?;
            return Ok(Outcome::RolledBack);
        }
        let commit_started = now_micros();
        transaction.commit()?;
        ledger.push(intent, commit_started, now_micros(), statements);
        Ok(Outcome::Committed)
    }
}
