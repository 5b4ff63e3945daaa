//! A shard's changes between two positions, from its own log and, where capture has moved them away, from the
//! repository's.
//!
//! # Invariants
//! - Every change of the range is handed over once.
//! - Memory: what one answer of the driver holds, or one chunk of the repository's log.
//!
//! # Errors
//! Changes that are in neither log when the wait for capture is over.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_repo::log::{LogFilter, Stretch};
use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::table::{CapturedTable, Owner};
use muster_types::{Position, ShardName};
use tokio::time::Instant;

use super::context::{Context, StepError};
use crate::driver::{ErrorClass, LoggedChange};

/// Positions asked of a driver at once: what one answer holds in memory, at some hundred bytes a change. Only a shard
/// that keeps a log of its own is asked so, and there each change has a position.
const WINDOW_POSITIONS: u64 = 16_384;

/// Between two looks at what is known of the log, which costs next to nothing; when the repository is looked at is
/// decided for all that wait together.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands every change with a position in `(after, upto]` to `visit`, in groups, each change once. Changes of one frame
/// of the log come in order, frames of one segment one after the other. The filter spares reading: others may come
/// too. Returns the tables that were read again whole in the range: the log may lack changes of these.
pub(super) async fn visit(
    context: &Context,
    shard: &ShardName,
    (after, upto): (Position, Position),
    filter: LogFilter<'_>,
    mut visit: impl FnMut(&[LoggedChange]) -> Result<(), StepError>,
) -> Result<BTreeSet<String>, StepError> {
    let mut reread = BTreeSet::new();
    if after >= upto {
        return Ok(reread);
    }
    let driver = context.driver(shard)?;
    // The shard first: what it no longer has was made durable in the repository before it was removed. Its last place
    // tells where its log begins, or that it keeps none.
    let (mut complete_from, _) = driver.logged_changes(Position(upto.0 - 1), upto).await?;
    let mut from = after;
    loop {
        let moved_upto = Position(complete_from.0.saturating_sub(1).min(upto.0));
        if moved_upto > from {
            reread.extend(captured(context, shard, (from, moved_upto), filter, &mut visit).await?);
            from = moved_upto;
        }
        if from >= upto {
            return Ok(reread);
        }
        let to = Position(from.0.saturating_add(WINDOW_POSITIONS).min(upto.0));
        let logged;
        (complete_from, logged) = driver.logged_changes(from, to).await?;
        // Otherwise capture took some of them meanwhile, and the repository has them.
        if complete_from.0 <= from.0 + 1 {
            visit(&logged)?;
            from = to;
        }
    }
}

/// The same for what the shard no longer has.
async fn captured(
    context: &Context,
    shard: &ShardName,
    (after, upto): (Position, Position),
    filter: LogFilter<'_>,
    visit: &mut impl FnMut(&[LoggedChange]) -> Result<(), StepError>,
) -> Result<BTreeSet<String>, StepError> {
    let log = context.rows.log(shard);
    let deadline = Instant::now() + context.options.capture_wait;
    let mut stretch = loop {
        if let Some(stretch) = log.stretch(after, upto, filter).await? {
            break stretch;
        }
        if Instant::now() >= deadline {
            return Err(missing(context, shard, after, upto));
        }
        tokio::select! {
            biased;
            () = context.cancel.cancelled() => return Err(stopped(shard, upto)),
            () = tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)) => {}
        }
    };
    while let Some(changes) = stretch.next().await? {
        let changes: Vec<LoggedChange> = changes.into_iter().map(super::rows::logged).collect();
        visit(&changes)?;
    }
    whole_tables(context, shard, filter, &stretch)?;
    let reread = stretch.table_events().iter().filter(|event| event.event == TableEventKind::Reread);
    Ok(reread.map(|event| event.table.clone()).collect())
}

/// Where all changes count, none may have gone with a whole table; but tables of the run's sites alone hold no rows of
/// neighbours.
fn whole_tables(
    context: &Context,
    shard: &ShardName,
    filter: LogFilter<'_>,
    stretch: &Stretch<'_>,
) -> Result<(), StepError> {
    let own = |name: &str| {
        let of_site = |table: &&CapturedTable| matches!(table.owner, Owner::Site { .. });
        context.plan.tables.iter().filter(of_site).any(|table| table.def.name == name)
    };
    let counts = |event: &&TableEvent| event.event != TableEventKind::Undeclared && !own(&event.table);
    let event = stretch.table_events().iter().find(counts);
    match event.filter(|_| filter == LogFilter::All) {
        Some(event) => Err(whole_table(shard, event)),
        None => Ok(()),
    }
}

fn missing(context: &Context, shard: &ShardName, after: Position, upto: Position) -> StepError {
    StepError {
        class: ErrorClass::Transient,
        message: format!(
            "changes {} to {upto} of shard `{shard}` are neither in its own log nor in the repository after {} s; run \
             `muster capture --once`, then `muster resume {}`",
            after.0 + 1,
            context.options.capture_wait.as_secs(),
            context.run,
        ),
    }
}

fn stopped(shard: &ShardName, upto: Position) -> StepError {
    StepError {
        class: ErrorClass::Transient,
        message: format!("stopped while waiting for capture to bring shard `{shard}` to position {upto}"),
    }
}

fn whole_table(shard: &ShardName, event: &TableEvent) -> StepError {
    StepError::permanent(format!(
        "table `{}` of shard `{shard}` changed as a whole meanwhile ({}), so that the log does not hold its changes; \
         compare it by hand with `muster diff`",
        event.table, event.reason,
    ))
}
