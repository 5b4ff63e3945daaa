//! Transactions in PostgreSQL, and after them in the model.
//!
//! A server that crashes costs a writer its transaction and no more: it connects again, and of a COMMIT without an answer
//! it asks the server what became of it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Error;
use rusqlite::{Connection, TransactionBehavior};

use super::session::Session;
use crate::record::{Intent, Outcome, Shard, Statement, now_micros};

/// Runs one transaction; `build` may read the model, in which the site's rows are as they are in the server.
///
/// `turn` lets one transaction at a time write to the site. Transactions of other sites run meanwhile, up to their COMMITs.
pub(crate) fn commit(
    session: &mut Session,
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
    let rows = match session.begin(&statements) {
        Ok(rows) => rows,
        Err((error, _)) if is_constraint(&error) && !intent.deletion => {
            session.roll_back()?;
            return Ok(Outcome::RolledBack);
        }
        Err((error, _)) if Session::is_lost(&error) && !intent.deletion => {
            session.reconnect()?;
            return Ok(Outcome::Skipped);
        }
        Err((error, sql)) => return Err(error).with_context(|| format!("{}: {sql}", shard.name)),
    };
    if rows == 0 {
        // No log has it: a store right behind it is one right before it.
        session.roll_back()?;
        return Ok(Outcome::Skipped);
    }
    if intent.roll_back {
        session.roll_back()?;
        return Ok(Outcome::RolledBack);
    }
    // From here on in turns, so that the ledger's order is the log's.
    let mut ledger = shard.ledger();
    let waited = asked.elapsed();
    let commit_started = now_micros();
    let committed = session.commit().with_context(|| format!("{}: COMMIT", shard.name))?;
    if !committed {
        return Ok(Outcome::Skipped);
    }
    let commit_done = now_micros();
    ledger.waited_most = ledger.waited_most.max(waited);
    in_model(model, &statements).with_context(|| format!("{}: in the model", shard.name))?;
    ledger.push(intent, commit_started, commit_done, statements);
    Ok(Outcome::Committed)
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

fn is_constraint(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("23"))
}
