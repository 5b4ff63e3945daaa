//! What drivers say of the shards that a plan is made for. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use muster_engine::Drivers;
use muster_engine::driver::{DriverError, StoreProbe};
use muster_plan::planner::StoreToProbe;
use muster_plan::provision;
use muster_types::catalog::Catalog;
use muster_types::plan::{LiveStore, ShardSurvey};
use muster_types::request::Placement;
use muster_types::{ShardName, StoreId};

/// What the shards hold that stores are sent to.
///
/// # Errors
/// What a driver answers.
pub async fn surveys(
    drivers: &Drivers,
    catalog: &Catalog,
    stores: &[StoreToProbe],
    placement: &Placement,
) -> Result<BTreeMap<ShardName, ShardSurvey>, DriverError> {
    let targets: BTreeSet<&ShardName> = placement.to_shard.values().collect();
    let mut surveys = BTreeMap::new();
    for shard in targets {
        let Some(driver) = drivers.get(shard) else { continue };
        let wanted = provision::definitions_for(catalog, stores, shard);
        surveys.insert(shard.clone(), driver.survey(&wanted).await?);
    }
    Ok(surveys)
}

/// The live state of the stores; those that go to a shard that is empty have none.
///
/// # Errors
/// What a driver answers.
pub async fn live(
    drivers: &Drivers,
    stores: Vec<StoreToProbe>,
    surveys: &BTreeMap<ShardName, ShardSurvey>,
) -> Result<BTreeMap<StoreId, LiveStore>, DriverError> {
    let empty = |shard: &ShardName| surveys.get(shard).is_some_and(|survey| survey.tables.is_empty());
    let mut by_shard: BTreeMap<ShardName, Vec<StoreProbe>> = BTreeMap::new();
    for store in stores.into_iter().filter(|store| !empty(&store.shard)) {
        let probe = StoreProbe { store: store.store, tables: store.tables };
        by_shard.entry(store.shard).or_default().push(probe);
    }
    let mut live = BTreeMap::new();
    for (shard, probes) in by_shard {
        let Some(driver) = drivers.get(&shard) else { continue };
        let answers = driver.probe(&probes).await?;
        live.extend(probes.into_iter().map(|probe| probe.store).zip(answers));
    }
    Ok(live)
}
