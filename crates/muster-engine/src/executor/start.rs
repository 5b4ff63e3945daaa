//! The first acts in the shards: raising the epoch, learning what was published, claiming stores.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use muster_types::journal::{Outcome, Record};
use muster_types::plan::{Plan, StepKey, StorePlan};
use muster_types::{Epoch, RunId, ShardName, SiteId, StoreId};
use tokio::time::Instant;

use super::context::{carried_out, restored};
use super::{Drivers, Engine, preflight};
use crate::driver::{ClaimRefusal, DriverError, ErrorClass, PublishRecord, StoreDriver};
use crate::error::EngineError;
use crate::events::Event;
use crate::journal::{RunState, StepPhase};

/// Tries of a call that prepares a shard, before its sites are given up: with the pauses between them, a few seconds.
const TRIES: u32 = 5;

/// The longest pause between two of them.
const PAUSE_MOST: Duration = Duration::from_secs(3);

/// A shard that is not there is waited for so long before its tries count: crash recovery or a failover take so long as a
/// rule, and the sites of the other shards wait too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the shards said.
pub(super) struct Ready {
    /// Stores that this run has published, by the shards' own records.
    published: HashSet<StoreId>,
    /// Shards that told theirs.
    fenced: HashSet<ShardName>,
    /// Records of publishes that the journal did not know to have succeeded.
    pub(super) found: Vec<Record>,
    /// Sites that this engine may not touch, and why.
    pub(super) refused: HashMap<SiteId, String>,
}

/// Prepares every shard of the plan; shards that fail cost their own sites only.
pub(super) async fn start(
    engine: &Engine,
    run: &RunId,
    epoch: Epoch,
    plan: &Plan,
    state: &RunState,
) -> Result<Ready, EngineError> {
    let wanted = wanted_stores(plan, state);
    let mut ready = Ready {
        published: HashSet::new(),
        fenced: HashSet::new(),
        found: Vec::new(),
        refused: HashMap::new(),
    };
    let fences = super::shards(plan).map(|shard| async move {
        let Some(driver) = engine.drivers.get(shard) else { return (shard, Ok(Vec::new())) };
        if to_provision(plan, state, shard)
            && let Err(error) = insist(PATIENCE, || driver.make_place()).await
        {
            return (shard, Err(error));
        }
        (shard, insist(PATIENCE, || driver.fence(run, epoch)).await)
    });
    let mut usable = Vec::new();
    for (shard, fenced) in join_all(fences).await {
        match fenced {
            Ok(records) => {
                ready.published.extend(records.iter().map(|record| record.store.clone()));
                ready.fenced.insert(shard.clone());
                let found = unknown_publishes(records, state);
                let found_published = found.len() as u64;
                engine.events.send(Event::ShardReady { shard: shard.clone(), found_published });
                ready.found.extend(found);
                usable.push(shard);
            }
            Err(error) => ready.refuse_shard(engine, run, shard, &wanted, &error)?,
        }
    }
    let claims = usable.into_iter().map(|shard| {
        let stores = wanted.get(shard).map_or(&[][..], Vec::as_slice);
        async move {
            let Some(driver) = engine.drivers.get(shard) else { return (shard, Ok(Vec::new())) };
            (shard, insist(PATIENCE, || driver.claim(run, epoch, stores)).await)
        }
    });
    for (shard, claimed) in join_all(claims).await {
        match claimed {
            Ok(refusals) => ready.refuse_stores(engine, shard, &refusals),
            Err(error) => ready.refuse_shard(engine, run, shard, &wanted, &error)?,
        }
    }
    let harmed = preflight::harmed_objects(&engine.repository, plan).await?;
    ready.refuse_harmed(run, plan, state, &harmed);
    ready.give_back(&engine.drivers, (run, epoch), &wanted, plan, state).await;
    Ok(ready)
}

impl Ready {
    fn refuse_shard(
        &mut self,
        engine: &Engine,
        run: &RunId,
        shard: &ShardName,
        wanted: &BTreeMap<ShardName, Vec<StoreId>>,
        error: &DriverError,
    ) -> Result<(), EngineError> {
        if error.class == ErrorClass::Fenced {
            return Err(EngineError::FencedInShard { run: run.clone(), error: error.to_string() });
        }
        let reason = format!("shard `{shard}` cannot be prepared: {error}");
        let mut sites: Vec<SiteId> =
            wanted.get(shard).into_iter().flatten().map(|store| store.site.clone()).collect();
        sites.dedup();
        for site in &sites {
            self.refused.entry(site.clone()).or_insert_with(|| reason.clone());
        }
        engine.events.send(Event::Refused { shard: shard.clone(), sites, reason });
        Ok(())
    }

    /// Sites that still have to read an object that is missing or has another size.
    fn refuse_harmed(&mut self, run: &RunId, plan: &Plan, state: &RunState, harmed: &BTreeMap<u32, String>) {
        if harmed.is_empty() {
            return;
        }
        for site in &plan.sites {
            let reason = restored(site)
                .filter(|(store, _)| {
                    let published = state.step(&StepKey::Publish(store.clone()));
                    published.is_none_or(|step| step.phase != StepPhase::Succeeded)
                })
                .flat_map(|(_, planned)| &planned.tables)
                .flat_map(|input| {
                    input
                        .base
                        .iter()
                        .map(|base| base.object)
                        .chain(input.changes.iter().map(|changes| changes.object))
                })
                .find_map(|object| harmed.get(&object));
            if let Some(reason) = reason {
                let reason = format!(
                    "{reason}; bring it back from the bucket's versions or replica, then `muster resume {run}`; or \
                     `muster abandon {run}` and plan with another moment"
                );
                self.refused.entry(site.site.clone()).or_insert(reason);
            }
        }
    }

    fn refuse_stores(&mut self, engine: &Engine, shard: &ShardName, refusals: &[ClaimRefusal]) {
        for ClaimRefusal { store, held_by } in refusals {
            let reason = format!(
                "{store} is claimed by run {held_by}; wait for it and run `muster resume` of this run, or give it up \
                 with `muster abandon {held_by}`"
            );
            self.refused.entry(store.site.clone()).or_insert_with(|| reason.clone());
            engine.events.send(Event::Refused {
                shard: shard.clone(),
                sites: vec![store.site.clone()],
                reason,
            });
        }
    }

    /// A store of this run may be live: its shard says so, or does not tell and a publish began.
    fn may_be_live(&self, state: &RunState, store: StoreId, shard: &ShardName) -> bool {
        let is_told = self.published.contains(&store);
        let publish = StepKey::Publish(store);
        let has_begun = state.step(&publish).is_some_and(|publish| publish.attempts > 0);
        is_told
            || phase(state, &publish) == StepPhase::Succeeded
            || (has_begun && !self.fenced.contains(shard))
    }

    /// Releases what was claimed of sites that cannot be restored anyway, so that others may have it.
    async fn give_back(
        &self,
        drivers: &Drivers,
        (run, epoch): (&RunId, Epoch),
        wanted: &BTreeMap<ShardName, Vec<StoreId>>,
        plan: &Plan,
        state: &RunState,
    ) {
        let is_live: HashMap<&SiteId, bool> = plan
            .sites
            .iter()
            .map(|site| {
                let may_be_live =
                    |(store, planned): (StoreId, &StorePlan)| self.may_be_live(state, store, &planned.shard);
                (&site.site, restored(site).any(may_be_live))
            })
            .collect();
        for (shard, stores) in wanted {
            let refused = |store: &&StoreId| {
                self.refused.contains_key(&store.site) && is_live.get(&store.site) == Some(&false)
            };
            let stores: Vec<StoreId> = stores.iter().filter(refused).cloned().collect();
            let (false, Some(driver)) = (stores.is_empty(), drivers.get(shard)) else { continue };
            if let Err(error) = driver.release(run, epoch, &stores).await {
                // The run keeps these claims, as failed sites do, until it is resumed or abandoned.
                tracing::warn!(%shard, %error, "claims of refused sites were not given back");
            }
        }
    }
}

/// The shard is to be given its definitions still.
fn to_provision(plan: &Plan, state: &RunState, shard: &ShardName) -> bool {
    plan.provisions.contains_key(shard)
        && phase(state, &StepKey::Provision(shard.clone())) != StepPhase::Succeeded
}

/// Restored stores by shard, of sites whose hand-back has not begun. One that began may have given the claims back, and
/// another run may have them by now: what is left of it needs none.
fn wanted_stores(plan: &Plan, state: &RunState) -> BTreeMap<ShardName, Vec<StoreId>> {
    let mut wanted: BTreeMap<ShardName, Vec<StoreId>> = BTreeMap::new();
    for site in carried_out(plan) {
        let handback = state.step(&StepKey::Handback(site.site.clone()));
        if handback.is_some_and(|handback| handback.attempts > 0) {
            continue;
        }
        for (store, planned) in restored(site) {
            wanted.entry(planned.shard.clone()).or_default().push(store);
        }
    }
    wanted
}

fn phase(state: &RunState, key: &StepKey) -> StepPhase {
    state.step(key).map_or(StepPhase::Pending, |step| step.phase)
}

/// Publishes that happened though the journal has only their start. One that it knows nothing of stays out: the
/// driver gives its record again when the step runs.
fn unknown_publishes(records: Vec<PublishRecord>, state: &RunState) -> Vec<Record> {
    let unknown = |PublishRecord { store, published }: PublishRecord| {
        let step = StepKey::Publish(store);
        let known = state.step(&step)?;
        let begun = matches!(known.phase, StepPhase::Running | StepPhase::Retrying | StepPhase::Failed);
        let at = published.at;
        begun.then_some(Record::Succeeded {
            attempt: known.attempts,
            at,
            outcome: Outcome::Published(published),
            step,
        })
    };
    records.into_iter().filter_map(unknown).collect()
}

/// Calls again while that may help; for `patience`, tries that meet nobody do not count.
pub(super) async fn insist<T, F: Future<Output = Result<T, DriverError>>>(
    patience: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T, DriverError> {
    let deadline = Instant::now() + patience;
    let (mut pause, mut tries) = (Duration::from_millis(100), 0);
    loop {
        let error = match call().await {
            Err(error) if !matches!(error.class, ErrorClass::Permanent | ErrorClass::Fenced) => error,
            decided => return decided,
        };
        if error.class != ErrorClass::Unavailable || Instant::now() >= deadline {
            tries += 1;
        }
        if tries == TRIES {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3).min(PAUSE_MOST);
    }
}

/// The driver of a shard that the engine was checked to have.
pub(super) fn driver<'a>(
    drivers: &'a Drivers,
    shard: &ShardName,
) -> Result<&'a Arc<dyn StoreDriver>, EngineError> {
    drivers.get(shard).ok_or_else(|| EngineError::NoDriver { shard: shard.clone() })
}
