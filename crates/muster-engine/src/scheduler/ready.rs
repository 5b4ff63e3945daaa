//! Ready steps, and which of them may start.
//!
//! Steps that need about the same of the same pools form a class; only the first of a class is ever tried. A class whose
//! first step does not fit is parked at the pool that is short, and tried again when something of that pool was given
//! back. Later steps that fit pass it, so that units are not idle while a large demand waits for enough of them; once so
//! many have, it keeps them from its units, so that large demands are not starved by small.
//!
//! A class that a [breaker](super::breaker) stops is parked at its gate, as at a pool behind all others.
//!
//! Steps of one group are known by it as well, so that they can be taken out together with the first of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::breaker::{Breakers, Gates};
use super::pools::{Demand, Demands, Pools};

/// So many later steps pass one that waits for a pool: as many as a large demand has room for small ones, several times.
const PASSES_MAX: u32 = 16;

/// So many classes are tried when a pool was given back: a bound on the cost of an end.
const TRIES_MAX: u32 = 8;

/// Where a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Empty,
    /// To be tried, under the rank of its first step.
    Candidate(u32),
    /// Waiting for a pool or at a gate, under the rank of its first step.
    Parked(u32, u32),
}

struct Class {
    /// Ranks of its ready steps.
    ready: BTreeSet<u32>,
    place: Place,
    /// What its steps go through, ascending.
    gates: Box<[u32]>,
}

/// See [`Ready::freed`].
#[derive(Clone, Copy, Debug)]
struct Tries {
    left: u32,
    /// The first rank that was not tried.
    from: u32,
}

pub(super) struct Ready {
    /// By step.
    ranks: Vec<u32>,
    /// By rank.
    steps: Vec<u32>,
    demands: Demands,
    /// By step.
    class_of: Vec<u32>,
    classes: Vec<Class>,
    /// By step.
    group_of: Vec<Option<u32>>,
    /// Ranks of the ready steps of each group that has some.
    groups: HashMap<u32, BTreeSet<u32>>,
    candidates: BTreeSet<(u32, u32)>,
    /// By pool, then by gate: rank of the first step, class.
    parked: Vec<BTreeSet<(u32, u32)>>,
    /// By pool: the rank of the first that waits there, and how many later ones have passed it.
    passed: Vec<(u32, u32)>,
    /// Pools of which something was given back, gates that were opened, and how far their parked classes were tried since.
    freed: BTreeMap<u32, Tries>,
    /// Their number: gates are parked at behind them.
    pools: u32,
    operations: u64,
}

/// What steps of one class have in common: pools with the magnitude of the units, and gates.
type Alike<'g> = (Vec<(u32, u32)>, &'g [u32]);

impl Ready {
    /// None is ready, and none may be before [`Self::set_ranks`].
    pub(super) fn new(
        demands: Demands,
        groups: impl Iterator<Item = Option<u32>>,
        pools: usize,
        gates: &Gates,
    ) -> Self {
        let mut numbers: HashMap<Alike<'_>, u32> = HashMap::new();
        let mut classes = Vec::new();
        let mut class_of = Vec::with_capacity(demands.len());
        for (step, demand) in demands.iter().enumerate() {
            // The same to a factor of two: units of bytes differ from store to store.
            let units = demand.iter().map(|demand| (demand.pool, demand.units.ilog2())).collect();
            let gates: &[u32] = gates.of_step.get(step).map_or(&[], |gates| gates);
            class_of.push(*numbers.entry((units, gates)).or_insert_with(|| {
                classes.push(Class { ready: BTreeSet::new(), place: Place::Empty, gates: gates.into() });
                classes.len() as u32 - 1
            }));
        }
        Self {
            ranks: Vec::new(),
            steps: Vec::new(),
            demands,
            class_of,
            classes,
            group_of: groups.collect(),
            groups: HashMap::new(),
            candidates: BTreeSet::new(),
            parked: vec![BTreeSet::new(); pools + gates.shards.len()],
            passed: vec![(0, 0); pools],
            pools: pools as u32,
            freed: BTreeMap::new(),
            operations: 0,
        }
    }

    /// The order, by step, while none is ready.
    pub(super) fn set_ranks(&mut self, ranks: Vec<u32>) {
        self.steps = vec![0; ranks.len()];
        for (step, &rank) in (0u32..).zip(&ranks) {
            self.steps[rank as usize] = step;
        }
        self.ranks = ranks;
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn demands(&self) -> &Demands {
        &self.demands
    }

    pub(super) fn demand(&self, step: u32) -> &[Demand] {
        &self.demands[step as usize]
    }

    /// Adds a step that waits for nothing but its pools.
    pub(super) fn insert(&mut self, step: u32) {
        self.operations += 1;
        let class = self.class_of[step as usize];
        let rank = self.ranks[step as usize];
        self.classes[class as usize].ready.insert(rank);
        if let Some(group) = self.group_of[step as usize] {
            self.groups.entry(group).or_default().insert(rank);
        }
        match self.classes[class as usize].place {
            Place::Candidate(first) | Place::Parked(_, first) if first < rank => {}
            _ => self.nominate(class),
        }
    }

    /// A step gave its pools back.
    pub(super) fn released(&mut self, step: u32) {
        let all = Tries { left: TRIES_MAX, from: 0 };
        self.freed.extend(self.demands[step as usize].iter().map(|demand| (demand.pool, all)));
    }

    /// What a step goes through, ascending.
    pub(super) fn gates(&self, step: u32) -> &[u32] {
        &self.classes[self.class_of[step as usize] as usize].gates
    }

    /// A gate lets steps through again: all of them, or those up to the first that it stops.
    pub(super) fn opened(&mut self, gate: u32) {
        self.freed.insert(self.pools + gate, Tries { left: 1, from: 0 });
    }

    /// Takes the next step that may start, with its units.
    pub(super) fn next(&mut self, pools: &mut Pools, breakers: &Breakers) -> Option<u32> {
        while let Some((rank, class)) = self.take_first() {
            self.operations += 1;
            let step = self.steps[rank as usize];
            let shut = breakers.shut(self.gates(step)).map(|gate| self.pools + gate);
            match shut.or_else(|| self.shortage(step, rank, pools)) {
                Some(pool) => {
                    self.parked[pool as usize].insert((rank, class));
                    self.classes[class as usize].place = Place::Parked(pool, rank);
                    self.tried(pool, rank);
                }
                None => {
                    pools.acquire(&self.demands[step as usize]);
                    self.count_passes(step, rank);
                    self.classes[class as usize].ready.remove(&rank);
                    self.leave_group(step, rank);
                    self.nominate(class);
                    return Some(step);
                }
            }
        }
        None
    }

    /// The ready steps of the group of `step`, by their order.
    pub(super) fn group_of(&self, step: u32) -> impl Iterator<Item = u32> {
        let group = self.group_of[step as usize].and_then(|group| self.groups.get(&group));
        group.into_iter().flatten().map(|&rank| self.steps[rank as usize])
    }

    /// Takes a ready step out, without units of its own.
    pub(super) fn remove(&mut self, step: u32) {
        self.operations += 1;
        let class = self.class_of[step as usize];
        let rank = self.ranks[step as usize];
        self.classes[class as usize].ready.remove(&rank);
        self.leave_group(step, rank);
        match self.classes[class as usize].place {
            Place::Candidate(first) | Place::Parked(_, first) if first == rank => self.nominate(class),
            _ => {}
        }
    }

    fn leave_group(&mut self, step: u32, rank: u32) {
        let Some(group) = self.group_of[step as usize] else { return };
        if let Some(ready) = self.groups.get_mut(&group) {
            ready.remove(&rank);
            if ready.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// Makes a class a candidate under its first step, wherever it was.
    fn nominate(&mut self, class: u32) {
        let state = &mut self.classes[class as usize];
        match state.place {
            Place::Empty => {}
            Place::Candidate(rank) => {
                self.candidates.remove(&(rank, class));
            }
            Place::Parked(pool, rank) => {
                self.parked[pool as usize].remove(&(rank, class));
            }
        }
        state.place = match state.ready.first() {
            Some(&rank) => {
                self.candidates.insert((rank, class));
                Place::Candidate(rank)
            }
            None => Place::Empty,
        };
    }

    /// The first of the candidates and of those parked at pools that were freed.
    fn take_first(&mut self) -> Option<(u32, u32)> {
        let parked = &self.parked;
        let next = |pool: u32, tries: Tries| parked[pool as usize].range((tries.from, 0)..).next().copied();
        self.freed.retain(|&pool, tries| next(pool, *tries).is_some());
        self.operations += self.freed.len() as u64;
        let woken = self.freed.iter().filter_map(|(&pool, &tries)| Some((next(pool, tries)?, pool))).min();
        match (self.candidates.first().copied(), woken) {
            (Some(candidate), woken) if woken.is_none_or(|(first, _)| candidate < first) => {
                self.candidates.remove(&candidate);
                self.classes[candidate.1 as usize].place = Place::Empty;
                Some(candidate)
            }
            (_, Some((first, pool))) => {
                self.parked[pool as usize].remove(&first);
                self.classes[first.1 as usize].place = Place::Empty;
                Some(first)
            }
            _ => None,
        }
    }

    /// A class was found short of a pool, or before a gate.
    fn tried(&mut self, pool: u32, rank: u32) {
        let Some(tries) = self.freed.get_mut(&pool) else { return };
        tries.from = tries.from.max(rank + 1);
        tries.left -= 1;
        if tries.left == 0 {
            self.freed.remove(&pool);
        }
    }

    /// A step starts, perhaps past others that wait for its pools.
    fn count_passes(&mut self, step: u32, rank: u32) {
        for demand in &self.demands[step as usize] {
            let Some(&(first, _)) = self.parked[demand.pool as usize].first() else { continue };
            if first < rank {
                let passed = &mut self.passed[demand.pool as usize];
                *passed = (first, if passed.0 == first { passed.1 + 1 } else { 1 });
            }
        }
    }

    /// A pool that keeps the step from starting: too little is free, or an earlier step has waited for it long enough.
    fn shortage(&self, step: u32, rank: u32, pools: &Pools) -> Option<u32> {
        let short = |demand: &&Demand| {
            let pool = demand.pool as usize;
            let kept = self.parked[pool].first().is_some_and(|&(first, _)| {
                first < rank && self.passed[pool].0 == first && self.passed[pool].1 >= PASSES_MAX
            });
            kept || !pools.fits(**demand)
        };
        self.demands[step as usize].iter().find(short).map(|demand| demand.pool)
    }
}
