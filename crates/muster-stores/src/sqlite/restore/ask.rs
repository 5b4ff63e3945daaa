//! Questions about what lives: what it lacks, and what a statement of the operator's gives.

use std::time::Instant;

use muster_engine::driver::{DriverError, ErrorClass, ReadQuery, StoreProbe};
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, ErrorCode};

use super::live::read_definition;
use super::shard::Shard;

/// Steps of SQLite's machine between two looks at the clock: a fraction of a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// What the live tables lack of those of `store`.
pub(super) fn lacks(shard: &Shard, store: &StoreProbe) -> Result<Vec<String>, DriverError> {
    let conn = shard.reader()?;
    let mut lacking = Vec::new();
    for table in store.tables.iter() {
        let name = &table.def.name;
        let Some(live) = read_definition(shard, &conn, name)? else {
            lacking.push(format!("`{name}`"));
            continue;
        };
        let there = |column: &str| live.columns.iter().any(|known| known.name == column);
        let gone = table.def.stored_columns().filter(|column| !there(&column.name));
        lacking.extend(gone.map(|column| format!("`{name}`.`{}`", column.name)));
    }
    Ok(lacking)
}

/// The first rows of a statement.
pub(super) fn query(shard: &Shard, query: &ReadQuery) -> Result<Vec<Vec<Option<String>>>, DriverError> {
    let mut conn = shard.reader()?;
    let deadline = Instant::now() + query.limit;
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => shard.permanent(
            format!("the statement was stopped after {} s", query.limit.as_secs()),
            "give it an index or a longer `timeout_seconds`",
        ),
        _ => shard.error("run the statement", &error),
    };
    conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() > deadline)).map_err(failed)?;
    conn.execute_batch("BEGIN").map_err(failed)?;
    one_statement(shard, &conn, &query.sql)?;
    let mut select = conn.prepare(&query.sql).map_err(failed)?;
    match select.parameter_count() {
        0 => {}
        1 => select.raw_bind_parameter(1, query.site.as_str()).map_err(failed)?,
        many => return Err(wrong(shard, &format!("it has {many} parameters"))),
    }
    let width = select.column_count();
    let mut rows = select.raw_query();
    let mut found = Vec::new();
    while found.len() < query.rows_max
        && let Some(row) = rows.next().map_err(failed)?
    {
        let fields = (0..width).map(|number| row.get_ref(number).map(text_of).map_err(failed));
        found.push(fields.collect::<Result<_, _>>()?);
    }
    Ok(found)
}

/// SQLite runs the first of several and is silent about the others.
fn one_statement(shard: &Shard, conn: &Connection, sql: &str) -> Result<(), DriverError> {
    let mut batch = Batch::new(conn, sql);
    let mut next =
        || batch.next().map(|found| found.is_some()).map_err(|error| shard.error("read it", &error));
    if next()? && next()? {
        return Err(wrong(shard, "it is more than one statement"));
    }
    Ok(())
}

fn wrong(shard: &Shard, what: &str) -> DriverError {
    let message = format!("shard `{}`: {what}", shard.name());
    DriverError::new(ErrorClass::Permanent, message, "write one statement, with `$1` for the site's id alone")
}

fn text_of(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}
