//! Random fleets as steps and pools.

use std::collections::BTreeMap;

use muster_engine::scheduler::{Attempt, Input, RetryPolicy, Scheduler};
use muster_forecast::{Course, Work, virtual_run};
use muster_types::plan::{PlanStep, StepKey};
use muster_types::{Kind, SiteId, StoreId, Timestamp};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Steps of a slot at least, in the large fleets.
const STEPS_PER_SLOT: usize = 50;

/// What a scheduler is given.
pub(crate) struct Fleet {
    pub(crate) steps: Vec<PlanStep>,
    pub(crate) pools: BTreeMap<String, u64>,
    pub(crate) deadlines: BTreeMap<SiteId, Timestamp>,
}

/// Shape of a fleet: which shards there are, and what their pools hold.
struct Shape {
    shards: usize,
    stage_slots: u64,
    publish_slots: u64,
    global_slots: u64,
    requests: u64,
}

pub(crate) fn site(number: usize) -> SiteId {
    SiteId::new(format!("s{number:05}")).unwrap()
}

/// Sizes with a heavy tail: most are small, some are a hundred times the median.
fn size(random: &mut ChaCha8Rng, tail: f64) -> f64 {
    let uniform: f64 = random.random_range(0.001..1.0);
    uniform.powf(-1.0 / tail).min(300.0)
}

impl Fleet {
    /// A fleet with at least 50 steps a slot.
    pub(crate) fn large(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let shards = random.random_range(2..7);
        let stage_slots = random.random_range(1..5);
        let shape = Shape {
            shards,
            stage_slots,
            publish_slots: random.random_range(1..3),
            global_slots: random.random_range(2..=stage_slots * shards as u64),
            requests: random.random_range(8..33),
        };
        let slots = shards as u64 * (shape.stage_slots + shape.publish_slots);
        // A site has a dozen steps.
        let least = STEPS_PER_SLOT * usize::try_from(slots).unwrap() / 8;
        let sites = random.random_range(least..least * 2 + 1);
        Self::of_shape(&mut random, &shape, sites)
    }

    /// A fleet that is small enough to be solved.
    pub(crate) fn small(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let shape = Shape {
            shards: random.random_range(1..3),
            stage_slots: random.random_range(1..3),
            publish_slots: 1,
            global_slots: random.random_range(1..3),
            requests: random.random_range(2..5),
        };
        let sites = random.random_range(2..4);
        let mut fleet = Self::of_shape(&mut random, &shape, sites);
        while fleet.steps.len() > 10 {
            fleet.steps.pop();
        }
        fleet
    }

    fn of_shape(random: &mut ChaCha8Rng, shape: &Shape, sites: usize) -> Self {
        let mut pools =
            BTreeMap::from([("stage".to_owned(), shape.global_slots), ("s3".to_owned(), shape.requests)]);
        for shard in 0..shape.shards {
            pools.insert(format!("stage:{shard}"), shape.stage_slots);
            pools.insert(format!("publish:{shard}"), shape.publish_slots);
        }
        let mut fleet = Self { steps: Vec::new(), pools, deadlines: BTreeMap::new() };
        let tail = random.random_range(1.1..3.0);
        let kinds = random.random_range(1..5);
        for number in 0..sites {
            fleet.site(random, shape, number, tail, kinds);
        }
        fleet.set_deadlines(random, sites);
        fleet
    }

    fn push(&mut self, key: StepKey, after: Vec<u32>, demand: &[(&str, u64)], micros: f64) -> u32 {
        self.steps.push(PlanStep {
            key,
            after,
            after_ended: vec![],
            demand: demand.iter().copied().collect(),
            estimate_micros: micros as u64 + 1,
            wave: 0,
            group: None,
        });
        u32::try_from(self.steps.len()).unwrap() - 1
    }

    /// A store of metadata, and products that are published after it and before media.
    fn site(&mut self, random: &mut ChaCha8Rng, shape: &Shape, number: usize, tail: f64, kinds: usize) {
        let of_site = size(random, tail);
        let requests = shape.requests.min(4);
        let mut published: Vec<u32> = Vec::new();
        for nth in 0..=kinds {
            let kind: Kind = format!("k{nth}").parse().unwrap();
            let store = StoreId { site: site(number), kind };
            let shard = random.random_range(0..shape.shards);
            let (stage_pool, publish_pool) = (format!("stage:{shard}"), format!("publish:{shard}"));
            let work = 10_000.0 * of_site * random.random_range(0.2..1.0);
            let demand = [("stage", 1), (stage_pool.as_str(), 1), ("s3", random.random_range(1..=requests))];
            let stage = self.push(StepKey::Stage(store.clone()), vec![], &demand, 10_000.0 + work);
            let demand = [("stage", 1), (stage_pool.as_str(), 1)];
            let verify =
                self.push(StepKey::Verify(store.clone()), vec![stage], &demand, 5_000.0 + work * 0.4);
            let mut after = vec![verify];
            match nth {
                0 => {}
                last if last == kinds => after.extend(&published),
                _ => after.push(published[0]),
            }
            after.sort_unstable();
            let publish =
                self.push(StepKey::Publish(store), after, &[(&publish_pool, 1)], 8_000.0 + work * 0.5);
            published.push(publish);
        }
        let check = self.push(StepKey::Check(site(number)), published, &[("s3", 1)], 10_000.0);
        self.push(StepKey::Handback(site(number)), vec![check], &[("s3", 1)], 5_000.0);
    }

    /// Targets of three tiers: a share, all, and twice the time that the fleet takes at least; each from an outage of
    /// its own within a tenth of it.
    fn set_deadlines(&mut self, random: &mut ChaCha8Rng, sites: usize) {
        let least = super::bound::bound(self) as f64;
        let gold = random.random_range(0.2..0.8);
        for number in 0..sites {
            let target = match random.random_range(0..4) {
                0 => gold * least,
                1 | 2 => least,
                _ => 2.0 * least,
            };
            let outage = -random.random_range(0.0..0.1) * least;
            self.deadlines.insert(site(number), Timestamp::from_micros((outage + target) as i64));
        }
    }

    /// The course under the scheduler.
    pub(crate) fn course(&self) -> Course {
        let policy = RetryPolicy::default();
        let scheduler = Scheduler::new(&self.steps, &self.pools, &self.deadlines, policy).unwrap();
        virtual_run(scheduler, self.steps.len(), Input::Begin, Timestamp::EPOCH, &Estimates(&self.steps))
    }
}

/// Every step takes as long as it is estimated to.
pub(crate) struct Estimates<'a>(pub(crate) &'a [PlanStep]);

impl Work for Estimates<'_> {
    fn micros(&self, _now: Timestamp, attempts: &[Attempt]) -> u64 {
        attempts.iter().map(|attempt| self.0[attempt.step as usize].estimate_micros).max().unwrap()
    }
}

/// What counts of a course.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) makespan: u64,
    pub(crate) mean_back: f64,
    pub(crate) misses: usize,
}

impl Figures {
    /// From the end of each step, in microseconds.
    pub(crate) fn of(fleet: &Fleet, ends: &[u64]) -> Self {
        let back = |step: &PlanStep| matches!(step.key, StepKey::Handback(_));
        let backs: Vec<(&PlanStep, u64)> =
            fleet.steps.iter().zip(ends.iter().copied()).filter(|(step, _)| back(step)).collect();
        let missed = |(step, end): &&(&PlanStep, u64)| {
            *end as i64 > fleet.deadlines[step.key.site().unwrap()].as_micros()
        };
        Self {
            makespan: ends.iter().copied().max().unwrap_or(0),
            mean_back: backs.iter().map(|(_, end)| *end as f64).sum::<f64>() / backs.len() as f64,
            misses: backs.iter().filter(missed).count(),
        }
    }

    pub(crate) fn of_course(fleet: &Fleet, course: &Course) -> Self {
        let end = |step| course.end_of(step).expect("all steps ran").as_micros() as u64;
        let ends: Vec<u64> = (0..fleet.steps.len()).map(end).collect();
        Self::of(fleet, &ends)
    }
}
