//! Giving a run up.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_types::journal::Record;
use muster_types::{ShardName, StoreId};

use super::context::restored;
use super::start::{driver, insist};
use super::{Drivers, Options};
use crate::driver::{DriverError, ErrorClass};
use crate::error::EngineError;
use crate::journal::TakeOver;

/// Fences and releases in every shard, then says so in the journal: a crash between leaves a run that can be abandoned
/// again.
pub(super) async fn abandon(
    taken: TakeOver,
    drivers: &Drivers,
    options: &Options,
    reason: &str,
) -> Result<(), EngineError> {
    let (run, epoch) = (taken.history.run.clone(), taken.epoch());
    let mut stores: BTreeMap<&ShardName, Vec<StoreId>> = BTreeMap::new();
    for site in &taken.history.plan.sites {
        for (store, planned) in restored(site) {
            stores.entry(&planned.shard).or_default().push(store);
        }
    }
    for (shard, stores) in stores {
        let driver = driver(drivers, shard)?;
        let failed = |error: DriverError| match error.class {
            ErrorClass::Fenced => EngineError::FencedInShard { run: run.clone(), error: error.to_string() },
            _ => EngineError::Shard { shard: shard.clone(), error },
        };
        insist(Duration::ZERO, || driver.fence(&run, epoch)).await.map_err(failed)?;
        insist(Duration::ZERO, || driver.release(&run, &stores)).await.map_err(failed)?;
    }
    say(taken, options, reason).await
}

/// Says in the journal that the run is given up.
pub(super) async fn say(taken: TakeOver, options: &Options, reason: &str) -> Result<(), EngineError> {
    let (journal, _, writing) = taken.into_journal(options.faults.clone());
    // Dropping the journal behind the record lets the writer end once it is durable.
    drop(journal.append(vec![Record::Abandoned { at: options.clock.now(), reason: reason.to_owned() }]));
    drop(journal);
    writing.await?;
    Ok(())
}
