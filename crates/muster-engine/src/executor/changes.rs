//! A shard's changes between two positions, from its own log and, where capture has moved them away, from the
//! repository's.

use muster_repo::log::{LogFilter, LogRange};
use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::{Position, ShardName};

use super::context::{Context, StepError};
use crate::driver::{ErrorClass, LoggedChange};

/// Positions asked for at once: what one answer holds in memory, at some hundred bytes a change.
const WINDOW_POSITIONS: u64 = 16_384;

/// Hands every change with a position in `(after, upto]` to `visit`, by ascending position, in groups. The filter
/// spares reading: others may come too.
pub(super) async fn visit(
    context: &Context,
    shard: &ShardName,
    (after, upto): (Position, Position),
    filter: LogFilter<'_>,
    mut visit: impl FnMut(&[LoggedChange]) -> Result<(), StepError>,
) -> Result<(), StepError> {
    let mut from = after;
    while from < upto {
        let to = Position(from.0.saturating_add(WINDOW_POSITIONS).min(upto.0));
        visit(&window(context, shard, (from, to), filter).await?)?;
        from = to;
    }
    Ok(())
}

async fn window(
    context: &Context,
    shard: &ShardName,
    (after, upto): (Position, Position),
    filter: LogFilter<'_>,
) -> Result<Vec<LoggedChange>, StepError> {
    // The shard first: what it no longer has was made durable in the repository before it was removed.
    let (complete_from, logged) = context.driver(shard)?.logged_changes(after, upto).await?;
    let moved_upto = Position(complete_from.0.saturating_sub(1).min(upto.0));
    if moved_upto <= after {
        return Ok(logged);
    }
    let captured = context.rows.log(shard).changes(after, moved_upto, filter).await?;
    let Some(LogRange { changes, table_events }) = captured else {
        return Err(missing(context, shard, after, moved_upto));
    };
    if filter == LogFilter::All
        && let Some(event) = table_events.iter().find(|event| event.event != TableEventKind::Undeclared)
    {
        return Err(whole_table(shard, event));
    }
    let behind = logged.into_iter().filter(|logged| logged.change.stamp.key.position > moved_upto);
    Ok(changes.into_iter().map(super::rows::logged).chain(behind).collect())
}

fn missing(context: &Context, shard: &ShardName, after: Position, upto: Position) -> StepError {
    StepError {
        class: ErrorClass::Transient,
        message: format!(
            "changes {} to {upto} of shard `{shard}` are neither in its own log nor in the repository; run \
             `muster capture --once`, then `muster resume {}`",
            after.0 + 1,
            context.run,
        ),
    }
}

fn whole_table(shard: &ShardName, event: &TableEvent) -> StepError {
    StepError::permanent(format!(
        "table `{}` of shard `{shard}` changed as a whole meanwhile ({}), so that the log does not hold its changes; \
         compare it by hand with `muster diff`",
        event.table, event.reason,
    ))
}
