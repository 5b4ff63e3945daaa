//! Loading a store's rows beside the live data.

use std::collections::BTreeMap;

use muster_repo::rows;
use muster_types::StoreId;
use muster_types::journal::{Outcome, TableDigest};
use tokio::sync::mpsc;

use super::context::{Context, StepError, StepResult};
use super::job::TableDigests;
use crate::driver::{ErrorClass, RowBatch, StoreWork};
use crate::events::Work;

/// Batches between reader and loader: enough that neither waits for the other, a few MiB at the reader's batch size.
const BATCHES_IN_FLIGHT: usize = 4;

struct Read {
    tables: TableDigests,
    rows: u64,
    bytes: u64,
}

/// Stages a store. The digests in the outcome are computed from the repository, not from what was loaded.
pub(super) async fn stage(context: &Context, store: &StoreId) -> StepResult {
    let work = context.work(store)?;
    let driver = context.driver(&context.store(store)?.shard)?;
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
    let (loaded, read) = tokio::join!(driver.stage(&work, receiver), read(context, &work, sender));
    // A loader that fails closes the channel, which is then the reader's error: the loader's is the cause.
    loaded?;
    let Read { tables, rows, bytes } = read?;
    Ok(Outcome::Staged { rows, bytes, tables })
}

async fn read(context: &Context, work: &StoreWork, sender: mpsc::Sender<RowBatch>) -> Result<Read, StepError> {
    let planned = context.store(&work.store)?;
    let mut all = Read { tables: BTreeMap::new(), rows: 0, bytes: 0 };
    for (table, input) in planned.tables.iter().enumerate() {
        let definition = &work.tables[table];
        let mut stream =
            rows::open(&context.rows.reader, definition, input, &context.plan.objects, context.options.fold_bytes);
        while let Some(rows) = stream.next().await {
            let count = rows.len() as u64;
            sender.send(RowBatch { table, rows }).await.map_err(|_| closed(work))?;
            context.events.add(Work { rows_staged: count, ..Work::default() });
        }
        let read = stream.finish().await?;
        context.events.add(Work { bytes: read.bytes_read, ..Work::default() });
        let digest = TableDigest { rows: read.rows, digest: read.digest };
        all.tables.insert(definition.def.name.clone(), digest);
        all.rows += read.rows;
        all.bytes += read.bytes_read;
    }
    Ok(all)
}

fn closed(work: &StoreWork) -> StepError {
    let message = format!("the driver stopped loading {} without an error; run the command again", work.store);
    StepError { class: ErrorClass::Transient, message }
}
