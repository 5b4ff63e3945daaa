//! Forecasts of runs whose durations are known.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};

use muster_engine::journal::RunState;
use muster_engine::scheduler::{Command, Input, RetryPolicy, Scheduler};
use muster_forecast::pace::Likely;
use muster_forecast::{Pace, forecast_plan, forecast_report, forecast_run};
use muster_plan::synthetic::{self, Fleet};
use muster_plan::{PlanInput, plan, select_stores};
use muster_types::journal::{Outcome, Published, Record};
use muster_types::plan::{Plan, StepKey};
use muster_types::{Digest, Epoch, Timestamp};

fn plan_of(sites: u32) -> Plan {
    let fleet = Fleet { sites, shards: 4, segments: 20 };
    let topology = synthetic::topology(fleet).unwrap();
    let catalog = synthetic::catalog(fleet).unwrap();
    let request = synthetic::request(fleet).unwrap();
    let stores = select_stores(&topology, &catalog, &request.incident.sites).unwrap();
    let live: BTreeMap<_, _> = stores.iter().map(|store| (store.store.clone(), Default::default())).collect();
    let input = PlanInput {
        topology: &topology,
        catalog: &catalog,
        request: &request,
        live: &live,
        now: catalog.read_at,
    };
    plan(input).unwrap()
}

fn outcome_of(key: &StepKey, at: Timestamp) -> Outcome {
    match key {
        StepKey::Stage(_) => Outcome::Staged { rows: 1, bytes: 1, tables: BTreeMap::new() },
        StepKey::Verify(_) => Outcome::Verified { rows: 1, digest: Digest::of(b""), migrated: None },
        StepKey::Publish(_) => {
            Outcome::Published(Published { rows: 1, replaced: 0, positions: None, blocked_micros: 0, at })
        }
        StepKey::Check(_) => Outcome::Checked { changes: 1, compared_live: vec![], read_whole: false },
        _ => Outcome::HandedBack,
    }
}

/// The journal's state after a run from `begins` in which each start takes what `micros` says.
fn run(plan: &Plan, begins: Timestamp, micros: impl Fn(&[u32]) -> u64) -> RunState {
    let mut state = RunState::new(&plan.steps);
    state.apply(&Record::Opened { plan: plan.id.clone(), at: begins, operator: String::new() }).unwrap();
    state.apply(&Record::Taken { epoch: Epoch(1), by: String::new(), at: begins }).unwrap();
    let mut scheduler = Scheduler::for_plan(plan, RetryPolicy::default()).unwrap();
    let mut ends: BTreeSet<(Timestamp, u32)> = BTreeSet::new();
    let mut now = begins;
    let mut commands = scheduler.step(now, Input::Begin);
    loop {
        for command in commands {
            match command {
                Command::Record(record) => state.apply(&record).unwrap(),
                Command::Start(attempts) => {
                    let steps: Vec<u32> = attempts.iter().map(|attempt| attempt.step).collect();
                    let end = now.plus_micros(micros(&steps) as i64);
                    ends.extend(steps.into_iter().map(|step| (end, step)));
                }
                Command::Done { .. } => return state,
                Command::WakeAt(_) => {}
            }
        }
        now = ends.first().unwrap().0;
        let mut inputs = Vec::new();
        while ends.first().is_some_and(|&(end, _)| end == now) {
            let (_, step) = ends.pop_first().unwrap();
            let outcome = outcome_of(&plan.steps[step as usize].key, now);
            inputs.push(Input::Finished { step, outcome });
        }
        commands = scheduler.step_all(now, inputs);
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000 + seconds * 1_000_000)
}

#[test]
fn where_durations_are_known_the_forecast_is_exact() {
    let plan = plan_of(60);
    let stated = Pace::stated();
    let paces = stated.of(&plan);
    let state = run(&plan, at(0), |steps| paces.micros(steps, Likely::Even));
    let forecast = forecast_plan(&plan, at(0), &stated).unwrap();
    assert_eq!(Some(forecast.ends.expected), state.last_at());
    assert_eq!((forecast.sites.len(), forecast.measured), (60, 0));
    for site in &forecast.sites {
        let handed_back = state.step(&StepKey::Handback(site.site.clone())).unwrap().ended_at;
        assert_eq!(Some(site.back.expected), handed_back, "{}", site.site);
        assert!(site.back.earliest <= site.back.expected && site.back.expected <= site.back.latest);
    }
    assert!(forecast.ends.earliest < forecast.ends.expected && forecast.ends.expected < forecast.ends.latest);
    // Nothing is left at the end.
    let end = state.last_at().unwrap();
    let over = forecast_run(&plan, &state, end, &stated).unwrap();
    assert_eq!((over.ends.expected, over.sites.len()), (end, 0));
}

#[test]
fn a_slower_machine_is_known_after_a_run_and_soon_in_the_first() {
    let plan = plan_of(200);
    let stated = Pace::stated();
    let paces = stated.of(&plan);
    // Four times as slow, and uneven: what the journal and the other sites cost.
    let slow = |steps: &[u32]| {
        let uneven = 70 + u64::from(steps[0]) * 7_919 % 61;
        paces.micros(steps, Likely::Even) * 4 * uneven / 100
    };
    let first = run(&plan, at(0), slow);
    let report = forecast_report(&plan, &first, &stated).unwrap().unwrap();
    let at_start = report.at_start.error_share.unwrap();
    assert!((-0.85..-0.65).contains(&at_start), "four times as slow as stated: {at_start}");
    let at_tenth = report.at_tenth.clone().unwrap();
    assert!(at_tenth.measured > 10 && at_tenth.error_share.unwrap().abs() < 0.15, "{at_tenth:?}");
    assert!(at_tenth.earliest <= report.ended_at.unwrap() && report.ended_at.unwrap() <= at_tenth.latest);

    let mut learnt = Pace::stated();
    learnt.learn(&plan, &first, at(1_000_000));
    let second = run(&plan, at(5_000_000), slow);
    let report = forecast_report(&plan, &second, &learnt).unwrap().unwrap();
    assert!(report.at_start.error_share.unwrap().abs() < 0.05, "{:?}", report.at_start);
    assert!(report.at_start.measured > 100 && report.at_start.latest >= report.ended_at.unwrap());
    // Nothing counts that ended later than what is asked for.
    let mut early = Pace::stated();
    early.learn(&plan, &first, at(-1));
    assert_eq!(early.measured(), 0);
}
