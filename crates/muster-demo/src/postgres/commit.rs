//! Transactions in PostgreSQL, and after them in the model.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use postgres::types::ToSql;
use postgres::{Client, Transaction};
use rusqlite::{Connection, TransactionBehavior};

use super::translate::translated;
use super::value::Parameter;
use crate::record::{Intent, Outcome, Shard, Statement, now_micros};

/// A session with the server and what is prepared in it.
pub(crate) struct Server {
    client: Client,
    prepared: HashMap<&'static str, (postgres::Statement, Vec<usize>)>,
}

impl Server {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, prepared: HashMap::new() }
    }

    /// Runs one transaction; `build` may read the model, in which the site's rows are as they are in the server.
    ///
    /// `turn` lets one transaction at a time write to the site. Transactions of other sites run meanwhile, up to their COMMITs.
    pub(crate) fn commit(
        &mut self,
        shard: &Shard,
        model: &mut Connection,
        turn: &Mutex<()>,
        intent: Intent,
        is_gone: impl Fn() -> bool,
        build: impl FnOnce(&Connection) -> Result<Vec<Statement>>,
    ) -> Result<Outcome> {
        // Nothing but the order is guarded: a panicking writer leaves nothing half done.
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !intent.deletion && is_gone() {
            return Ok(Outcome::Skipped);
        }
        let statements = build(model)?;
        if statements.is_empty() {
            return Ok(Outcome::Skipped);
        }
        let asked = Instant::now();
        let mut transaction = self.client.transaction()?;
        let mut rows = 0;
        for statement in &statements {
            match run(&mut transaction, &mut self.prepared, statement) {
                Ok(changed) => rows += changed,
                Err(error) if is_constraint(&error) && !intent.deletion => {
                    transaction.rollback()?;
                    return Ok(Outcome::RolledBack);
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("{}: {}", shard.name, statement.sql));
                }
            }
        }
        if intent.deletion && rows == 0 {
            transaction.rollback()?;
            return Ok(Outcome::Skipped);
        }
        if intent.roll_back {
            transaction.rollback()?;
            return Ok(Outcome::RolledBack);
        }
        // From here on in turns, so that the ledger's order is the log's.
        let mut ledger = shard.ledger();
        let waited = asked.elapsed();
        let commit_started = now_micros();
        transaction.commit().with_context(|| format!("{}: COMMIT", shard.name))?;
        let commit_done = now_micros();
        ledger.waited_most = ledger.waited_most.max(waited);
        in_model(model, &statements).with_context(|| format!("{}: in the model", shard.name))?;
        ledger.push(intent, commit_started, commit_done, statements);
        Ok(Outcome::Committed)
    }
}

/// What the server has committed cannot fail in the model, or the dialects do not say the same.
fn in_model(model: &mut Connection, statements: &[Statement]) -> Result<()> {
    let transaction = model.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for statement in statements {
        statement.run(&transaction).with_context(|| statement.sql)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Rows changed.
fn run(
    transaction: &mut Transaction<'_>,
    prepared: &mut HashMap<&'static str, (postgres::Statement, Vec<usize>)>,
    statement: &Statement,
) -> Result<u64, postgres::Error> {
    let mut rows = 0;
    for sql in statement.in_postgres() {
        if !prepared.contains_key(sql) {
            let (text, places) = translated(sql);
            prepared.insert(sql, (transaction.prepare(&text)?, places));
        }
        let Some((handle, places)) = prepared.get(sql) else { continue };
        let values: Vec<Parameter<'_>> =
            places.iter().map(|place| Parameter(&statement.values[*place])).collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        rows += transaction.execute(handle, &values)?;
    }
    Ok(rows)
}

fn is_constraint(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("23"))
}
