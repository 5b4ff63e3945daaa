//! The order among ready steps, known once the run begins.
//!
//! Within a wave, sites stand in a *sequence* and steps at the *latest moment* at which they may start:
//!
//! - The sequence finishes small sites first, as far as targets allow: the mean recovery time is least so. Taken from the
//!   end, the last is always the largest of the sites that may still be back then (Smith's rule): by their targets, and by
//!   the end of all, behind which a site that takes long by itself must not reach. Sites that cannot all be
//!   in time are chosen so that as few as possible are late (Moore and Hodgson's rule); the late ones stand by their size.
//!   Sizes within a factor of 1.4 are taken as equal, and then the site with the nearer target is first: estimates are no
//!   better than that.
//! - The whole takes at least as long as the longest path, or as a pool with its work, whichever is more: the *bound*. A
//!   step starts too late for it once more work than the pool can still do stands behind, or a longer path. That moment is
//!   its place in the order, so that a shard with much to do is not left for the end, and a site that takes long by itself
//!   begins in time. Steps of one pool stand in the sequence.
//!
//! # Invariants
//! - Sorting and priority queues only: O(n log n) in all.
//! - The order is fixed, so nothing starves: what stands before a step is finite and only shrinks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use muster_types::plan::{PlanStep, StepKey};
use muster_types::{SiteId, Timestamp};

use super::graph::Lists;
use super::pools::{Demand, Demands};

/// How much more a pool counts that has more to do: the work of a site is mostly its work on the pools that are short.
const LOAD_POWER: i32 = 4;

/// A site that is to meet its target is given so many times its longest path. Of random fleets, at 1.5 a third more sites
/// were late, and at 3 the mean recovery time was a hundredth longer.
const PATHS_TO_TARGET: f64 = 2.0;

/// A site that is to be back before the end is given so many times its longest path. Of random fleets, at 1 half as many
/// runs again took longer than by plain list scheduling, and at 2 the mean recovery time was a hundredth longer.
const PATHS_TO_END: f64 = 1.5;

/// The end that is aimed at, in bounds: a little later than what is seldom reached, since the last sites may then be larger.
const BOUND_REACHED: f64 = 1.02;

/// Size classes of sites in a factor of two.
const CLASSES_PER_DOUBLING: f64 = 2.0;

/// Where a step stands, whatever its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It gates those of many sites.
    First,
    OfSite,
    /// It follows those of many sites.
    Last,
}

/// What is known of a step before the run.
struct StepOrder {
    wave: u32,
    turn: Turn,
    /// Index into the sites.
    site: Option<u32>,
    estimate_micros: u64,
    /// The longest estimated path from its start.
    remaining_micros: u64,
}

/// A site's part of the work.
#[derive(Clone, Copy, Debug, Default)]
struct SiteLoad {
    wave: u32,
    /// Its share of the bound, in microseconds.
    work_micros: f64,
    path_micros: u64,
    /// When it should be back, in microseconds from now.
    target_micros: f64,
    first_step: u32,
}

impl SiteLoad {
    /// When what stands up to this site must be done for it to be back at `end`, if from its turn on it takes its longest
    /// path so many times over: its steps wait for pools, too.
    fn due_micros(&self, end: f64, paths: f64) -> f64 {
        end - self.path_micros as f64 * paths + self.work_micros
    }

    fn due_for_target_micros(&self) -> f64 {
        self.due_micros(self.target_micros, PATHS_TO_TARGET)
    }

    fn class(&self) -> i64 {
        (self.work_micros.max(1.0).log2() * CLASSES_PER_DOUBLING) as i64
    }
}

/// See the module.
pub(super) struct Order {
    steps: Vec<StepOrder>,
    /// Steps, each behind those that it waits for.
    topological: Vec<u32>,
    /// By site: when it should be back.
    deadlines: Vec<Option<Timestamp>>,
}

impl Order {
    /// `remaining`: by step, the longest path from its start.
    pub(super) fn new<'a>(
        steps: &'a [PlanStep],
        remaining: &[u64],
        topological: Vec<u32>,
        deadlines: &BTreeMap<SiteId, Timestamp>,
    ) -> Self {
        let mut sites: HashMap<&'a SiteId, u32> = HashMap::new();
        let mut of_sites = Vec::new();
        let mut number = |site: &'a SiteId| {
            *sites.entry(site).or_insert_with(|| {
                of_sites.push(deadlines.get(site).copied());
                of_sites.len() as u32 - 1
            })
        };
        let order = |(step, &remaining_micros): (&'a PlanStep, &u64)| StepOrder {
            wave: step.wave,
            turn: match step.key {
                StepKey::Provision(_) | StepKey::DigestBefore(_) => Turn::First,
                StepKey::DigestAfter(_) => Turn::Last,
                _ => Turn::OfSite,
            },
            site: step.key.site().map(&mut number),
            estimate_micros: step.estimate_micros,
            remaining_micros,
        };
        let steps = steps.iter().zip(remaining).map(order).collect();
        Self { steps, topological, deadlines: of_sites }
    }

    /// The place of each step, by step. `open`: whether a step has still to run.
    pub(super) fn ranks(
        &self,
        demands: &Demands,
        capacities: &[u64],
        now: Timestamp,
        open: impl Fn(u32) -> bool,
        dependents: &Lists,
    ) -> Vec<u32> {
        let open: Vec<bool> = (0..self.steps.len() as u32).map(open).collect();
        let bound = Bound::new(self, demands, capacities, &open);
        let ends = bound.micros * BOUND_REACHED;
        let sequence = self.sequence(&self.loads(demands, &bound, now, &open), ends);
        let mut order: Vec<u32> = (0..self.steps.len() as u32).collect();
        let place = |step: &StepOrder| step.site.map_or(u32::MAX, |site| sequence[site as usize]);
        order.sort_by_cached_key(|&index| {
            let step = &self.steps[index as usize];
            (step.wave, step.turn, place(step), Reverse(step.remaining_micros), index)
        });
        let mut latest = bound.latest_starts(self, demands, &open, &order);
        self.ahead_of_dependents(&mut latest, dependents);
        // Stable: what may start equally late stays in the sequence.
        order.sort_by_key(|&index| {
            let step = &self.steps[index as usize];
            (step.wave, step.turn, latest[index as usize])
        });
        let mut ranks = vec![0; order.len()];
        for (rank, index) in (0u32..).zip(order) {
            ranks[index as usize] = rank;
        }
        ranks
    }

    /// What gates a step starts early enough for it.
    fn ahead_of_dependents(&self, latest: &mut [i64], dependents: &Lists) {
        for &index in self.topological.iter().rev() {
            let step = &self.steps[index as usize];
            let behind = dependents.of(index).iter().map(|&dependent| latest[dependent as usize]).min();
            if let Some(behind) = behind {
                let own = &mut latest[index as usize];
                *own = (*own).min(behind.saturating_sub_unsigned(step.estimate_micros));
            }
        }
    }

    fn loads(&self, demands: &Demands, bound: &Bound, now: Timestamp, open: &[bool]) -> Vec<SiteLoad> {
        let target = |deadline: &Option<Timestamp>| {
            deadline.map_or(f64::INFINITY, |at| (at.as_micros() - now.as_micros()) as f64)
        };
        let site = |deadline| SiteLoad {
            target_micros: target(deadline),
            first_step: u32::MAX,
            ..SiteLoad::default()
        };
        let mut loads: Vec<SiteLoad> = self.deadlines.iter().map(site).collect();
        let mut total = 0.0;
        for (index, step) in (0u32..).zip(&self.steps) {
            let Some(site) = step.site else { continue };
            let load = &mut loads[site as usize];
            load.wave = step.wave;
            load.first_step = load.first_step.min(index);
            if !open[index as usize] {
                continue;
            }
            let work = bound.weighed(step, &demands[index as usize]);
            load.work_micros += work;
            total += work;
            load.path_micros = load.path_micros.max(step.remaining_micros);
        }
        // All of them take the bound.
        let scale = if total > 0.0 { bound.micros / total } else { 0.0 };
        loads.iter_mut().for_each(|load| load.work_micros *= scale);
        loads
    }

    /// The place of each site.
    fn sequence(&self, loads: &[SiteLoad], ends: f64) -> Vec<u32> {
        let mut waves: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (site, load) in (0u32..).zip(loads) {
            waves.entry(load.wave).or_default().push(site);
        }
        let mut places = vec![0; loads.len()];
        let (mut place, mut begins) = (0, 0.0);
        for sites in waves.into_values() {
            for site in of_wave(loads, sites, begins, ends) {
                places[site as usize] = place;
                place += 1;
                begins += loads[site as usize].work_micros;
            }
        }
        places
    }
}

/// The sites of one wave in their order, the wave beginning at `begins` microseconds and the run ending at `ends`.
fn of_wave(loads: &[SiteLoad], mut sites: Vec<u32>, begins: f64, ends: f64) -> Vec<u32> {
    let load = |site: u32| &loads[site as usize];
    sites.sort_by(|a, b| load(*a).due_for_target_micros().total_cmp(&load(*b).due_for_target_micros()));
    let late = late(loads, &sites, begins);
    let total: f64 = sites.iter().map(|&site| load(site).work_micros).sum();
    let due = |site: u32| {
        let by_end = load(site).due_micros(ends, PATHS_TO_END);
        if late.contains(&site) { by_end } else { by_end.min(load(site).due_for_target_micros()) }
    };
    sites.sort_by(|a, b| due(*a).total_cmp(&due(*b)));
    // A later target, and a later place in the plan, go last among equals.
    let candidate = |site: u32| {
        let target = load(site).target_micros.clamp(i64::MIN as f64, i64::MAX as f64) as i64;
        (load(site).class(), target, load(site).first_step, site)
    };
    let mut free = BinaryHeap::new();
    let mut until = begins + total;
    let mut backwards = Vec::new();
    loop {
        // Those that may be back as late as this.
        while let Some(&site) = sites.last()
            && (due(site) >= until || free.is_empty())
        {
            sites.pop();
            free.push(candidate(site));
        }
        let Some((.., site)) = free.pop() else { break };
        backwards.push(site);
        until -= load(site).work_micros;
    }
    backwards.reverse();
    backwards
}

/// The fewest sites without which the others can be in time; `sites` by what they are due.
fn late(loads: &[SiteLoad], sites: &[u32], begins: f64) -> HashSet<u32> {
    let mut kept: BinaryHeap<(u64, u32)> = BinaryHeap::new();
    let mut late = HashSet::new();
    let mut until = begins;
    for &site in sites {
        let load = &loads[site as usize];
        until += load.work_micros;
        kept.push((load.work_micros as u64, site));
        while until > load.due_for_target_micros()
            && let Some((_, largest)) = kept.pop()
        {
            until -= loads[largest as usize].work_micros;
            late.insert(largest);
        }
    }
    late
}

/// What the open steps take at least, and what each pool has to do.
struct Bound {
    micros: f64,
    /// By pool: its work over its capacity, in microseconds.
    pools: Vec<f64>,
    capacities: Vec<f64>,
}

impl Bound {
    fn new(order: &Order, demands: &Demands, capacities: &[u64], open: &[bool]) -> Self {
        let capacities: Vec<f64> = capacities.iter().map(|&units| units.max(1) as f64).collect();
        let mut pools = vec![0.0; capacities.len()];
        let mut longest = 0;
        for (index, step) in order.steps.iter().enumerate().filter(|(index, _)| open[*index]) {
            longest = longest.max(step.remaining_micros);
            for demand in &demands[index] {
                let pool = demand.pool as usize;
                pools[pool] += demand.units as f64 * step.estimate_micros as f64 / capacities[pool];
            }
        }
        let micros = pools.iter().copied().fold(longest as f64, f64::max);
        Self { micros, pools, capacities }
    }

    /// The work of a step on its pools, each by how much it has to do.
    fn weighed(&self, step: &StepOrder, demands: &[Demand]) -> f64 {
        let of_pool = |demand: &Demand| {
            let pool = demand.pool as usize;
            let share = demand.units as f64 / self.capacities[pool];
            share * (self.pools[pool] / self.micros.max(1.0)).powi(LOAD_POWER)
        };
        step.estimate_micros as f64 * demands.iter().map(of_pool).sum::<f64>()
    }

    /// By step, when it must start at the latest for the whole to take no longer than the bound; `order`: the sequence.
    fn latest_starts(&self, order: &Order, demands: &Demands, open: &[bool], sequence: &[u32]) -> Vec<i64> {
        let mut begun = vec![0.0; self.pools.len()];
        let mut latest = vec![0; sequence.len()];
        for &index in sequence {
            let step = &order.steps[index as usize];
            if !open[index as usize] {
                continue;
            }
            let mut start = self.micros - step.remaining_micros as f64;
            for demand in &demands[index as usize] {
                let pool = demand.pool as usize;
                start = start.min(begun[pool] + self.micros - self.pools[pool]);
                begun[pool] += demand.units as f64 * step.estimate_micros as f64 / self.capacities[pool];
            }
            latest[index as usize] = start as i64;
        }
        latest
    }
}
