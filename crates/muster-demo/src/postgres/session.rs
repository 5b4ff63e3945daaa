//! A writer's session with the server, which may crash.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Error};

use super::server::Database;
use super::translate::translated;
use super::value::Parameter;
use crate::record::{Statement, now_micros};

/// How long a server may take to come back: crash recovery of a few hundred MB of log, on a busy machine.
const BACK_SECONDS_MAX: u64 = 120;

/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Session {
    database: Database,
    client: Client,
    prepared: HashMap<&'static str, (postgres::Statement, Vec<usize>)>,
}

impl Session {
    pub(crate) fn new(database: &Database) -> Result<Self> {
        Ok(Self { database: database.clone(), client: database.connect()?, prepared: HashMap::new() })
    }

    /// Begins a transaction and runs `statements`: rows changed, or the error with the statement that met it.
    pub(super) fn begin(&mut self, statements: &[Statement]) -> Result<u64, (Error, &'static str)> {
        self.client.batch_execute("BEGIN").map_err(|error| (error, "BEGIN"))?;
        let mut rows = 0;
        for statement in statements {
            rows += self.run(statement).map_err(|error| (error, statement.sql))?;
        }
        Ok(rows)
    }

    /// Rows changed.
    fn run(&mut self, statement: &Statement) -> Result<u64, Error> {
        let mut rows = 0;
        for sql in statement.in_postgres() {
            if !self.prepared.contains_key(sql) {
                let (text, places) = translated(sql);
                self.prepared.insert(sql, (self.client.prepare(&text)?, places));
            }
            let Some((handle, places)) = self.prepared.get(sql) else { continue };
            let values: Vec<Parameter<'_>> =
                places.iter().map(|place| Parameter(&statement.values[*place])).collect();
            let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
            rows += self.client.execute(handle, &values)?;
        }
        Ok(rows)
    }

    /// Ends the transaction without effect; a lost session has ended it already.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        match self.client.batch_execute("ROLLBACK") {
            Err(error) if Self::is_lost(&error) => self.reconnect(),
            result => Ok(result?),
        }
    }

    /// Commits; whether it did, also where the server crashed before it could say so.
    pub(super) fn commit(&mut self) -> Result<bool> {
        let number = self.client.query_one("SELECT pg_current_xact_id()::text", &[]);
        let number: String = match number {
            Err(error) if Self::is_lost(&error) => return self.reconnect().map(|()| false),
            row => row?.get(0),
        };
        match self.client.batch_execute("COMMIT") {
            Err(error) if Self::is_lost(&error) => {
                let lost_at = now_micros();
                self.reconnect()?;
                self.was_committed(&number, lost_at)
            }
            result => Ok(result.map(|()| true)?),
        }
    }

    /// A number that was given and not yet durable in a crash is given again: whose commit came after the loss of this
    /// session is another's.
    fn was_committed(&mut self, number: &str, lost_at: i64) -> Result<bool> {
        let sql = "SELECT pg_xact_status(x), (extract(epoch FROM pg_xact_commit_timestamp(x::xid)) * 1000000)::bigint \
            FROM (SELECT $1::text::xid8 AS x) s";
        let deadline = Instant::now() + Duration::from_secs(BACK_SECONDS_MAX);
        loop {
            let row = match self.client.query_one(sql, &[&number]) {
                // It is given to nobody yet.
                Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => return Ok(false),
                row => row?,
            };
            let (status, at): (Option<String>, Option<i64>) = (row.get(0), row.get(1));
            match status.as_deref() {
                Some("committed") => {
                    let at =
                        at.context("track_commit_timestamp is off: whose commit it was cannot be told")?;
                    return Ok(at <= lost_at);
                }
                // Of a server that went on without us: its end of the session is still open.
                Some("in progress") if Instant::now() < deadline => std::thread::sleep(RETRY),
                Some("aborted") => return Ok(false),
                other => anyhow::bail!("what became of transaction {number} cannot be told: {other:?}"),
            }
        }
    }

    /// Waits for the server and connects again.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(BACK_SECONDS_MAX);
        self.prepared.clear();
        self.client = loop {
            match self.database.connect() {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("the server did not come back");
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        };
        Ok(())
    }

    /// The session is gone, and not what was asked of it.
    pub(super) fn is_lost(error: &Error) -> bool {
        let io = || std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>());
        // Shutdowns and crashes of the server have codes of one class.
        error.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P")) || io()
    }
}
