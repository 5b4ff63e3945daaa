//! The scheduler against the rules it promises, on random plans and random outcomes.

mod breakers;
mod groups;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::journal::{NeighbourDigest, Outcome, Published, Record};
use muster_types::plan::{PlanStep, StepKey};
use muster_types::{Digest, Kind, Position, SiteId, StoreId, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::journal::{RunState, StepPhase};

fn site(number: usize) -> SiteId {
    SiteId::new(format!("s{number}")).unwrap()
}

fn store(number: usize, kind: &str) -> StoreId {
    StoreId { site: site(number), kind: kind.parse::<Kind>().unwrap() }
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn started(commands: &[Command]) -> impl Iterator<Item = u32> {
    let attempts = commands.iter().map(|command| match command {
        Command::Start(attempts) => attempts.as_slice(),
        _ => &[],
    });
    attempts.flatten().map(|attempt| attempt.step)
}

fn outcome_of(key: &StepKey) -> Outcome {
    let digest =
        || NeighbourDigest { position: Position(0), rows: 0, state: String::new(), digest: Digest::of(b"") };
    match key {
        StepKey::Provision(_) => Outcome::Provisioned { tables: 1, rows: 0 },
        StepKey::Stage(_) => Outcome::Staged { rows: 0, bytes: 0, tables: BTreeMap::new() },
        StepKey::Verify(_) => Outcome::Verified { rows: 0, digest: Digest::of(b""), migrated: None },
        StepKey::Publish(_) => Outcome::Published(Published {
            rows: 0,
            replaced: 0,
            positions: None,
            blocked_micros: 0,
            at: at(0),
        }),
        StepKey::Check(_) => Outcome::Checked { changes: 0, compared_live: vec![], read_whole: false },
        StepKey::References(_) => Outcome::ReferencesCounted { counts: vec![] },
        StepKey::KindCheck { .. } => Outcome::KindChecked { output: String::new() },
        StepKey::Handback(_) => Outcome::HandedBack,
        StepKey::DigestBefore(_) => Outcome::DigestedBefore(digest()),
        StepKey::DigestAfter(_) => Outcome::DigestedAfter { digest: digest(), changes: 0 },
    }
}

/// Steps of sites that each publish `stores` stores one after another; publishes are digested around in one shard.
fn fleet(
    sites: usize,
    stores: usize,
    estimates: impl Fn(usize, usize) -> u64,
    digests: bool,
) -> Vec<PlanStep> {
    let mut steps: Vec<PlanStep> = Vec::new();
    let mut push = |key, after: Vec<u32>, demand: &[(&str, u64)], estimate_micros| {
        let demand = demand.iter().copied().collect();
        steps.push(PlanStep {
            key,
            after,
            after_ended: vec![],
            demand,
            estimate_micros,
            wave: 0,
            group: None,
        });
        u32::try_from(steps.len()).unwrap() - 1
    };
    let before = digests.then(|| push(StepKey::DigestBefore("d".parse().unwrap()), vec![], &[], 1));
    let mut publishes = Vec::new();
    for number in 0..sites {
        let mut previous: Option<u32> = None;
        for nth in 0..stores {
            let id = store(number, &format!("k{nth}"));
            let shard = nth % 3;
            let estimate = estimates(number, nth);
            let slot = format!("stage:{shard}");
            let stage =
                push(StepKey::Stage(id.clone()), vec![], &[("s3", 1 + estimate % 3), (&slot, 1)], estimate);
            let verify = push(StepKey::Verify(id.clone()), vec![stage], &[(&slot, 1)], estimate / 2);
            let mut after = vec![verify];
            after.extend(previous);
            after.extend(before);
            let slot = format!("publish:{shard}");
            previous = Some(push(StepKey::Publish(id), after, &[(&slot, 1)], estimate));
            publishes.extend(previous);
        }
        let check = push(StepKey::Check(site(number)), previous.into_iter().collect(), &[], 1);
        push(StepKey::Handback(site(number)), vec![check], &[], 1);
    }
    if let Some(before) = before {
        push(StepKey::DigestAfter("d".parse().unwrap()), vec![before], &[], 1);
        steps.last_mut().unwrap().after_ended = publishes;
    }
    steps
}

fn pools() -> BTreeMap<String, u64> {
    let mut pools = BTreeMap::from([("s3".to_owned(), 6)]);
    for shard in 0..3 {
        pools.insert(format!("stage:{shard}"), 2);
        pools.insert(format!("publish:{shard}"), 1);
    }
    pools
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Succeeds,
    Permanent,
    Transient,
    Throttled,
    Unavailable,
    RepositoryAway,
}

/// Runs a scheduler in virtual time and checks the rules after every input.
struct Simulation<'a> {
    steps: &'a [PlanStep],
    pools: BTreeMap<String, u64>,
    scheduler: Scheduler,
    state: RunState,
    now: i64,
    wake: Option<Timestamp>,
    /// Running steps by the time that they end.
    running: BTreeSet<(i64, u32)>,
    /// The batch of each step's last attempt, and how many began in each.
    batch_of: BTreeMap<u32, usize>,
    sizes: BTreeMap<usize, usize>,
    batches: usize,
    log: Vec<Command>,
    done: Option<(u64, u64, bool)>,
    most_used: BTreeMap<String, u64>,
}

impl<'a> Simulation<'a> {
    fn new(steps: &'a [PlanStep], policy: RetryPolicy) -> Self {
        Self::with_gates(steps, policy, Gates::default())
    }

    fn with_gates(steps: &'a [PlanStep], policy: RetryPolicy, gates: Gates) -> Self {
        let scheduler = Scheduler::with_gates(steps, &pools(), &BTreeMap::new(), policy, gates).unwrap();
        let mut state = RunState::new(steps);
        let plan = muster_types::plan::Plan::unsealed_id();
        state.apply(&Record::Opened { plan, at: at(0), operator: String::new() }).unwrap();
        state.apply(&Record::Taken { epoch: muster_types::Epoch(1), by: String::new(), at: at(0) }).unwrap();
        Self {
            steps,
            pools: pools(),
            scheduler,
            state,
            now: 0,
            wake: None,
            running: BTreeSet::new(),
            batch_of: BTreeMap::new(),
            sizes: BTreeMap::new(),
            batches: 0,
            log: Vec::new(),
            done: None,
            most_used: BTreeMap::new(),
        }
    }

    fn input(&mut self, input: Input) {
        for command in self.scheduler.step(at(self.now), input) {
            match &command {
                Command::Record(record) => self.state.apply(record).unwrap(),
                Command::Start(attempts) => self.start(attempts),
                Command::WakeAt(wake) => self.wake = Some(*wake),
                Command::Done { sites_restored, sites_failed, cancelled } => {
                    assert!(self.running.is_empty() && self.done.is_none());
                    self.done = Some((*sites_restored, *sites_failed, *cancelled));
                }
            }
            self.log.push(command);
        }
        self.check_pools();
    }

    fn start(&mut self, attempts: &[Attempt]) {
        let group = self.steps[attempts[0].step as usize].group;
        assert!(attempts.len() == 1 || group.is_some(), "{attempts:?}");
        for Attempt { step, attempt } in attempts {
            let planned = &self.steps[*step as usize];
            let known = self.state.step(&planned.key).unwrap();
            assert_eq!((known.phase, known.attempts), (StepPhase::Running, *attempt), "started unrecorded");
            assert_eq!(planned.group, group);
            let took = 1 + i64::try_from(planned.estimate_micros).unwrap();
            self.running.insert((self.now + took, *step));
            self.batch_of.insert(*step, self.batches);
        }
        self.sizes.insert(self.batches, attempts.len());
        self.batches += 1;
    }

    fn check_pools(&mut self) {
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        // Whoever began together holds one grant.
        let grants: BTreeMap<usize, u32> =
            self.running.iter().map(|(_, step)| (self.batch_of[step], *step)).collect();
        for step in grants.into_values() {
            for (pool, units) in self.steps[step as usize].demand.iter() {
                *used.entry(pool.to_owned()).or_default() += units;
            }
        }
        for (pool, units) in used {
            assert!(units <= self.pools[&pool], "{pool}: {units}");
            let most = self.most_used.entry(pool).or_default();
            *most = (*most).max(units);
        }
        for pool in self.scheduler.pools() {
            assert!(pool.limit >= 1 && pool.limit <= pool.capacity, "{pool:?}");
        }
    }

    /// Lets the next thing happen; `false` when nothing will.
    fn advance(&mut self, fate: &mut impl FnMut(&StepKey, u32) -> Fate) -> bool {
        let end = self.running.first().copied();
        match (end, self.wake) {
            (Some((end, step)), wake) if wake.is_none_or(|wake| end <= wake.as_micros()) => {
                self.running.remove(&(end, step));
                self.now = self.now.max(end);
                let key = &self.steps[step as usize].key;
                let attempt = self.state.step(key).unwrap().attempts;
                let class = match fate(key, attempt) {
                    Fate::Succeeds => {
                        self.input(Input::Finished { step, outcome: outcome_of(key) });
                        return true;
                    }
                    Fate::Permanent => ErrorClass::Permanent,
                    Fate::Transient => ErrorClass::Transient,
                    Fate::Throttled => ErrorClass::Throttled,
                    Fate::Unavailable => ErrorClass::Unavailable,
                    Fate::RepositoryAway => ErrorClass::RepositoryAway,
                };
                self.input(Input::Failed { step, class, error: format!("{class:?}") });
                true
            }
            (_, Some(wake)) => {
                self.wake = None;
                self.now = self.now.max(wake.as_micros());
                self.input(Input::Tick);
                true
            }
            (_, None) => false,
        }
    }

    fn run(&mut self, mut fate: impl FnMut(&StepKey, u32) -> Fate) {
        self.input(Input::Begin);
        while self.done.is_none() {
            assert!(self.advance(&mut fate), "stuck: {:?}", self.state.steps());
        }
        assert!(self.running.is_empty());
    }

    fn phase(&self, key: &StepKey) -> StepPhase {
        self.state.step(key).unwrap().phase
    }
}

/// Steps that depend on a failed one through `after`.
fn tainted(steps: &[PlanStep], failed: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut tainted: BTreeSet<u32> = BTreeSet::new();
    loop {
        let before = tainted.len();
        for (index, step) in (0u32..).zip(steps) {
            if step.after.iter().any(|edge| failed.contains(edge) || tainted.contains(edge)) {
                tainted.insert(index);
            }
        }
        if tainted.len() == before {
            return tainted;
        }
    }
}

fn fate_of(seed: u64, key: &StepKey, attempt: u32) -> Fate {
    let digest = Digest::of(format!("{seed} {key} {attempt}").as_bytes()).0;
    match digest[0] % 32 {
        0 => Fate::Permanent,
        1..=4 => Fate::Transient,
        5..=7 => Fate::Throttled,
        8..=9 => Fate::Unavailable,
        _ => Fate::Succeeds,
    }
}

#[test]
fn a_wake_that_comes_too_early_is_asked_for_again() {
    let steps = fleet(1, 1, |_, _| 10, false);
    let mut scheduler = Scheduler::new(&steps, &pools(), &BTreeMap::new(), RetryPolicy::default()).unwrap();
    let commands = scheduler.step(at(0), Input::Begin);
    let step = started(&commands).next().unwrap();
    let failed = Input::Failed { step, class: ErrorClass::Transient, error: String::new() };
    let wake = |commands: &[Command]| {
        commands.iter().find_map(|command| match command {
            Command::WakeAt(wake) => Some(*wake),
            _ => None,
        })
    };
    let wanted = wake(&scheduler.step(at(10), failed)).unwrap();
    let early = scheduler.step(wanted.plus_micros(-1), Input::Tick);
    assert_eq!((wake(&early), started(&early).count()), (Some(wanted), 0));
    assert_eq!(started(&scheduler.step(wanted, Input::Tick)).collect::<Vec<_>>(), [step]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_step_ends_as_the_failures_say(
        seed: u64, sites in 1usize..9, stores in 1usize..5, digests: bool, group_size in 1usize..6
    ) {
        let policy = RetryPolicy { seed, ..RetryPolicy::default() };
        let estimate = |number: usize, nth: usize| (seed >> (nth % 8)) % 50 + number as u64;
        let steps = groups::grouped(fleet(sites, stores, estimate, digests), group_size);
        let mut simulation = Simulation::new(&steps, policy);
        simulation.run(|key, attempt| fate_of(seed, key, attempt));
        simulation.fails_for_good_only_alone();
        let failed: BTreeSet<u32> = (0u32..)
            .zip(&steps)
            .filter(|(_, step)| simulation.phase(&step.key) == StepPhase::Failed)
            .map(|(index, _)| index)
            .collect();
        let tainted = tainted(&steps, &failed);
        for (index, step) in (0u32..).zip(&steps) {
            let wanted = if failed.contains(&index) {
                StepPhase::Failed
            } else if tainted.contains(&index) {
                StepPhase::Blocked
            } else {
                StepPhase::Succeeded
            };
            prop_assert_eq!(simulation.phase(&step.key), wanted, "{}", step.key);
        }
        let back = (0..sites).filter(|&n| simulation.phase(&StepKey::Handback(site(n))) == StepPhase::Succeeded).count();
        prop_assert_eq!(simulation.done, Some((back as u64, (sites - back) as u64, false)));
        prop_assert!(simulation.state.finished().is_some());

        let mut again = Simulation::new(&steps, policy);
        again.run(|key, attempt| fate_of(seed, key, attempt));
        prop_assert_eq!(simulation.log, again.log);
    }

    #[test]
    fn a_cancelled_run_stops_and_goes_on_from_its_state(seed: u64, sites in 1usize..6, stops in 0usize..60) {
        let steps = fleet(sites, 3, |number, nth| (number * 7 + nth * 3) as u64 % 20, true);
        let steps = groups::grouped(steps, 1 + stops % 4);
        let mut simulation = Simulation::new(&steps, RetryPolicy::default());
        let mut fate = |key: &StepKey, attempt| match fate_of(seed, key, attempt) {
            Fate::Permanent => Fate::Transient,
            other => other,
        };
        simulation.input(Input::Begin);
        for _ in 0..stops {
            simulation.advance(&mut fate);
        }
        if simulation.done.is_none() {
            simulation.input(Input::Cancel);
            let started = simulation.log.len();
            while simulation.done.is_none() {
                simulation.wake = None;
                prop_assert!(simulation.advance(&mut fate));
            }
            let starts = simulation.log[started..].iter().filter(|c| matches!(c, Command::Start(_))).count();
            prop_assert_eq!(starts, 0);
        }
        if simulation.state.finished().is_some() {
            return Ok(());
        }
        let mut resumed = Simulation::new(&steps, RetryPolicy::default());
        resumed.state = simulation.state.clone();
        resumed.state.apply(&Record::Taken { epoch: muster_types::Epoch(2), by: String::new(), at: at(0) }).unwrap();
        let standings = resumed.state.standings(true);
        resumed.input(Input::Restore(standings));
        while resumed.done.is_none() {
            prop_assert!(resumed.advance(&mut |_, _| Fate::Succeeds), "stuck");
        }
        prop_assert_eq!(resumed.done, Some((sites as u64, 0, false)));
    }

    #[test]
    fn a_changed_journal_does_not_fold_to_the_same_state(seed: u64, dropped in 0usize..1000) {
        let steps = fleet(3, 2, |number, nth| (number + nth) as u64, false);
        let mut simulation = Simulation::new(&steps, RetryPolicy::default());
        simulation.run(|key, attempt| fate_of(seed, key, attempt));
        let records: Vec<Record> = simulation.log.iter().filter_map(|command| match command {
            Command::Record(record) => Some(record.clone()),
            _ => None,
        }).collect();
        let replay = |records: &[Record]| {
            let mut state = Simulation::new(&steps, RetryPolicy::default()).state;
            records.iter().try_for_each(|record| state.apply(record)).map(|()| state)
        };
        prop_assert_eq!(replay(&records).unwrap(), simulation.state.clone());
        let mut shortened = records.clone();
        shortened.remove(dropped % records.len());
        prop_assert!(replay(&shortened).map_or(true, |state| state != simulation.state));
        let mut doubled = records.clone();
        doubled.insert(dropped % records.len(), records[dropped % records.len()].clone());
        prop_assert!(replay(&doubled).is_err());
    }
}

#[test]
fn sites_are_finished_rather_than_all_kept_at_ninety_percent() {
    const SITES: usize = 40;
    let steps = fleet(SITES, 3, |_, _| 10, false);
    let mut simulation = Simulation::new(&steps, RetryPolicy::default());
    simulation.run(|_, _| Fate::Succeeds);
    let ends: Vec<i64> = (0..SITES)
        .map(|number| simulation.state.step(&StepKey::Handback(site(number))).unwrap())
        .map(|step| step.ended_at.unwrap().as_micros())
        .collect();
    let mean = ends.iter().sum::<i64>() / SITES as i64;
    let last = *ends.iter().max().unwrap();
    // Finished one after another, the mean is near half of the end; kept at 90 %, it is near the end.
    assert!(mean * 100 < last * 60, "mean {mean}, last {last}");
    assert!(
        simulation.most_used["stage:0"] == 2 && simulation.most_used["s3"] >= 5,
        "{:?}",
        simulation.most_used
    );
}

#[test]
fn the_site_nearest_to_its_target_goes_first_within_its_wave() {
    let mut steps = fleet(3, 1, |_, _| 10, false);
    let per_site = steps.len() / 3;
    for step in &mut steps[..per_site] {
        step.wave = 1;
    }
    let deadlines = BTreeMap::from([(site(0), at(0)), (site(1), at(9_000_000)), (site(2), at(5_000_000))]);
    let mut narrow = pools();
    narrow.insert("stage:0".to_owned(), 1);
    let mut scheduler = Scheduler::new(&steps, &narrow, &deadlines, RetryPolicy::default()).unwrap();
    let mut order = Vec::new();
    let mut queue = std::collections::VecDeque::new();
    let mut commands = scheduler.step(at(0), Input::Begin);
    loop {
        queue.extend(started(&commands));
        let Some(step) = queue.pop_front() else { break };
        let key = &steps[step as usize].key;
        if matches!(key, StepKey::Stage(_)) {
            order.push(key.site().unwrap().clone());
        }
        commands = scheduler.step(at(1), Input::Finished { step, outcome: outcome_of(key) });
    }
    assert_eq!(order, [site(2), site(1), site(0)]);
}

#[test]
fn throttling_halves_a_pool_and_successes_give_it_back() {
    let steps = fleet(60, 1, |_, _| 3, false);
    let mut simulation = Simulation::new(&steps, RetryPolicy::default());
    let limit = |simulation: &Simulation<'_>| {
        simulation.scheduler.pools().find(|pool| pool.pool == "s3").map(|pool| pool.limit).unwrap()
    };
    simulation.input(Input::Begin);
    assert_eq!(limit(&simulation), 6);
    simulation.advance(&mut |_, _| Fate::Throttled);
    assert_eq!(limit(&simulation), 3);
    simulation.advance(&mut |_, _| Fate::Throttled);
    assert_eq!(limit(&simulation), 1);
    while simulation.done.is_none() {
        assert!(simulation.advance(&mut |_, _| Fate::Succeeds));
    }
    assert_eq!(limit(&simulation), 6);
    assert_eq!(simulation.done, Some((60, 0, false)));
}

#[test]
fn plans_that_could_never_run_are_refused() {
    let refuse = |change: &dyn Fn(&mut Vec<PlanStep>)| {
        let mut steps = fleet(1, 1, |_, _| 3, false);
        change(&mut steps);
        Scheduler::new(&steps, &pools(), &BTreeMap::new(), RetryPolicy::default()).err()
    };
    assert_eq!(refuse(&|_| {}), None);
    let above = refuse(&|steps| steps[0].demand = [("s3", 7)].into_iter().collect());
    assert!(
        matches!(above, Some(ScheduleError::DemandAboveCapacity { demand: 7, capacity: 6, .. })),
        "{above:?}"
    );
    let unknown = refuse(&|steps| steps[0].demand = [("gpu", 1)].into_iter().collect());
    assert!(matches!(unknown, Some(ScheduleError::UnknownPool { .. })), "{unknown:?}");
    let cycle = refuse(&|steps| steps[0].after.push(2));
    assert!(matches!(cycle, Some(ScheduleError::Cycle { .. })), "{cycle:?}");
    let edge = refuse(&|steps| steps[0].after.push(99));
    assert!(matches!(edge, Some(ScheduleError::UnknownStep { edge: 99, .. })), "{edge:?}");
    let repeated = refuse(&|steps| steps[1].key = steps[0].key.clone());
    assert!(matches!(repeated, Some(ScheduleError::Repeated { .. })), "{repeated:?}");
    let mixed = refuse(&|steps| (steps[0].group, steps[1].group) = (Some(0), Some(0)));
    assert!(matches!(mixed, Some(ScheduleError::MixedGroup { .. })), "{mixed:?}");
}

#[test]
fn the_cost_of_a_step_does_not_grow_with_the_plan() {
    for group_size in [1, 64] {
        let cost = |sites: usize| {
            let steps = fleet(sites, 4, |number, nth| (number * 31 + nth * 7) as u64 % 100, true);
            let steps = groups::grouped(steps, group_size);
            let mut scheduler =
                Scheduler::new(&steps, &pools(), &BTreeMap::new(), RetryPolicy::default()).unwrap();
            let mut queue = std::collections::VecDeque::new();
            let mut commands = scheduler.step(at(0), Input::Begin);
            let mut ended = 0;
            loop {
                queue.extend(started(&commands));
                let Some(step) = queue.pop_front() else { break };
                ended += 1;
                let outcome = outcome_of(&steps[step as usize].key);
                commands = scheduler.step(at(ended), Input::Finished { step, outcome });
            }
            assert_eq!(usize::try_from(ended).unwrap(), steps.len());
            scheduler.operations() as f64 / steps.len() as f64
        };
        let (small, large) = (cost(70), cost(7_000));
        assert!(
            large < small * 1.5 && large < 20.0,
            "operations per step: {small} of 1,000 steps, {large} of 98,000"
        );
    }
}
