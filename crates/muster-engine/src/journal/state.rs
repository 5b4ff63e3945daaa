//! What the records of a run fold to.

use std::collections::HashMap;

use muster_types::journal::{Outcome, Record};
use muster_types::plan::{PlanStep, StepKey};
use muster_types::{Epoch, PlanId, Timestamp};

use crate::scheduler::{Standing, StandingPhase};

/// A record that the state before it does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{record} cannot follow: {reason}")]
pub struct IllegalTransition {
    /// The record, in short.
    pub record: String,
    /// Why not.
    pub reason: String,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepPhase {
    /// Not begun.
    #[default]
    Pending,
    /// An attempt began and is not known to have ended.
    Running,
    /// An attempt failed, another follows.
    Retrying,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Will not run, since one before it failed.
    Blocked,
}

impl StepPhase {
    /// Nothing more happens to it under this engine.
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Blocked)
    }
}

/// What is known of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepState {
    /// How far it is.
    pub phase: StepPhase,
    /// The epoch of its last record.
    pub epoch: Epoch,
    /// Attempts begun.
    pub attempts: u32,
    /// When its last attempt became ready.
    pub ready_at: Option<Timestamp>,
    /// When its last attempt started.
    pub started_at: Option<Timestamp>,
    /// When its last attempt ended.
    pub ended_at: Option<Timestamp>,
    /// What it did, if it succeeded.
    pub outcome: Option<Outcome>,
    /// The last error.
    pub error: Option<String>,
    /// The failed step that blocks it.
    pub blocked_by: Option<StepKey>,
}

#[derive(Clone, Debug, PartialEq)]
struct Edges {
    after: Box<[u32]>,
    after_ended: Box<[u32]>,
    /// Of stage and verify: the publish of the store.
    publish: Option<u32>,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    index: HashMap<StepKey, u32>,
    edges: Vec<Edges>,
    steps: Vec<StepState>,
    plan: Option<PlanId>,
    opened_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    takings: Vec<(Epoch, String, Timestamp)>,
    finished: Option<(u64, u64)>,
    abandoned: Option<String>,
    ended: usize,
}

type Applied = Result<(), String>;

fn require(condition: bool, reason: impl FnOnce() -> String) -> Applied {
    if condition { Ok(()) } else { Err(reason()) }
}

impl RunState {
    /// The state before the first record, for a plan's steps.
    pub fn new(steps: &[PlanStep]) -> Self {
        let index: HashMap<StepKey, u32> = steps.iter().map(|step| step.key.clone()).zip(0..).collect();
        let publish_of = |key: &StepKey| match key {
            StepKey::Stage(store) | StepKey::Verify(store) => {
                index.get(&StepKey::Publish(store.clone())).copied()
            }
            _ => None,
        };
        let edges = |step: &PlanStep| Edges {
            after: step.after.as_slice().into(),
            after_ended: step.after_ended.as_slice().into(),
            publish: publish_of(&step.key),
        };
        Self {
            edges: steps.iter().map(edges).collect(),
            index,
            steps: vec![StepState::default(); steps.len()],
            plan: None,
            opened_at: None,
            last_at: None,
            takings: Vec::new(),
            finished: None,
            abandoned: None,
            ended: 0,
        }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// [`IllegalTransition`]; the state is then as before.
    pub fn apply(&mut self, record: &Record) -> Result<(), IllegalTransition> {
        let at = self
            .transition(record)
            .map_err(|reason| IllegalTransition { record: describe(record), reason })?;
        self.last_at = self.last_at.max(Some(at));
        Ok(())
    }

    fn transition(&mut self, record: &Record) -> Result<Timestamp, String> {
        require(self.abandoned.is_none(), || "the run was abandoned".to_owned())?;
        match record {
            Record::Opened { plan, at, .. } => {
                require(self.opened_at.is_none(), || "the run is open already".to_owned())?;
                self.plan = Some(plan.clone());
                self.opened_at = Some(*at);
                Ok(*at)
            }
            Record::Taken { epoch, by, at } => {
                require(self.opened_at.is_some(), || "the run is not open".to_owned())?;
                require(*epoch > self.epoch(), || format!("epoch {} holds the run", self.epoch()))?;
                self.takings.push((*epoch, by.clone(), *at));
                self.finished = None;
                Ok(*at)
            }
            Record::Abandoned { at, reason } => {
                require(!self.takings.is_empty(), || "no engine took the run".to_owned())?;
                self.abandoned = Some(reason.clone());
                Ok(*at)
            }
            working => {
                require(!self.takings.is_empty(), || "no engine took the run".to_owned())?;
                require(self.finished.is_none(), || "the run is finished".to_owned())?;
                self.work(working)
            }
        }
    }

    fn work(&mut self, record: &Record) -> Result<Timestamp, String> {
        match record {
            Record::Started { step, attempt, ready_at, at } => {
                let index = self.find(step)?;
                self.may_start(step, index, *attempt)?;
                let state = self.enter(index, StepPhase::Running);
                state.attempts = *attempt;
                (state.ready_at, state.started_at, state.ended_at) = (Some(*ready_at), Some(*at), None);
                state.outcome = None;
                state.blocked_by = None;
                Ok(*at)
            }
            Record::Succeeded { step, attempt, at, outcome } => {
                let index = self.find(step)?;
                self.may_succeed(step, index, *attempt, outcome)?;
                let state = self.enter(index, StepPhase::Succeeded);
                state.ended_at = Some(*at);
                state.outcome = Some(outcome.clone());
                state.error = None;
                Ok(*at)
            }
            Record::Failed { step, attempt, at, error, will_retry } => {
                let index = self.find(step)?;
                let state = &self.steps[index as usize];
                let running = state.phase == StepPhase::Running && state.attempts == *attempt;
                require(running, || format!("attempt {attempt} of it is not running"))?;
                let phase = if *will_retry { StepPhase::Retrying } else { StepPhase::Failed };
                let state = self.enter(index, phase);
                state.ended_at = Some(*at);
                state.error = Some(error.clone());
                Ok(*at)
            }
            Record::Blocked { step, by, at } => self.block(step, by, *at),
            Record::Finished { at, sites_restored, sites_failed } => {
                let open = self.steps.len() - self.ended;
                require(open == 0, || format!("{open} steps have not ended"))?;
                self.finished = Some((*sites_restored, *sites_failed));
                Ok(*at)
            }
            _ => Err("it is no work of an engine".to_owned()),
        }
    }

    fn block(&mut self, step: &StepKey, by: &StepKey, at: Timestamp) -> Result<Timestamp, String> {
        let (index, cause) = (self.find(step)?, self.find(by)?);
        let state = &self.steps[index as usize];
        let inherited = state.epoch < self.epoch();
        let waiting = match state.phase {
            StepPhase::Pending => true,
            StepPhase::Succeeded => false,
            _ => inherited,
        };
        require(waiting, || format!("it is {:?}", state.phase))?;
        let failed = self.steps[cause as usize].phase == StepPhase::Failed;
        require(failed, || format!("{by} has not failed"))?;
        let state = self.enter(index, StepPhase::Blocked);
        state.ended_at = Some(at);
        state.blocked_by = Some(by.clone());
        Ok(at)
    }

    fn may_start(&self, step: &StepKey, index: u32, attempt: u32) -> Applied {
        let state = &self.steps[index as usize];
        let inherited = state.epoch < self.epoch();
        let startable = match state.phase {
            StepPhase::Pending | StepPhase::Retrying => true,
            StepPhase::Running | StepPhase::Failed | StepPhase::Blocked => inherited,
            StepPhase::Succeeded => inherited && self.repeatable(step, index),
        };
        require(startable, || format!("it is {:?}", state.phase))?;
        let next = state.attempts + 1;
        require(attempt == next, || format!("its next attempt is {next}"))?;
        let edges = &self.edges[index as usize];
        let phase = |edge: &u32| self.steps[*edge as usize].phase;
        let met = edges.after.iter().all(|edge| phase(edge) == StepPhase::Succeeded)
            && edges.after_ended.iter().all(|edge| phase(edge).ended());
        require(met, || "a step before it has not ended well".to_owned())
    }

    /// Whether another engine may do a step again that is done: what lies beside the live data is not trusted after a
    /// crash, and the neighbours are digested again when publishes followed.
    fn repeatable(&self, step: &StepKey, index: u32) -> bool {
        match step {
            StepKey::Stage(_) | StepKey::Verify(_) => {
                let publish = self.edges[index as usize].publish;
                publish.is_some_and(|publish| self.steps[publish as usize].phase != StepPhase::Succeeded)
            }
            StepKey::DigestAfter(_) => true,
            _ => false,
        }
    }

    fn may_succeed(&self, step: &StepKey, index: u32, attempt: u32, outcome: &Outcome) -> Applied {
        let state = &self.steps[index as usize];
        // A publish whose answer was lost is found in the shard's own records.
        let found = matches!(step, StepKey::Publish(_))
            && matches!(state.phase, StepPhase::Retrying | StepPhase::Failed);
        let running = state.phase == StepPhase::Running || found;
        require(running && state.attempts == attempt, || format!("attempt {attempt} of it is not running"))?;
        require(fits(step, outcome), || "its outcome is of another kind of step".to_owned())
    }

    fn find(&self, step: &StepKey) -> Result<u32, String> {
        self.index.get(step).copied().ok_or_else(|| "the plan has no such step".to_owned())
    }

    fn enter(&mut self, index: u32, phase: StepPhase) -> &mut StepState {
        let epoch = self.epoch();
        let state = &mut self.steps[index as usize];
        match (state.phase.ended(), phase.ended()) {
            (false, true) => self.ended += 1,
            (true, false) => self.ended -= 1,
            _ => {}
        }
        state.phase = phase;
        state.epoch = epoch;
        state
    }

    /// Where each step stands for a scheduler that takes the run over. `retry_failed`: what failed under an earlier
    /// engine, and what it blocked, is tried again.
    ///
    /// The verification of a store that is not published is done again, since its staging may have been lost; so is
    /// what waits for the end of steps that will run again.
    pub fn standings(&self, retry_failed: bool) -> Vec<Standing> {
        let mut phases: Vec<StandingPhase> =
            self.steps.iter().map(|step| plain_standing(step, retry_failed)).collect();
        for (step, &index) in &self.index {
            let again = match step {
                StepKey::Verify(_) => self.repeatable(step, index),
                StepKey::DigestAfter(_) => self.edges[index as usize]
                    .after_ended
                    .iter()
                    .any(|&edge| phases[edge as usize] == StandingPhase::Pending),
                _ => false,
            };
            if again && phases[index as usize] == StandingPhase::Succeeded {
                phases[index as usize] = StandingPhase::Pending;
            }
        }
        let standing =
            |(phase, step): (StandingPhase, &StepState)| Standing { phase, attempts: step.attempts };
        phases.into_iter().zip(&self.steps).map(standing).collect()
    }

    /// The step's state.
    pub fn step(&self, key: &StepKey) -> Option<&StepState> {
        self.index.get(key).map(|&index| &self.steps[index as usize])
    }

    /// States of all steps, in plan order.
    pub fn steps(&self) -> &[StepState] {
        &self.steps
    }

    /// The plan that the run was opened with.
    pub fn plan(&self) -> Option<&PlanId> {
        self.plan.as_ref()
    }

    /// The epoch that holds the run; 0 before the first engine.
    pub fn epoch(&self) -> Epoch {
        self.takings.last().map_or(Epoch(0), |&(epoch, ..)| epoch)
    }

    /// Engines that took the run: epoch, who, when.
    pub fn takings(&self) -> &[(Epoch, String, Timestamp)] {
        &self.takings
    }

    /// When the run was opened.
    pub fn opened_at(&self) -> Option<Timestamp> {
        self.opened_at
    }

    /// The latest time in a record.
    pub fn last_at(&self) -> Option<Timestamp> {
        self.last_at
    }

    /// Sites restored and failed, if nothing is left to do.
    pub fn finished(&self) -> Option<(u64, u64)> {
        self.finished
    }

    /// Why the run was given up, if it was.
    pub fn abandoned(&self) -> Option<&str> {
        self.abandoned.as_deref()
    }
}

fn plain_standing(step: &StepState, retry_failed: bool) -> StandingPhase {
    match step.phase {
        StepPhase::Succeeded => StandingPhase::Succeeded,
        StepPhase::Failed if !retry_failed => StandingPhase::Failed,
        StepPhase::Blocked if !retry_failed => StandingPhase::Blocked,
        _ => StandingPhase::Pending,
    }
}

fn fits(step: &StepKey, outcome: &Outcome) -> bool {
    matches!(
        (step, outcome),
        (StepKey::Provision(_), Outcome::Provisioned { .. })
            | (StepKey::Stage(_), Outcome::Staged { .. })
            | (StepKey::Verify(_), Outcome::Verified { .. })
            | (StepKey::Publish(_), Outcome::Published(_))
            | (StepKey::Check(_), Outcome::Checked { .. })
            | (StepKey::References(_), Outcome::ReferencesCounted { .. })
            | (StepKey::KindCheck { .. }, Outcome::KindChecked { .. })
            | (StepKey::Handback(_), Outcome::HandedBack)
            | (StepKey::DigestBefore(_), Outcome::DigestedBefore(_))
            | (StepKey::DigestAfter(_), Outcome::DigestedAfter { .. })
            | (StepKey::Stage(_) | StepKey::Publish(_) | StepKey::Handback(_), Outcome::CommandRan { .. })
    )
}

fn describe(record: &Record) -> String {
    match record {
        Record::Opened { .. } => "the opening".to_owned(),
        Record::Taken { epoch, by, .. } => format!("the taking by {by} (epoch {epoch})"),
        Record::Started { step, attempt, .. } => format!("the start of {step} (attempt {attempt})"),
        Record::Succeeded { step, attempt, .. } => format!("the success of {step} (attempt {attempt})"),
        Record::Failed { step, attempt, .. } => format!("the failure of {step} (attempt {attempt})"),
        Record::Blocked { step, by, .. } => format!("the blocking of {step} by {by}"),
        Record::Finished { .. } => "the end".to_owned(),
        Record::Abandoned { .. } => "the abandoning".to_owned(),
    }
}
