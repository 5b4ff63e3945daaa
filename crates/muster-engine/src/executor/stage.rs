//! Loading a store's rows beside the live data.

use muster_repo::rows;
use muster_types::StoreId;
use muster_types::journal::{Outcome, TableDigest};
use tokio::sync::mpsc;

use super::context::{Context, StepError, StepResult};
use super::job::TableDigests;
use crate::driver::{ErrorClass, RowBatch, StoreWork};
use crate::events::Work;

/// Batches between reader and loader: enough that neither waits for the other, a few MiB at the reader's batch size.
pub(super) const BATCHES_IN_FLIGHT: usize = 4;

/// What was read so far, and counted as progress.
#[derive(Default)]
pub(super) struct Read {
    pub(super) tables: TableDigests,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Stages a store. The digests in the outcome are computed from the repository, not from what was loaded.
pub(super) async fn stage(context: &Context, store: &StoreId) -> StepResult {
    let work = context.work(store)?;
    let driver = context.driver(&context.store(store)?.shard)?;
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
    let mut all = Read::default();
    let (loaded, read) = tokio::join!(driver.stage(&work, receiver), read(context, &work, sender, &mut all));
    let Read { tables, rows, bytes } = all;
    // A loader that fails closes the channel, which is then the reader's error: the loader's is the cause.
    if let Err(error) = loaded.map_err(StepError::from).and(read) {
        context.events.take_back(rows, bytes);
        return Err(error);
    }
    Ok(Outcome::Staged { rows, bytes, tables })
}

async fn read(
    context: &Context,
    work: &StoreWork,
    sender: mpsc::Sender<RowBatch>,
    all: &mut Read,
) -> Result<(), StepError> {
    let planned = context.store(&work.store)?;
    for (table, input) in planned.tables.iter().enumerate() {
        let definition = &work.tables[table];
        let (reader, objects) = (&context.rows.reader, &context.plan.objects);
        let mut stream = rows::open(reader, definition, input, objects, context.options.fold_bytes);
        while let Some(rows) = stream.next().await {
            let count = rows.len() as u64;
            context.paces.admit(&planned.shard, &rows).await;
            sender.send(RowBatch { table, rows }).await.map_err(|_| closed(work))?;
            all.rows += count;
            context.events.add(Work { rows_staged: count, ..Work::default() });
        }
        let read = stream.finish().await?;
        all.bytes += read.bytes_read;
        context.events.add(Work { bytes: read.bytes_read, ..Work::default() });
        let digest = TableDigest { rows: read.rows, digest: read.digest };
        all.tables.insert(definition.def.name.clone(), digest);
    }
    Ok(())
}

pub(super) fn closed(work: &StoreWork) -> StepError {
    let message =
        format!("the driver stopped loading {} without an error; run the command again", work.store);
    StepError { class: ErrorClass::Transient, message }
}
