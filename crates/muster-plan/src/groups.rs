//! Which steps may run together: small stores of one kind in one shard are loaded and published in groups, so that
//! connections, statements and commits are paid for once a group and not once a store.
//!
//! Stage, verify and publish steps of the same stores make up a group each. Stores are taken in the order of the plan, so
//! that sites which are to come back together are grouped together. Publishing follows each site's dependencies as ever: a
//! group is of one kind, and of it those run together that are ready together.
//!
//! # Invariants
//! - Steps of a group do the same, in one shard, wave and kind, over the same tables, and have the same demand.
//! - A group stays within the bounds below. Stores whose live rows are replaced, and those whose publish may block
//!   writers for longer than the shard's bound, run alone.

use std::collections::{HashMap, HashSet};

use muster_types::plan::{Demand, Plan, PlanStep, Restoration, StepKey, StorePlan};
use muster_types::topology::{DriverConfig, Topology};
use muster_types::{Kind, ShardName, StoreId};

use crate::estimate::{PUBLISH_MICROS, PUBLISH_ROWS_PER_SECOND, STEP_MICROS};

/// Most rows of a store that is small: loading and publishing them takes some 40 ms at the rates of [`crate::estimate`],
/// of which fixed costs are a third. Above, a group saves little.
pub const STORE_ROWS_MAX: u64 = 2_000;
/// Most bytes of text of a store that is small: what its stage step holds then stays below
/// [`STAGE_BYTES_MIN`](crate::estimate::STAGE_BYTES_MIN), with the next ones of its group read ahead.
pub const STORE_BYTES_MAX: u64 = 1024 * 1024;
/// Most stores of a group: fixed costs are a few per cent of what they were, and a culprit stands alone after six halvings.
pub const STORES_MAX: usize = 64;
/// Most rows of a group: a third of a second of publishing, which is lost when one of its stores fails.
pub const ROWS_MAX: u64 = 20_000;
/// Most bytes of text of a group, for drivers that gather it in memory.
pub const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A group is planned to block other writers for at most one part in so many of the shard's bound: a server that is several
/// times slower than planned keeps within it still.
pub const BLOCK_PARTS: u64 = 4;
/// What each store of a group costs its publish beside its rows: its mark, its insertions, its record.
pub const STORE_MICROS: u64 = 500;

/// What the stores of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Common {
    shard: ShardName,
    kind: Kind,
    wave: u32,
    tables: Vec<u32>,
}

/// Stores that run together.
#[derive(Debug, Default)]
struct Group {
    stores: usize,
    rows: u64,
    bytes: u64,
}

impl Group {
    fn block_micros(&self) -> u64 {
        let rows_micros = self.rows.saturating_mul(1_000_000) / PUBLISH_ROWS_PER_SECOND;
        PUBLISH_MICROS + rows_micros + self.stores as u64 * STORE_MICROS
    }

    /// With one more store, unless that exceeds a bound.
    fn with(&self, store: &StorePlan, block_micros_max: u64) -> Option<Self> {
        let larger = Self {
            stores: self.stores + 1,
            rows: self.rows.saturating_add(store.rows),
            bytes: self.bytes.saturating_add(store.raw_bytes),
        };
        let fits = larger.stores <= STORES_MAX
            && larger.rows <= ROWS_MAX
            && larger.bytes <= BYTES_MAX
            && larger.block_micros() <= block_micros_max;
        fits.then_some(larger)
    }
}

/// Marks the steps of `plan` that may run together.
pub fn mark(plan: &mut Plan, topology: &Topology) {
    let (of_store, groups) = gather(plan, topology);
    let group_of = |step: &PlanStep| {
        let number = *of_store.get(step.key.store()?)?;
        (groups[number as usize].stores > 1).then_some(number * VERBS + verb(&step.key)?)
    };
    let numbers: Vec<Option<u32>> = plan.steps.iter().map(group_of).collect();
    let mut demands: HashMap<u32, Demand> = HashMap::new();
    for (step, number) in plan.steps.iter().zip(&numbers) {
        let Some(number) = number else { continue };
        let most = demands.entry(*number).or_insert_with(|| step.demand.clone());
        if *most != step.demand {
            *most = larger(most, &step.demand);
        }
    }
    for (step, number) in plan.steps.iter_mut().zip(numbers) {
        step.group = number;
        let Some(number) = number else { continue };
        step.estimate_micros = shared_estimate(step, groups[(number / VERBS) as usize].stores as u64);
        if let Some(demand) = demands.get(&number) {
            step.demand = demand.clone();
        }
    }
}

/// Stage, verify, publish.
const VERBS: u32 = 3;

fn verb(key: &StepKey) -> Option<u32> {
    match key {
        StepKey::Stage(_) => Some(0),
        StepKey::Verify(_) => Some(1),
        StepKey::Publish(_) => Some(2),
        _ => None,
    }
}

/// The group of each store that may be in one.
fn gather(plan: &Plan, topology: &Topology) -> (HashMap<StoreId, u32>, Vec<Group>) {
    let mut open: HashMap<Common, u32> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut of_store = HashMap::new();
    let staged = |step: &PlanStep| match &step.key {
        StepKey::Stage(store) => Some(store.clone()),
        _ => None,
    };
    let with_steps: HashSet<StoreId> = plan.steps.iter().filter_map(staged).collect();
    for site in &plan.sites {
        for store in &site.stores {
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            let Some(block_micros_max) = block_micros_max(topology, store).filter(|_| is_small(store)) else {
                continue;
            };
            if plan.request.accept_block.contains(&id) || !with_steps.contains(&id) {
                continue;
            }
            let tables = store.tables.iter().map(|input| input.table).collect();
            let common =
                Common { shard: store.shard.clone(), kind: store.kind.clone(), wave: site.wave, tables };
            let present = open.get(&common).copied();
            let joined = present
                .and_then(|number| Some((number, groups[number as usize].with(store, block_micros_max)?)));
            let number = match joined {
                Some((number, larger)) => {
                    groups[number as usize] = larger;
                    number
                }
                None => {
                    let Some(first) = Group::default().with(store, block_micros_max) else { continue };
                    groups.push(first);
                    let number = groups.len() as u32 - 1;
                    open.insert(common, number);
                    number
                }
            };
            of_store.insert(id, number);
        }
    }
    (of_store, groups)
}

fn is_small(store: &StorePlan) -> bool {
    store.restoration == Restoration::Restored
        && !store.overwrite
        && store.rows <= STORE_ROWS_MAX
        && store.raw_bytes <= STORE_BYTES_MAX
}

/// How long a group may block the shard's writers; none where its driver works store by store.
fn block_micros_max(topology: &Topology, store: &StorePlan) -> Option<u64> {
    let config = topology.shards.get(&store.shard)?;
    match config.driver {
        DriverConfig::Postgres { .. } => {
            Some(config.writer_block_milliseconds_max.saturating_mul(1_000) / BLOCK_PARTS)
        }
        // A file's stores are staged in files of their own, which are attached one at a time.
        DriverConfig::Sqlite { .. } => None,
    }
}

/// The larger of both, pool by pool.
fn larger(one: &Demand, other: &Demand) -> Demand {
    let pools = one.iter().chain(other.iter()).map(|(pool, _)| pool);
    pools.map(|pool| (pool.to_owned(), one.get(pool).max(other.get(pool)).unwrap_or(0))).collect()
}

/// The step's part of what its group takes: fixed costs are shared.
fn shared_estimate(step: &PlanStep, stores: u64) -> u64 {
    let fixed = match step.key {
        StepKey::Publish(_) => STEP_MICROS + PUBLISH_MICROS,
        _ => STEP_MICROS,
    };
    step.estimate_micros.saturating_sub(fixed) + fixed.div_ceil(stores.max(1))
}
