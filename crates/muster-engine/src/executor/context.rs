//! What all steps of a run share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use muster_repo::RepoError;
use muster_types::journal::Outcome;
use muster_types::plan::{Plan, Restoration, SitePlan, StorePlan};
use muster_types::table::CapturedTable;
use muster_types::{Epoch, RunId, ShardName, SiteId, StoreId};

use super::pace::Paces;
use super::rows::RowSource;
use super::{Drivers, Options};
use crate::cancel::Cancel;
use crate::driver::{DriverError, ErrorClass, StoreDriver, StoreWork};
use crate::events::Events;

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepError {
    pub(super) class: ErrorClass,
    /// With cause and way out.
    pub(super) message: String,
}

pub(super) type StepResult = Result<Outcome, StepError>;

impl StepError {
    pub(super) fn permanent(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Permanent, message: message.into() }
    }
}

impl From<DriverError> for StepError {
    fn from(error: DriverError) -> Self {
        Self { class: error.class, message: error.to_string() }
    }
}

impl From<RepoError> for StepError {
    fn from(error: RepoError) -> Self {
        let class = if error.is_transient() { ErrorClass::RepositoryAway } else { ErrorClass::Permanent };
        Self { class, message: error.to_string() }
    }
}

/// See the module.
pub(super) struct Context {
    pub(super) run: RunId,
    pub(super) epoch: Epoch,
    pub(super) plan: Arc<Plan>,
    pub(super) drivers: Arc<Drivers>,
    pub(super) options: Options,
    pub(super) events: Events,
    pub(super) rows: RowSource,
    pub(super) paces: Paces,
    /// For steps that wait for others; one that works ends by itself.
    pub(super) cancel: Cancel,
    /// Sites that this engine may not touch, and why.
    pub(super) refused: HashMap<SiteId, String>,
    /// Indexes into the plan's sites and a site's stores.
    stores: HashMap<StoreId, (usize, usize)>,
    sites: HashMap<SiteId, usize>,
    /// Definitions by their numbers in the plan: stores of one kind and shard share them.
    tables: Mutex<HashMap<Vec<u32>, Arc<Vec<CapturedTable>>>>,
}

impl Context {
    pub(super) fn new(
        engine: &super::Engine,
        run: &RunId,
        epoch: Epoch,
        plan: &Arc<Plan>,
        rows: RowSource,
        refused: HashMap<SiteId, String>,
        cancel: &Cancel,
    ) -> Self {
        let mut stores = HashMap::new();
        let mut sites = HashMap::new();
        for (index, site) in plan.sites.iter().enumerate() {
            sites.insert(site.site.clone(), index);
            for (nth, store) in site.stores.iter().enumerate() {
                stores.insert(StoreId { site: site.site.clone(), kind: store.kind.clone() }, (index, nth));
            }
        }
        Self {
            run: run.clone(),
            epoch,
            plan: Arc::clone(plan),
            drivers: Arc::clone(&engine.drivers),
            options: engine.options.clone(),
            events: engine.events.clone(),
            rows,
            paces: Paces::of(plan),
            cancel: cancel.clone(),
            refused,
            stores,
            sites,
            tables: Mutex::default(),
        }
    }

    pub(super) fn tables(
        &self,
        store: &StoreId,
        numbers: Vec<u32>,
    ) -> Result<Arc<Vec<CapturedTable>>, StepError> {
        // The map is whole after a panic: its only change is one insertion.
        let mut known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = known.get(&numbers) {
            return Ok(Arc::clone(tables));
        }
        let tables = numbers.iter().map(|number| self.plan.tables.get(*number as usize).cloned());
        let tables: Option<Vec<_>> = tables.collect();
        let tables = tables.ok_or_else(|| {
            StepError::permanent(format!("the plan lacks a table definition of {store}; plan again"))
        })?;
        Ok(Arc::clone(known.entry(numbers).or_insert(Arc::new(tables))))
    }

    pub(super) fn site(&self, site: &SiteId) -> Result<&SitePlan, StepError> {
        let found = self.sites.get(site).and_then(|&index| self.plan.sites.get(index));
        found.ok_or_else(|| {
            StepError::permanent(format!("the plan has a step but no entry for {site}; plan again"))
        })
    }

    pub(super) fn store(&self, store: &StoreId) -> Result<&StorePlan, StepError> {
        let found = self.stores.get(store).map(|&(site, nth)| &self.plan.sites[site].stores[nth]);
        found.ok_or_else(|| {
            StepError::permanent(format!("the plan has a step but no entry for {store}; plan again"))
        })
    }

    pub(super) fn driver(&self, shard: &ShardName) -> Result<&Arc<dyn StoreDriver>, StepError> {
        self.drivers.get(shard).ok_or_else(|| {
            StepError::permanent(format!(
                "there is no driver for shard `{shard}`; declare it in the topology"
            ))
        })
    }

    /// What a driver needs to know of a store.
    pub(super) fn work(&self, store: &StoreId) -> Result<StoreWork, StepError> {
        let planned = self.store(store)?;
        let tables = self.tables(store, planned.tables.iter().map(|input| input.table).collect())?;
        let bound = self.plan.shards.get(&planned.shard).map(|shard| shard.writer_block_milliseconds_max);
        let accepted = self.plan.request.accept_block.contains(store);
        Ok(StoreWork {
            run: self.run.clone(),
            epoch: self.epoch,
            store: store.clone(),
            tables,
            overwrite: planned.overwrite,
            definitions: planned.live.definitions,
            writer_block_milliseconds_max: bound.filter(|_| !accepted),
        })
    }
}

/// Sites that the plan has steps for: what it leaves out is a neighbour, however it changes.
pub(super) fn carried_out(plan: &Plan) -> impl Iterator<Item = &SitePlan> {
    let with_steps: HashSet<&SiteId> = plan.steps.iter().filter_map(|step| step.key.site()).collect();
    plan.sites.iter().filter(move |site| with_steps.contains(&site.site))
}

/// Restored stores of a site: id and plan.
pub(super) fn restored(site: &SitePlan) -> impl Iterator<Item = (StoreId, &StorePlan)> {
    let restored = site.stores.iter().filter(|store| store.restoration == Restoration::Restored);
    restored.map(|store| (StoreId { site: site.site.clone(), kind: store.kind.clone() }, store))
}
