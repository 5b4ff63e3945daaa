//! Giving a run up.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use muster_types::journal::Record;
use muster_types::{ShardName, StoreId};

use super::context::restored;
use super::start::{driver, insist};
use super::{Drivers, Options};
use crate::driver::{DriverError, ErrorClass};
use crate::error::EngineError;
use crate::journal::TakeOver;

/// Fences and releases in every shard, then says so in the journal: a crash between leaves a run that can be abandoned
/// again. A shard that fails keeps no other from giving its stores back; all that failed are told together.
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
    let mut released = Vec::with_capacity(stores.len());
    for (shard, stores) in stores {
        let (driver, run) = (driver(drivers, shard)?, &run);
        released.push(async move {
            let release = async {
                insist(Duration::ZERO, || driver.fence(run, epoch)).await?;
                insist(Duration::ZERO, || driver.release(run, epoch, &stores)).await
            };
            (shard, release.await)
        });
    }
    let mut failed: Vec<(ShardName, DriverError)> = Vec::new();
    for (shard, released) in join_all(released).await {
        match released {
            Ok(()) => {}
            Err(error) if error.class == ErrorClass::Fenced => {
                return Err(EngineError::FencedInShard { run, error: error.to_string() });
            }
            Err(error) => failed.push((shard.clone(), error)),
        }
    }
    if !failed.is_empty() {
        return Err(EngineError::Shards { failed });
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
