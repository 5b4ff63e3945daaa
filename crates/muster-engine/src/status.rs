//! Where a run stands: counts, current steps, time left. Pure.

use std::collections::{BTreeMap, HashSet};

use muster_types::journal::{Outcome, Pause, Restraint};
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::report::{Failure, RunStatus};
use muster_types::{Epoch, RunId, Timestamp};
use serde::Serialize;

use crate::events::Work;
use crate::journal::{RunHistory, RunState, StepPhase, StepState};

/// A run at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The run.
    pub run: RunId,
    /// Where it stands.
    pub status: RunStatus,
    /// The engine that holds it.
    pub held_by: Option<Holder>,
    /// When it was opened.
    pub opened_at: Option<Timestamp>,
    /// The latest time in its journal.
    pub last_at: Option<Timestamp>,
    /// What there is to do in all.
    pub total: Work,
    /// What is done of it.
    pub done: Work,
    /// Steps by verb (`stage`, `publish`, …) and phase.
    pub steps: BTreeMap<&'static str, PhaseCounts>,
    /// Steps that are running.
    pub running: Vec<RunningStep>,
    /// Steps that failed and will be tried again, with the last error.
    pub retrying: Vec<Failure>,
    /// Steps that failed for good.
    pub failures: Vec<Failure>,
    /// Seconds left at the pace so far; none before there is a pace, or at the end.
    pub seconds_left: Option<f64>,
    /// Pools of an open run: what running steps hold of them, and may hold.
    pub pools: Vec<PoolStatus>,
    /// Shards of an open run, or its repository, that nothing is started on until a probe is answered.
    pub pauses: Vec<Pause>,
}

/// An engine that holds a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its epoch.
    pub epoch: Epoch,
    /// Host and process.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
}

/// A step under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningStep {
    /// The step.
    pub step: StepKey,
    /// The attempt, from 1.
    pub attempt: u32,
    /// When it started.
    pub since: Timestamp,
}

/// A pool, as the journal leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// Its name.
    pub pool: String,
    /// Units held by running steps.
    pub used: u64,
    /// Units that may be held now: lowered by throttling, recovering with each success.
    pub limit: u64,
    /// Units that the plan gives it.
    pub capacity: u64,
}

/// Steps by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PhaseCounts {
    /// Not begun.
    pub pending: u64,
    /// Running, or waiting for another attempt.
    pub running: u64,
    /// Done.
    pub succeeded: u64,
    /// Failed for good.
    pub failed: u64,
    /// Blocked by a failure.
    pub blocked: u64,
}

/// The status of a run at `now`.
pub fn status(history: &RunHistory, now: Timestamp) -> Status {
    let (plan, state) = (&history.plan, &history.state);
    let (total, done) = work(plan, state);
    let mut steps: BTreeMap<&'static str, PhaseCounts> = BTreeMap::new();
    let mut status = Status {
        run: history.run.clone(),
        status: run_status(state),
        held_by: state.takings().last().cloned().map(|(epoch, by, since)| Holder { epoch, by, since }),
        opened_at: state.opened_at(),
        last_at: state.last_at(),
        total,
        done,
        steps: BTreeMap::new(),
        running: Vec::new(),
        retrying: Vec::new(),
        failures: Vec::new(),
        seconds_left: None,
        pools: Vec::new(),
        pauses: Vec::new(),
    };
    for (step, known) in plan.steps.iter().zip(state.steps()) {
        count(steps.entry(verb(&step.key)).or_default(), known.phase);
        let failure = || Failure { step: step.key.clone(), error: known.error.clone().unwrap_or_default() };
        match known.phase {
            StepPhase::Running => {
                let since = known.started_at.unwrap_or(Timestamp::EPOCH);
                let (step, attempt) = (step.key.clone(), known.attempts);
                status.running.push(RunningStep { step, attempt, since });
            }
            StepPhase::Retrying => status.retrying.push(failure()),
            StepPhase::Failed => status.failures.push(failure()),
            _ => {}
        }
    }
    status.steps = steps;
    if status.status == RunStatus::Open {
        status.seconds_left = seconds_left(plan, state, now);
        let Restraint { limits, pauses } = restraint(history);
        status.pools = pools(plan, state, &limits);
        status.pauses = pauses;
    }
    status
}

/// What holds back the steps of the engine that holds the run, as it last wrote.
fn restraint(history: &RunHistory) -> Restraint {
    let epoch = history.state.epoch();
    let own = history.entries.iter().rev().take_while(|entry| entry.epoch == epoch);
    own.filter_map(|entry| entry.restraint.clone()).next().unwrap_or_default()
}

fn pools(plan: &Plan, state: &RunState, limits: &BTreeMap<String, u64>) -> Vec<PoolStatus> {
    let mut used: BTreeMap<&str, u64> = BTreeMap::new();
    let mut batches = HashSet::new();
    for (step, known) in plan.steps.iter().zip(state.steps()) {
        // Steps of a group that started together hold their units once.
        let mut is_counted = || step.group.is_none_or(|group| batches.insert((group, known.started_at)));
        if known.phase == StepPhase::Running && is_counted() {
            for (pool, units) in step.demand.iter() {
                *used.entry(pool).or_default() += units;
            }
        }
    }
    let pool = |(pool, &capacity): (&String, &u64)| PoolStatus {
        pool: pool.clone(),
        used: used.get(pool.as_str()).copied().unwrap_or(0),
        limit: limits.get(pool).copied().unwrap_or(capacity),
        capacity,
    };
    plan.pools.iter().map(pool).collect()
}

/// Where the records leave a run.
pub fn run_status(state: &RunState) -> RunStatus {
    match (state.abandoned(), state.finished()) {
        (Some(_), _) => RunStatus::Abandoned,
        (None, Some((_, 0))) => RunStatus::Restored,
        (None, Some(_)) => RunStatus::RestoredInPart,
        (None, None) => RunStatus::Open,
    }
}

/// Total and done work of a run.
pub fn work(plan: &Plan, state: &RunState) -> (Work, Work) {
    let mut total = Work { steps: plan.steps.len() as u64, ..Work::default() };
    for site in &plan.sites {
        for store in &site.stores {
            total.rows_staged += store.rows;
            total.rows_published += store.rows;
            total.bytes += store.bytes;
        }
    }
    let mut done = Work::default();
    for (step, known) in plan.steps.iter().zip(state.steps()) {
        add_total(&mut total, &step.key);
        done.steps += u64::from(known.phase.ended());
        if known.phase == StepPhase::Succeeded {
            add_done(&mut done, &step.key, known);
        }
    }
    (total, done)
}

fn add_total(total: &mut Work, key: &StepKey) {
    match key {
        StepKey::Publish(_) => total.stores += 1,
        StepKey::Handback(_) => total.sites += 1,
        _ => {}
    }
}

fn add_done(done: &mut Work, key: &StepKey, known: &StepState) {
    add_total(done, key);
    match &known.outcome {
        Some(Outcome::Staged { rows, bytes, .. }) => {
            done.rows_staged += rows;
            done.bytes += bytes;
        }
        Some(Outcome::Published(published)) => done.rows_published += published.rows,
        _ => {}
    }
}

/// The work left at the pace since the present engine began. Work is weighed as the plan estimates it, which counts
/// rows and bytes as well as steps.
fn seconds_left(plan: &Plan, state: &RunState, now: Timestamp) -> Option<f64> {
    let (epoch, _, since) = state.takings().last()?;
    let weight = |steps: &mut dyn Iterator<Item = (&PlanStep, &StepState)>| -> u64 {
        steps.map(|(step, _)| step.estimate_micros.max(1)).sum()
    };
    let all = || plan.steps.iter().zip(state.steps());
    let left = weight(&mut all().filter(|(_, known)| !known.phase.ended()));
    let own = |known: &StepState| known.phase == StepPhase::Succeeded && known.epoch == *epoch;
    let done = weight(&mut all().filter(|(_, known)| own(known)));
    (done > 0).then(|| now.seconds_since(*since).max(0.0) * left as f64 / done as f64)
}

/// The verb of a step: the part of its key before the slash.
pub fn verb(key: &StepKey) -> &'static str {
    match key {
        StepKey::Provision(_) => "provision",
        StepKey::Stage(_) => "stage",
        StepKey::Verify(_) => "verify",
        StepKey::Publish(_) => "publish",
        StepKey::Check(_) => "check",
        StepKey::References(_) => "references",
        StepKey::KindCheck { .. } => "kind-check",
        StepKey::Handback(_) => "handback",
        StepKey::DigestBefore(_) => "digest-before",
        StepKey::DigestAfter(_) => "digest-after",
    }
}

fn count(counts: &mut PhaseCounts, phase: StepPhase) {
    *match phase {
        StepPhase::Pending => &mut counts.pending,
        StepPhase::Running | StepPhase::Retrying => &mut counts.running,
        StepPhase::Succeeded => &mut counts.succeeded,
        StepPhase::Failed => &mut counts.failed,
        StepPhase::Blocked => &mut counts.blocked,
    } += 1;
}
