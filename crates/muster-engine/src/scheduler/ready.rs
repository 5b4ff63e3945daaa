//! Ready steps, and which of them may start.
//!
//! Steps that need the same set of pools form a class; only the first of a class is ever tried. A class whose first
//! step does not fit is parked at the pool that is short, and tried again when something of that pool was given
//! back. Whoever is parked at a pool keeps later steps from its units, so that large demands are not starved by small.
//!
//! Steps of one group are known by it as well, so that they can be taken out together with the first of them.

use std::collections::{BTreeSet, HashMap};

use super::pools::{Demand, Demands, Pools};

/// Where a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Empty,
    /// To be tried, under the rank of its first step.
    Candidate(u32),
    /// Waiting for a pool, under the rank of its first step.
    Parked(u32, u32),
}

struct Class {
    /// Ranks of its ready steps.
    ready: BTreeSet<u32>,
    place: Place,
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
    /// By pool: rank of the first step, class.
    parked: Vec<BTreeSet<(u32, u32)>>,
    /// Pools of which something was given back since their parked classes were last tried.
    freed: BTreeSet<u32>,
    operations: u64,
}

impl Ready {
    pub(super) fn new(
        ranks: &[u32],
        demands: Demands,
        groups: impl Iterator<Item = Option<u32>>,
        pools: usize,
    ) -> Self {
        let mut steps = vec![0; ranks.len()];
        for (step, &rank) in (0u32..).zip(ranks) {
            steps[rank as usize] = step;
        }
        let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut class_of = Vec::with_capacity(demands.len());
        for demand in &demands {
            let next = numbers.len() as u32;
            let pools = demand.iter().map(|demand| demand.pool).collect();
            class_of.push(*numbers.entry(pools).or_insert(next));
        }
        let class = |_| Class { ready: BTreeSet::new(), place: Place::Empty };
        Self {
            ranks: ranks.to_vec(),
            steps,
            demands,
            class_of,
            classes: (0..numbers.len()).map(class).collect(),
            group_of: groups.collect(),
            groups: HashMap::new(),
            candidates: BTreeSet::new(),
            parked: vec![BTreeSet::new(); pools],
            freed: BTreeSet::new(),
            operations: 0,
        }
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
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
        self.freed.extend(self.demands[step as usize].iter().map(|demand| demand.pool));
    }

    /// Takes the next step that may start, with its units.
    pub(super) fn next(&mut self, pools: &mut Pools) -> Option<u32> {
        while let Some((rank, class)) = self.take_first() {
            self.operations += 1;
            let step = self.steps[rank as usize];
            match self.shortage(step, rank, pools) {
                Some(pool) => {
                    self.parked[pool as usize].insert((rank, class));
                    self.classes[class as usize].place = Place::Parked(pool, rank);
                    self.freed.remove(&pool);
                }
                None => {
                    pools.acquire(&self.demands[step as usize]);
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
        self.freed.retain(|&pool| !parked[pool as usize].is_empty());
        self.operations += self.freed.len() as u64;
        let woken = self.freed.iter().filter_map(|&pool| Some((*parked[pool as usize].first()?, pool))).min();
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

    /// A pool that keeps the step from starting: too little is free, or an earlier step waits for it.
    fn shortage(&self, step: u32, rank: u32, pools: &Pools) -> Option<u32> {
        let short = |demand: &&Demand| {
            let earlier = self.parked[demand.pool as usize].first().is_some_and(|&(first, _)| first < rank);
            earlier || !pools.fits(**demand)
        };
        self.demands[step as usize].iter().find(short).map(|demand| demand.pool)
    }
}
