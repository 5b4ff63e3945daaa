//! The shard's own log, as far as capture has left it there.

use std::collections::HashMap;
use std::sync::Arc;

use muster_engine::driver::{DriverError, LoggedChange};
use muster_types::Position;
use rusqlite::{Connection, OptionalExtension};

use super::live::schema_version;
use super::proof::require_capture;
use super::shard::Shard;
use crate::sqlite::capture::changes::{Order, Reading, read};
use crate::sqlite::capture::layout;

/// Changes in `(after, upto]` that are still there, and the first position from which on all are.
pub(super) fn logged_changes(
    shard: &Shard,
    after: Position,
    upto: Position,
) -> Result<(Position, Vec<LoggedChange>), DriverError> {
    let mut reader = shard.log_reader()?;
    let failed = |error: rusqlite::Error| shard.error("read its change table", &error);
    reader.conn.execute_batch("BEGIN").map_err(failed)?;
    require_capture(shard, &reader.conn)?;
    // What was acknowledged is being removed in batches and may be there in part.
    let acknowledged = acknowledged(&reader.conn).map_err(failed)?;
    let version = schema_version(&reader.conn).map_err(failed)?;
    let known = match reader.layout.take() {
        Some((at, known)) if at == version => known,
        _ => layout(&reader.conn, shard.tables()).map_err(failed)?,
    };
    let reading = Reading {
        after: after.max(acknowledged),
        upto: Position(upto.0.min(i64::MAX.cast_unsigned())),
        left_out: &[],
        order: Order::History,
    };
    let mut changes = Vec::new();
    let mut columns: HashMap<&str, Arc<[String]>> = HashMap::new();
    read(&reader.conn, &known, &reading, |found| -> rusqlite::Result<()> {
        let table = found.table.name();
        let stored = || found.table.table.def.stored_columns().map(|column| column.name.clone()).collect();
        changes.push(LoggedChange {
            table: table.to_owned(),
            columns: Arc::clone(columns.entry(table).or_insert_with(stored)),
            site: found.site,
            mark: found.mark,
            change: found.change,
        });
        Ok(())
    })
    .map_err(failed)?;
    drop(columns);
    reader.layout = Some((version, known));
    shard.keep_log_reader(reader);
    Ok((Position(acknowledged.0 + 1), changes))
}

fn acknowledged(conn: &Connection) -> rusqlite::Result<Position> {
    let found: Option<i64> =
        conn.query_row("SELECT acknowledged FROM main._muster_state", [], |row| row.get(0)).optional()?;
    Ok(Position(found.unwrap_or(0).cast_unsigned()))
}
