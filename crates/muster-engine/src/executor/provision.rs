//! Giving an empty shard its definitions and reference rows.

use std::sync::Arc;

use muster_repo::rows;
use muster_types::ShardName;
use muster_types::journal::{Outcome, TableDigest};
use muster_types::plan::Provision;
use muster_types::table::{CapturedTable, Owner};
use tokio::sync::mpsc;

use super::context::{Context, StepError, StepResult};
use super::job::TableDigests;
use super::stage::BATCHES_IN_FLIGHT;
use crate::driver::{ProvisionWork, ReferenceRows, RowBatch};

/// Provisions a shard. The driver compares what it loaded with what the repository holds before it commits.
pub(super) async fn provision(context: &Context, shard: &ShardName) -> StepResult {
    let planned = context.plan.provisions.get(shard).ok_or_else(|| {
        StepError::permanent(format!("the plan has a step but no provision for shard `{shard}`; plan again"))
    })?;
    let work = ProvisionWork {
        run: context.run.clone(),
        epoch: context.epoch,
        tables: Arc::new(tables(context, shard, planned)?),
        beside: planned.beside.clone(),
        without_roles: planned.without_roles.clone(),
    };
    let driver = context.driver(shard)?;
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
    let (made, read) = tokio::join!(driver.provision(&work, receiver), read(context, planned, &work, sender));
    let rows = match (made, read) {
        (Ok(()), Ok(rows)) => rows,
        // An earlier attempt had done it: nobody listened.
        (Ok(()), Err(_)) => planned.rows,
        (Err(_), Err(Some(error))) => return Err(error),
        (Err(error), _) => return Err(error.into()),
    };
    Ok(Outcome::Provisioned { tables: work.tables.len() as u64, rows })
}

fn tables(
    context: &Context,
    shard: &ShardName,
    planned: &Provision,
) -> Result<Vec<CapturedTable>, StepError> {
    let of = |number: u32| {
        context.plan.tables.get(number as usize).cloned().ok_or_else(|| {
            StepError::permanent(format!("the plan lacks a table definition of shard `{shard}`; plan again"))
        })
    };
    planned.tables.iter().map(|input| of(input.table)).collect()
}

/// Sends the reference rows, then their digests as the repository has them. No error is named where the driver closed the
/// channel.
async fn read(
    context: &Context,
    planned: &Provision,
    work: &ProvisionWork,
    sender: mpsc::Sender<ReferenceRows>,
) -> Result<u64, Option<StepError>> {
    let (mut digests, mut count) = (TableDigests::new(), 0);
    let both = planned.tables.iter().zip(work.tables.iter()).enumerate();
    for (table, (input, definition)) in both.filter(|(_, (_, table))| table.owner == Owner::Reference) {
        let (reader, objects) = (&context.rows.reader, &context.plan.objects);
        let mut stream = rows::open(reader, definition, input, objects, context.options.fold_bytes);
        while let Some(rows) = stream.next().await {
            let batch = ReferenceRows::Batch(RowBatch { table, rows });
            sender.send(batch).await.map_err(|_| None)?;
        }
        let read = stream.finish().await.map_err(|error| Some(error.into()))?;
        count += read.rows;
        let digest = TableDigest { rows: read.rows, digest: read.digest };
        digests.insert(definition.def.name.clone(), digest);
    }
    sender.send(ReferenceRows::End(digests)).await.map_err(|_| None)?;
    Ok(count)
}
