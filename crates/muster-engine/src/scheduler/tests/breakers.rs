//! Shards, and a repository, that are away for a while.

use super::*;

const SECOND: i64 = 1_000_000;
/// By gate, as in [`gates`].
const SIDES: usize = 4;
const REPOSITORY: u32 = 0;
/// As the breakers open.
const FAILURES_MAX: u32 = 8;

/// The shard, from 0, of a store of [`fleet`].
fn shard_of(store: &StoreId) -> u32 {
    store.kind.as_str()[1..].parse::<u32>().unwrap() % 3
}

/// The repository, then the three shards; steps of a site go through the gates of all its stores.
fn gates(steps: &[PlanStep], shard_of: impl Fn(&StoreId) -> u32) -> Gates {
    let mut of_site: BTreeMap<&SiteId, BTreeSet<u32>> = BTreeMap::new();
    for store in steps.iter().filter_map(|step| step.key.store()) {
        of_site.entry(&store.site).or_default().insert(1 + shard_of(store));
    }
    let of_step = |step: &PlanStep| match (&step.key, step.key.store(), step.key.site()) {
        (StepKey::Stage(store), ..) => Box::from([REPOSITORY, 1 + shard_of(store)]),
        (_, Some(store), _) => Box::from([1 + shard_of(store)]),
        (_, None, Some(site)) => of_site[site].iter().copied().collect(),
        _ => Box::from([]),
    };
    let shard = |number: usize| number.checked_sub(1).map(|shard| format!("d{shard}").parse().unwrap());
    Gates { shards: (0..SIDES).map(shard).collect(), of_step: steps.iter().map(of_step).collect() }
}

/// When each side is away.
type Outages = [std::ops::Range<i64>; SIDES];

fn fate_during(outages: &Outages, gates: &[u32], now: i64) -> Fate {
    match gates.iter().rev().find(|&&gate| outages[gate as usize].contains(&now)) {
        Some(&REPOSITORY) => Fate::RepositoryAway,
        Some(_) => Fate::Unavailable,
        None => Fate::Succeeds,
    }
}

/// Runs to the end. `fate`: of a step, with its attempt, at a time.
fn run(simulation: &mut Simulation<'_>, fate: impl Fn(&StepKey, u32, i64) -> Fate) {
    simulation.input(Input::Begin);
    while simulation.done.is_none() {
        let end = simulation.running.first().map_or(0, |&(end, _)| end).max(simulation.now);
        assert!(simulation.advance(&mut |key, attempt| fate(key, attempt, end)), "stuck");
    }
}

/// A side, judged by the records alone.
#[derive(Clone, Default)]
struct Side {
    failures: u32,
    is_open: bool,
    probe: Option<StepKey>,
    /// No probe begins before.
    may_probe_at: i64,
    opened: u32,
}

/// Holds the records against what breakers promise; how often each opened.
fn check(simulation: &Simulation<'_>, gates: &Gates) -> Vec<u32> {
    let index: BTreeMap<&StepKey, usize> = simulation.steps.iter().map(|step| &step.key).zip(0..).collect();
    let mut sides = vec![Side::default(); SIDES];
    for command in &simulation.log {
        let Command::Record(record) = command else { continue };
        match record {
            Record::Started { step, at, .. } => {
                for &gate in &gates.of_step[index[step]] {
                    let side = &mut sides[gate as usize];
                    if side.is_open {
                        assert_eq!(side.probe, None, "{step} beside a probe");
                        assert!(at.as_micros() >= side.may_probe_at, "{step} before the pause was over");
                        side.probe = Some(step.clone());
                    }
                }
            }
            Record::Succeeded { step, .. } => {
                for &gate in &gates.of_step[index[step]] {
                    sides[gate as usize] = Side { opened: sides[gate as usize].opened, ..Side::default() };
                }
            }
            Record::Failed { step, at, error, .. } => {
                failed(&mut sides, &gates.of_step[index[step]], step, at.as_micros(), error);
            }
            _ => {}
        }
    }
    sides.into_iter().map(|side| side.opened).collect()
}

fn failed(sides: &mut [Side], gates: &[u32], step: &StepKey, at: i64, error: &str) {
    let shards: Vec<u32> = gates.iter().copied().filter(|&gate| gate != REPOSITORY).collect();
    let blamed = match error {
        "RepositoryAway" => Some(REPOSITORY),
        _ => shards.first().copied().filter(|_| shards.len() == 1),
    };
    for &gate in gates {
        let side = &mut sides[gate as usize];
        let was_probe = side.is_open && side.probe.as_ref() == Some(step);
        if was_probe {
            side.probe = None;
            let is_failure = blamed == Some(gate) || (blamed.is_none() && gate != REPOSITORY);
            side.may_probe_at = at + if is_failure { SECOND } else { 0 };
        } else if blamed == Some(gate) && !side.is_open {
            side.failures += 1;
            if side.failures == FAILURES_MAX {
                (side.is_open, side.may_probe_at) = (true, at + SECOND);
                side.opened += 1;
            }
        }
    }
}

fn outages(drawn: &[(i64, i64)]) -> Outages {
    std::array::from_fn(|side| drawn[side].0 * SECOND..(drawn[side].0 + drawn[side].1) * SECOND)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Away for minutes at any time, and with other faults between: each step ends, and none for good because of it.
    #[test]
    fn what_comes_back_costs_no_step_its_attempts(
        seed: u64, sites in 1usize..30, stores in 1usize..5, group_size in 1usize..5,
        drawn in prop::collection::vec((0i64..20, 0i64..240), SIDES), repository: bool
    ) {
        let estimate = |number: usize, nth: usize| (seed >> (nth % 8)) % 3_000_000 + number as u64;
        let steps = groups::grouped(fleet(sites, stores, estimate, false), group_size);
        let gates = gates(&steps, shard_of);
        let mut outages = outages(&drawn);
        if !repository {
            outages[REPOSITORY as usize] = 0..0;
        }
        let index: BTreeMap<&StepKey, usize> = steps.iter().map(|step| &step.key).zip(0..).collect();
        let policy = RetryPolicy { seed, ..RetryPolicy::default() };
        let mut simulation = Simulation::with_gates(&steps, policy, gates.clone());
        run(&mut simulation, |key, attempt, now| {
            match fate_during(&outages, &gates.of_step[index[key]], now) {
                Fate::Succeeds if fate_of(seed, key, attempt) == Fate::Throttled => Fate::Throttled,
                fate => fate,
            }
        });
        prop_assert!(simulation.state.finished().is_some());
        if !repository {
            prop_assert_eq!(simulation.done, Some((sites as u64, 0, false)));
            prop_assert_eq!(simulation.scheduler.restraint().pauses, []);
        }
    }

    /// While a breaker is open, one step at a time goes to its side, and not before the pause is over.
    #[test]
    fn one_probe_at_a_time(
        seed: u64, sites in 10usize..30, stores in 1usize..5, drawn in prop::collection::vec((0i64..10, 0i64..240), SIDES)
    ) {
        let estimate = |number: usize, nth: usize| (seed >> (nth % 8)) % 3_000_000 + number as u64;
        let steps = fleet(sites, stores, estimate, false);
        let gates = gates(&steps, shard_of);
        let outages = outages(&drawn);
        let index: BTreeMap<&StepKey, usize> = steps.iter().map(|step| &step.key).zip(0..).collect();
        let mut simulation = Simulation::with_gates(&steps, RetryPolicy::default(), gates.clone());
        run(&mut simulation, |key, _, now| fate_during(&outages, &gates.of_step[index[key]], now));
        check(&simulation, &gates);
    }

    /// Sites of other shards are back at the very moment at which they would be without the outage.
    #[test]
    fn other_shards_go_on_as_if_nothing_were(seed: u64, sites in 20usize..60, begin in 0i64..20, lasts in 0i64..1_000) {
        let estimate = |number: usize, nth: usize| (seed >> (nth % 8)) % 3_000_000 + number as u64;
        let mut steps = fleet(sites, 2, estimate, false);
        let shard_of = |store: &StoreId| store.site.as_str()[1..].parse::<u32>().unwrap() % 3;
        for step in &mut steps {
            let Some(store) = step.key.store() else { continue };
            let pool = match step.key {
                StepKey::Publish(_) => format!("publish:{}", shard_of(store)),
                _ => format!("stage:{}", shard_of(store)),
            };
            step.demand = [(pool.as_str(), 1)].into_iter().collect();
        }
        let gates = gates(&steps, shard_of);
        let index: BTreeMap<&StepKey, usize> = steps.iter().map(|step| &step.key).zip(0..).collect();
        let ends = |outage: std::ops::Range<i64>| {
            let outages = [0..0, outage, 0..0, 0..0];
            let mut simulation = Simulation::with_gates(&steps, RetryPolicy::default(), gates.clone());
            run(&mut simulation, |key, _, now| fate_during(&outages, &gates.of_step[index[key]], now));
            let others = steps.iter().zip(simulation.state.steps()).zip(&gates.of_step);
            let others = others.filter(|(_, gates)| !gates.contains(&1));
            others.map(|((step, state), _)| (step.key.clone(), state.phase, state.ended_at)).collect::<Vec<_>>()
        };
        let whole = ends(0..0);
        prop_assert!(whole.iter().all(|(_, phase, _)| *phase == StepPhase::Succeeded));
        prop_assert_eq!(ends(begin * SECOND..(begin + lasts) * SECOND), whole);
    }
}

#[test]
fn a_shard_that_stays_away_ends_the_run_after_minutes_and_takes_no_other_with_it() {
    let steps = fleet(40, 2, |_, _| 100_000, false);
    let gates = gates(&steps, shard_of);
    let index: BTreeMap<&StepKey, usize> = steps.iter().map(|step| &step.key).zip(0..).collect();
    let outages = [0..0, 0..i64::MAX, 0..0, 0..0];
    let mut simulation = Simulation::with_gates(&steps, RetryPolicy::default(), gates.clone());
    run(&mut simulation, |key, _, now| fate_during(&outages, &gates.of_step[index[key]], now));
    let minutes = simulation.now / (60 * SECOND);
    assert!((5..15).contains(&minutes), "{minutes} minutes");
    assert_eq!(simulation.done, Some((0, 40, false)));
    for (step, state) in steps.iter().zip(simulation.state.steps()) {
        let StepKey::Stage(store) = &step.key else { continue };
        let wanted = if shard_of(store) == 0 { StepPhase::Failed } else { StepPhase::Succeeded };
        assert_eq!(state.phase, wanted, "{}", step.key);
    }
    let pauses = simulation.scheduler.restraint().pauses;
    assert!(matches!(&pauses[..], [pause] if pause.given_up && pause.shard.is_some()), "{pauses:?}");
}

#[test]
fn hundreds_of_steps_do_not_each_find_out_that_a_shard_is_away() {
    let steps = fleet(300, 1, |_, _| 1_000, false);
    let gates = gates(&steps, shard_of);
    let index: BTreeMap<&StepKey, usize> = steps.iter().map(|step| &step.key).zip(0..).collect();
    let outages = [0..0, 0..60 * SECOND, 0..0, 0..0];
    let mut simulation = Simulation::with_gates(&steps, RetryPolicy::default(), gates.clone());
    run(&mut simulation, |key, _, now| fate_during(&outages, &gates.of_step[index[key]], now));
    assert_eq!(check(&simulation, &gates), [0, 1, 0, 0]);
    let failed =
        simulation.log.iter().filter(|command| matches!(command, Command::Record(Record::Failed { .. })));
    // Those that open it, and probes after 1, 3, 7, 12, … seconds.
    let failed = failed.count();
    assert!(failed <= 8 + 2 + 14, "{failed} failures");
    assert_eq!(simulation.done, Some((300, 0, false)));
}
