//! The live rows of a store, for those who look before they restore.

use muster_engine::driver::{DriverError, RowBatch, StoreProbe};
use tokio::sync::mpsc::Sender;
use tokio_postgres::Error;

use super::copy::Rows;
use super::live::kind_tables;
use super::shard::{Catalog, Shard};
use crate::postgres::schema::quote;

/// Rows of one batch: small enough that a few of them wait in little memory, large enough to be worth a wake-up.
const BATCH_ROWS: usize = 512;

/// Bytes of one batch, where rows are large.
const BATCH_BYTES: usize = 1024 * 1024;

/// Sends every live row of the store, in one read transaction; ends early when nobody listens.
pub(super) async fn live_rows(
    shard: &Shard,
    store: &StoreProbe,
    rows: &Sender<RowBatch>,
) -> Result<(), DriverError> {
    let session = shard.session().await?;
    let doing = format!("read the live rows of {}", store.store);
    let failed = |error: Error| shard.error(&doing, &error);
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let catalog = Catalog::read(&session).await.map_err(failed)?;
    for table in kind_tables(shard, &catalog, &store.store.kind, &store.tables, Some(&store.store.site)) {
        let (Some(then), Some(way)) = (table.then, &table.way) else { continue };
        let Some(number) = store.tables.iter().position(|known| &known.def == then) else { continue };
        let column = |name: &str| match table.now.def.columns.iter().any(|column| column.name == name) {
            true => format!("t.{}", quote(name)),
            false => "NULL".to_owned(),
        };
        let columns: Vec<String> = table.restored_columns().map(column).collect();
        let condition = way.rows_of(&store.store.site);
        let sql = format!("SELECT {} FROM {} t WHERE {condition}", columns.join(", "), table.now.rows_of());
        let found = Rows::of(shard, &session, &doing, &sql).await?;
        if !send(found, number, rows).await? {
            // The answer is not read to its end: the connection goes with the session.
            return Ok(());
        }
    }
    session.batch_execute("COMMIT").await.map_err(failed)?;
    session.keep();
    Ok(())
}

/// False when nobody listens any more.
async fn send(mut found: Rows<'_>, table: usize, batches: &Sender<RowBatch>) -> Result<bool, DriverError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next().await? {
        bytes += row.heap_bytes();
        rows.push(row);
        if rows.len() == BATCH_ROWS || bytes > BATCH_BYTES {
            bytes = 0;
            if batches.send(RowBatch { table, rows: std::mem::take(&mut rows) }).await.is_err() {
                return Ok(false);
            }
        }
    }
    Ok(rows.is_empty() || batches.send(RowBatch { table, rows }).await.is_ok())
}
