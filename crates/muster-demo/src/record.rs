//! Every write of the demo goes through here, so that the oracle knows all committed states.
//!
//! A transaction is a list of statements with their values. It is run on the live shard; when its COMMIT has
//! returned, the list goes into the shard's ledger with the times right before and right after the COMMIT. Writers of one
//! shard take turns (SQLite has one writer anyway), so the ledger has the shard's order of commits. The first rows
//! (a copy of the file) and the ledger together are every committed state; nothing is read back from the live shard.
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
    pub(crate) values: Vec<Value>,
}

impl Statement {
    /// Runs it.
    pub(crate) fn run(&self, connection: &Connection) -> rusqlite::Result<usize> {
        connection.prepare_cached(self.sql)?.execute(params_from_iter(&self.values))
    }
}

/// `statement!(SQL; values…)`.
macro_rules! statement {
    ($sql:expr $(; $($value:expr),*)?) => {
        $crate::record::Statement { sql: $sql, values: vec![$($(rusqlite::types::Value::from($value)),*)?] }
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
    /// Nothing to do, or the site is gone.
    Skipped,
}

/// One SQLite file shared by all sites of a region.
#[derive(Debug)]
pub struct Shard {
    /// Name in the topology.
    pub name: String,
    /// Index into [`crate::site::REGIONS`].
    pub region: usize,
    /// What it is for.
    pub role: Role,
    /// The live file.
    pub path: PathBuf,
    /// Its copy with the first rows.
    pub first: PathBuf,
    /// Rows at first.
    pub rows: u64,
    pub(crate) ledger: Mutex<Ledger>,
}

/// Committed transactions in their order.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) entries: Vec<Entry>,
    /// The longest that a writer waited for the shard's write lock.
    pub(crate) waited_most: Duration,
}

impl Shard {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panicking writer has pushed its entry or not; the ledger itself is whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection as an application has it.
    pub(crate) fn connect(&self) -> Result<Connection> {
        let connection =
            Connection::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(128);
        connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL;")?;
        Ok(connection)
    }

    /// Runs one transaction; `build` may read the shard as the transaction sees it.
    pub(crate) fn commit(
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
        for statement in &statements {
            match statement.run(&transaction) {
                Ok(_) => {}
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
        if intent.roll_back {
            transaction.rollback()?;
            return Ok(Outcome::RolledBack);
        }
        let commit_started = now_micros();
        transaction.commit()?;
        let commit_done = now_micros();
        let number = ledger.entries.len() as u64 + 1;
        let Intent { site, kind, deletion, .. } = intent;
        ledger.entries.push(Entry { number, site, kind, deletion, commit_started, commit_done, statements });
        Ok(Outcome::Committed)
    }
}
