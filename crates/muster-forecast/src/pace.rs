//! How fast steps go: stated defaults, corrected by what was measured.
//!
//! What is measured is a *start*: one step, or several of a group that ran together. Its duration is taken as
//! `fixed · F + rows · R`. `F` is what a start costs beside its rows and `R` what its rows take, both by the planner's stated
//! rates; the two factors are fitted, by verb and shard, to what was measured there, and leave what was known before as much
//! weight as a few starts. A shard that was never measured has the factors of its driver.
//!
//! # Invariants
//! - Factors are positive and bounded, whatever was measured.

use std::collections::{BTreeMap, HashMap};

use muster_engine::journal::{RunState, StepPhase};
use muster_engine::status::verb;
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::{ShardName, StoreId, Timestamp};

/// What a step costs beside its rows, by the planner's stated rates, in microseconds; the rest of its estimate is its rows.
const STEP_MICROS: u64 = 10_000;

/// The same of each further step that starts with it.
const COMPANION_MICROS: u64 = 500;

/// So many starts does what was known before weigh.
const PRIOR_STARTS: f64 = 3.0;

/// A factor beyond these is no pace but a fault: an hour where a second was expected, or the reverse.
const FACTORS: std::ops::RangeInclusive<f64> = 0.000_3..=3_600.0;

/// How far off a rate is taken to be that nobody measured: the defaults are for one ordinary machine.
const SPREAD_STATED: f64 = 1.0;

/// How far off the most often measured rate is taken to be: machines are shared, and runs differ.
const SPREAD_LEAST: f64 = 0.1;

/// Whose pace it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Driver(String),
    /// Of this driver, this shard.
    Shard(String, ShardName),
    /// Of steps without a shard.
    Run,
}

impl Whose {
    /// Of what it is a part, whose factors it has until it is measured itself.
    fn general(&self) -> Option<Self> {
        match self {
            Self::Shard(driver, _) => Some(Self::Driver(driver.clone())),
            Self::Driver(_) | Self::Run => None,
        }
    }
}

/// What a start takes, by the stated rates: microseconds beside rows, and for rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stated {
    fixed: f64,
    rows: f64,
}

impl Stated {
    fn micros(self) -> f64 {
        self.fixed + self.rows
    }
}

/// Factors on [`Stated`], and how sure they are.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Factors {
    fixed: f64,
    rows: f64,
    /// How far off a sum of such starts may be, as a share.
    spread: f64,
}

impl Factors {
    const STATED: Self = Self { fixed: 1.0, rows: 1.0, spread: SPREAD_STATED };

    fn micros(&self, stated: Stated) -> f64 {
        self.fixed * stated.fixed + self.rows * stated.rows
    }
}

/// Sums over measured starts, each weighed by the inverse of what it should take: then the sums of what is forecast and of
/// what was measured agree, and short starts count as well as long ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    starts: u64,
    fixed_fixed: f64,
    fixed_rows: f64,
    rows_rows: f64,
    fixed_took: f64,
    rows_took: f64,
    took_took: f64,
    took: f64,
    fixed: f64,
    rows: f64,
}

impl Sums {
    fn add(&mut self, stated: Stated, took: f64) {
        let weight = 1.0 / stated.micros().max(1.0);
        self.starts += 1;
        self.fixed_fixed += weight * stated.fixed * stated.fixed;
        self.fixed_rows += weight * stated.fixed * stated.rows;
        self.rows_rows += weight * stated.rows * stated.rows;
        self.fixed_took += weight * stated.fixed * took;
        self.rows_took += weight * stated.rows * took;
        self.took_took += weight * took * took;
        self.took += took;
        self.fixed += stated.fixed;
        self.rows += stated.rows;
    }

    /// The factors that fit best, with `prior` as if measured [`PRIOR_STARTS`] times.
    fn fit(&self, prior: Factors) -> Factors {
        if self.starts == 0 {
            return prior;
        }
        let each = PRIOR_STARTS / self.starts as f64;
        let (pull_fixed, pull_rows) = (self.fixed_fixed * each, self.rows_rows * each);
        let (a, b, c) = (self.fixed_fixed + pull_fixed, self.fixed_rows, self.rows_rows + pull_rows);
        let (y, z) = (self.fixed_took + pull_fixed * prior.fixed, self.rows_took + pull_rows * prior.rows);
        let determinant = a * c - b * b;
        let alone = |own: f64, against: f64| if own > 0.0 { against / own } else { 0.0 };
        let (mut fixed, mut rows) = if determinant > 1e-9 * a * c {
            ((y * c - z * b) / determinant, (z * a - y * b) / determinant)
        } else {
            (alone(a, y), prior.rows)
        };
        // What would be below nothing is nothing, and the other takes all.
        if fixed < 0.0 {
            (fixed, rows) = (0.0, alone(c, z));
        } else if rows < 0.0 {
            (fixed, rows) = (alone(a, y), 0.0);
        }
        let bounded = |factor: f64| factor.clamp(*FACTORS.start(), *FACTORS.end());
        Factors { fixed: bounded(fixed), rows: bounded(rows), spread: self.spread(fixed, rows) }
    }

    /// The spread of single starts around the fit, over the root of how many there are; at first with that of the stated.
    fn spread(&self, fixed: f64, rows: f64) -> f64 {
        let square = self.took_took - 2.0 * (fixed * self.fixed_took + rows * self.rows_took)
            + fixed * fixed * self.fixed_fixed
            + 2.0 * fixed * rows * self.fixed_rows
            + rows * rows * self.rows_rows;
        let of_one = (square.max(0.0) / self.took_took.max(1e-9)).sqrt();
        let starts = self.starts as f64;
        let doubt = SPREAD_STATED * PRIOR_STARTS / (PRIOR_STARTS + starts);
        (SPREAD_LEAST + doubt + of_one / starts.sqrt()).min(SPREAD_STATED)
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pace {
    known: BTreeMap<(&'static str, Whose), Factors>,
    sums: BTreeMap<(&'static str, Whose), Sums>,
    /// Verbs that were not measured go as those that were: a busy machine slows all.
    others: Option<f64>,
    starts: u64,
}

impl Pace {
    /// The planner's stated rates, and nothing measured.
    pub fn stated() -> Self {
        Self::default()
    }

    /// Measured starts that it rests on.
    pub fn measured(&self) -> u64 {
        self.starts
    }

    /// Learns from what `state` says had ended in a run of `plan` by `upto`.
    pub fn learn(&mut self, plan: &Plan, state: &RunState, upto: Timestamp) {
        let owners = Owners::of(plan);
        for start in starts(plan, state, upto) {
            let Some(first) = start.steps.first().map(|&step| &plan.steps[step]) else { continue };
            let stated = stated(start.steps.iter().map(|&step| &plan.steps[step]));
            for whose in owners.whose(&first.key) {
                self.sums.entry((verb(&first.key), whose)).or_default().add(stated, start.micros);
            }
            self.starts += 1;
        }
        self.refit();
    }

    /// A pace that begins with what this one knows and is to learn from a run under way, whose own starts weigh more than
    /// those of other days.
    #[must_use]
    pub fn for_run(&self) -> Self {
        Self { known: self.fitted(), sums: BTreeMap::new(), others: self.others, starts: self.starts }
    }

    fn fitted(&self) -> BTreeMap<(&'static str, Whose), Factors> {
        let mut fitted = self.known.clone();
        // Those of a driver come first, and are what a shard's begin with.
        for ((verb, whose), sums) in &self.sums {
            let known = |whose: Whose| fitted.get(&(*verb, whose)).copied();
            let prior = known(whose.clone()).or_else(|| known(whose.general()?));
            let factors = sums.fit(prior.unwrap_or(Factors::STATED));
            fitted.insert((*verb, whose.clone()), factors);
        }
        fitted
    }

    /// How much slower than known all went that was measured.
    fn refit(&mut self) {
        let (mut took, mut expected) = (0.0, 0.0);
        for ((verb, whose), sums) in &self.sums {
            // What is a part of another is counted there.
            if whose.general().is_none() {
                let known = self.known.get(&(*verb, whose.clone())).copied().unwrap_or(Factors::STATED);
                took += sums.took;
                expected += known.micros(Stated { fixed: sums.fixed, rows: sums.rows });
            }
        }
        self.others = (expected > 0.0).then(|| (took / expected).clamp(*FACTORS.start(), *FACTORS.end()));
    }

    /// The pace of the steps of `plan`.
    pub fn of<'p>(&self, plan: &'p Plan) -> PlanPace<'p> {
        let fitted = self.fitted();
        let owners = Owners::of(plan);
        let mut cache: HashMap<(&'static str, Option<ShardName>), Factors> = HashMap::new();
        let mut numbers = Vec::new();
        let mut all: Vec<Factors> = Vec::new();
        for step in &plan.steps {
            let name = verb(&step.key);
            let shard = owners.shard(&step.key).cloned();
            let found = *cache.entry((name, shard)).or_insert_with(|| {
                let mut whose = owners.whose(&step.key).into_iter().rev();
                let measured = whose.find_map(|whose| fitted.get(&(name, whose)).copied());
                measured.unwrap_or_else(|| {
                    let factor = self.others.unwrap_or(1.0);
                    Factors { fixed: factor, rows: factor, spread: SPREAD_STATED }
                })
            });
            let number = all.iter().position(|known| *known == found).unwrap_or_else(|| {
                all.push(found);
                all.len() - 1
            });
            numbers.push(number as u32);
        }
        PlanPace { steps: &plan.steps, numbers, factors: all }
    }
}

/// The pace of each step of a plan.
#[derive(Debug)]
pub struct PlanPace<'p> {
    steps: &'p [PlanStep],
    /// By step: which factors.
    numbers: Vec<u32>,
    factors: Vec<Factors>,
}

/// Where in the range of what is likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likely {
    /// As fast as the spread of the rates allows.
    Fast,
    /// As measured.
    Even,
    /// As slow as the spread allows.
    Slow,
}

impl PlanPace<'_> {
    /// How long steps take that start together, by their indexes, in microseconds.
    pub fn micros(&self, steps: &[u32], likely: Likely) -> u64 {
        let Some(&first) = steps.first() else { return 0 };
        let Some(factors) = self.numbers.get(first as usize).and_then(|&nth| self.factors.get(nth as usize))
        else {
            return 0;
        };
        let known = steps.iter().filter_map(|&step| self.steps.get(step as usize));
        let micros = factors.micros(stated(known));
        let micros = match likely {
            Likely::Fast => micros / (1.0 + factors.spread),
            Likely::Even => micros,
            Likely::Slow => micros * (1.0 + factors.spread),
        };
        micros.round().max(1.0) as u64
    }
}

fn stated<'s>(steps: impl Iterator<Item = &'s PlanStep>) -> Stated {
    let mut stated = Stated::default();
    for (nth, step) in steps.enumerate() {
        let fixed = step.estimate_micros.min(STEP_MICROS);
        stated.fixed += if nth == 0 { fixed } else { fixed.min(COMPANION_MICROS) } as f64;
        stated.rows += (step.estimate_micros - fixed) as f64;
    }
    stated
}

/// Steps that started together, and how long until all of them had ended.
struct Start {
    steps: Vec<usize>,
    micros: f64,
}

/// Starts that had ended well by `upto`.
fn starts(plan: &Plan, state: &RunState, upto: Timestamp) -> Vec<Start> {
    type Key = (Option<u32>, Timestamp, usize);
    let mut gathered: BTreeMap<Key, (Vec<usize>, Timestamp)> = BTreeMap::new();
    for (index, (step, known)) in plan.steps.iter().zip(state.steps()).enumerate() {
        let (StepPhase::Succeeded, Some(began), Some(ended)) =
            (known.phase, known.started_at, known.ended_at)
        else {
            continue;
        };
        if ended > upto {
            continue;
        }
        // Those of a group that began at one moment began together.
        let alone = if step.group.is_some() { usize::MAX } else { index };
        let start = gathered.entry((step.group, began, alone)).or_insert((Vec::new(), ended));
        start.0.push(index);
        start.1 = start.1.max(ended);
    }
    let start = |((_, began, _), (steps, ended)): (Key, (Vec<usize>, Timestamp))| Start {
        steps,
        micros: ended.seconds_since(began).max(0.0) * 1e6,
    };
    gathered.into_iter().map(start).collect()
}

/// Which shard each store is of, and its driver: by the shard that held it, so that drills speak for it.
struct Owners<'p> {
    stores: HashMap<StoreId, (&'p ShardName, &'p ShardName)>,
    plan: &'p Plan,
}

impl<'p> Owners<'p> {
    fn of(plan: &'p Plan) -> Self {
        let stores = plan.sites.iter().flat_map(|site| {
            let id = |kind: &muster_types::Kind| StoreId { site: site.site.clone(), kind: kind.clone() };
            site.stores.iter().map(move |store| (id(&store.kind), (&store.source, &store.shard)))
        });
        Self { stores: stores.collect(), plan }
    }

    /// The shard that a step speaks of, and where it takes place.
    fn places<'k>(&'k self, key: &'k StepKey) -> Option<(&'k ShardName, &'k ShardName)> {
        match key {
            StepKey::Provision(shard) | StepKey::DigestBefore(shard) | StepKey::DigestAfter(shard) => {
                Some((shard, shard))
            }
            key => self.stores.get(key.store()?).copied(),
        }
    }

    fn shard<'k>(&'k self, key: &'k StepKey) -> Option<&'k ShardName> {
        self.places(key).map(|(shard, _)| shard)
    }

    /// From the general to the special.
    fn whose(&self, key: &StepKey) -> Vec<Whose> {
        let Some((shard, place)) = self.places(key) else { return vec![Whose::Run] };
        let driver = self.plan.shards.get(place).map_or("", |shard| &shard.driver).to_owned();
        vec![Whose::Driver(driver.clone()), Whose::Shard(driver, shard.clone())]
    }
}
