//! Where a run stands: counts, current steps, time left. Pure.

use std::collections::BTreeMap;

use muster_types::journal::Outcome;
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::report::{Failure, RunStatus};
use muster_types::{Epoch, RunId, Timestamp};

use crate::events::Work;
use crate::journal::{RunHistory, RunState, StepPhase, StepState};

/// A run at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The run.
    pub run: RunId,
    /// Where it stands.
    pub status: RunStatus,
    /// The engine that holds it: epoch, host and process, since when.
    pub held_by: Option<(Epoch, String, Timestamp)>,
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
    /// Steps that are running: attempt and start.
    pub running: Vec<(StepKey, u32, Timestamp)>,
    /// Steps that failed and will be tried again, with the last error.
    pub retrying: Vec<Failure>,
    /// Steps that failed for good.
    pub failures: Vec<Failure>,
    /// Seconds left at the pace so far; none before there is a pace, or at the end.
    pub seconds_left: Option<f64>,
}

/// Steps by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
        held_by: state.takings().last().cloned(),
        opened_at: state.opened_at(),
        last_at: state.last_at(),
        total,
        done,
        steps: BTreeMap::new(),
        running: Vec::new(),
        retrying: Vec::new(),
        failures: Vec::new(),
        seconds_left: None,
    };
    for (step, known) in plan.steps.iter().zip(state.steps()) {
        count(steps.entry(verb(&step.key)).or_default(), known.phase);
        let failure = || Failure { step: step.key.clone(), error: known.error.clone().unwrap_or_default() };
        match known.phase {
            StepPhase::Running => {
                let since = known.started_at.unwrap_or(Timestamp::EPOCH);
                status.running.push((step.key.clone(), known.attempts, since));
            }
            StepPhase::Retrying => status.retrying.push(failure()),
            StepPhase::Failed => status.failures.push(failure()),
            _ => {}
        }
    }
    status.steps = steps;
    if status.status == RunStatus::Open {
        status.seconds_left = seconds_left(plan, state, now);
    }
    status
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
