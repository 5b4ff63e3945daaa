//! The live rows of a store, for those who look before they restore.

use muster_engine::driver::{DriverError, RowBatch, StoreProbe};
use muster_rows::RowBuilder;
use muster_types::table::{CapturedTable, TableDef};
use rusqlite::Connection;
use tokio::sync::mpsc::Sender;

use super::live::read_definition;
use super::shard::Shard;
use super::sql::rows_of_site;
use crate::sqlite::schema::quote;
use crate::sqlite::value::read_row;

/// Rows of one batch: small enough that a few of them wait in little memory, large enough to be worth a wake-up.
const BATCH_ROWS: usize = 512;

/// Sends every live row of the store, in one read transaction; ends early when nobody listens.
pub(super) fn live_rows(
    shard: &Shard,
    store: &StoreProbe,
    rows: &Sender<RowBatch>,
) -> Result<(), DriverError> {
    let conn = shard.reader()?;
    let failed =
        |error: rusqlite::Error| shard.error(&format!("read the live rows of {}", store.store), &error);
    conn.execute_batch("BEGIN").map_err(failed)?;
    for (number, table) in store.tables.iter().enumerate() {
        let Some(live) = read_definition(shard, &conn, &table.def.name)? else { continue };
        let Some(sql) = select(table, &live) else { continue };
        send(&conn, &sql, store.store.site.as_str(), number, rows).map_err(failed)?;
    }
    Ok(())
}

/// The rows of a site in the columns of `then`; none for reference tables.
fn select(then: &CapturedTable, live: &TableDef) -> Option<String> {
    let condition = rows_of_site(&then.owner)?;
    let column = |name: &str| match live.columns.iter().any(|column| column.name == name) {
        true => format!("t.{}", quote(name)),
        false => "NULL".to_owned(),
    };
    let columns: Vec<String> = then.def.stored_columns().map(|stored| column(&stored.name)).collect();
    Some(format!("SELECT {} FROM main.{} t WHERE {condition}", columns.join(", "), quote(&then.def.name)))
}

fn send(
    conn: &Connection,
    sql: &str,
    site: &str,
    table: usize,
    batches: &Sender<RowBatch>,
) -> rusqlite::Result<()> {
    let mut select = conn.prepare(sql)?;
    let width = select.column_count();
    let mut found = select.query([site])?;
    let (mut builder, mut rows) = (RowBuilder::new(), Vec::with_capacity(BATCH_ROWS));
    while let Some(row) = found.next()? {
        rows.push(read_row(row, 0, width, &mut builder)?);
        if rows.len() == BATCH_ROWS
            && batches.blocking_send(RowBatch { table, rows: std::mem::take(&mut rows) }).is_err()
        {
            return Ok(());
        }
    }
    if !rows.is_empty() {
        // Nobody listens any more: there is nobody to tell either.
        let _ = batches.blocking_send(RowBatch { table, rows });
    }
    Ok(())
}
