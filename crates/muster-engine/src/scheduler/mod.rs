//! The scheduler: a pure state machine that says which step runs next.
//!
//! [`Scheduler::step`] takes the time and one [`Input`] and returns [`Command`]s; whoever drives it makes each
//! [`Command::Record`] durable, in order, before it acts on a [`Command::Start`] behind it. The real executor and
//! the simulator drive the same code.
//!
//! Order among ready steps (`order.rs`): wave, then the latest moment at which the step may start. Sites stand in a
//! sequence (small ones first, as far as recovery time targets allow), so that they are finished rather than all kept at
//! 90 %. It is fixed when a run begins or is resumed, for what is left then.
//!
//! Ready steps of one group ([`PlanStep::group`]) start together with the first of them, as a *batch*: under its grant,
//! which they hold once. They end individually, and what one of them did is its own.
//!
//! # Invariants
//! - Demand on a pool never exceeds its capacity; after throttling, not the lowered limit either, except that one step
//!   or batch may always run alone.
//! - A step starts after all of `after` succeeded and all of `after_ended` ended.
//! - A failure ends its step and blocks exactly the steps that depend on it through `after`.
//! - A step fails for good only alone: what fails in a batch may be another's fault, and is tried again in smaller ones.
//!   Where trying again may take a wait for somebody else (a lock, a server), at once alone, so that waits do not add up.
//! - Nothing starts on a shard, or reads the repository, that has failed several steps in a row, but a probe at a time.
//! - One step costs O(log n) amortised, whatever the number of steps; nothing scans them all.
//!
//! # Errors
//! [`ScheduleError`] at construction: a malformed plan is refused before anything runs.
//!
//! # Not here
//! Clocks, randomness (retry delays are hashed from a seed), I/O.

mod backoff;
mod batch;
mod breaker;
mod error;
mod gates;
mod graph;
mod order;
mod pools;
mod ready;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::journal::{Outcome, Record, Restraint};
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::{SiteId, Timestamp};

pub use backoff::RetryPolicy;
use batch::Batches;
use breaker::{Breakers, Gates};
pub use error::ScheduleError;
use graph::Graph;
use order::Order;
use pools::Pools;
use ready::Ready;

use crate::driver::ErrorClass;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A new run begins.
    Begin,
    /// A run is resumed: where each step stands, in plan order.
    Restore(Vec<Standing>),
    /// A running step succeeded.
    Finished {
        /// Index of the step in the plan.
        step: u32,
        /// What it did.
        outcome: Outcome,
    },
    /// A running step failed.
    Failed {
        /// Index of the step in the plan.
        step: u32,
        /// What can be done about it.
        class: ErrorClass,
        /// The error, with cause and way out.
        error: String,
    },
    /// Time passed: a [`Command::WakeAt`] is due.
    Tick,
    /// The operator asked to stop: nothing starts any more, running steps end.
    Cancel,
}

/// Where a step stands when a run is resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it has to run.
    pub phase: StandingPhase,
    /// Attempts made so far; the next one has the next number.
    pub attempts: u32,
}

/// See [`Standing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandingPhase {
    /// It has to run (again).
    Pending,
    /// It is done.
    Succeeded,
    /// It failed for good.
    Failed,
    /// It will not run.
    Blocked,
}

/// An attempt of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Index of the step in the plan.
    pub step: u32,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start attempts, once the records before are durable: one, or several of one group together.
    Start(Vec<Attempt>),
    /// Append to the journal.
    Record(Record),
    /// Send [`Input::Tick`] at this time; replaces an earlier wish.
    WakeAt(Timestamp),
    /// Nothing runs and nothing will.
    Done {
        /// Sites handed back.
        sites_restored: u64,
        /// Sites that were not.
        sites_failed: u64,
        /// Steps are left because the operator stopped the run.
        cancelled: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Ready,
    Running,
    Backoff,
    Succeeded,
    Failed,
    Blocked,
}

impl Phase {
    fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Blocked)
    }
}

struct StepState {
    phase: Phase,
    /// Predecessors that have not yet succeeded, or ended.
    unmet: u32,
    /// Attempts over all engines.
    attempts: u32,
    /// Failed attempts of this engine, those of `waits` apart.
    failures: u32,
    /// Attempts of this engine that were throttled or met nobody.
    waits: u32,
    ready_at: Timestamp,
    /// The batch that it runs in.
    batch: u32,
    /// Most steps of a batch that it may be part of.
    company_max: u32,
}

/// The state machine.
pub struct Scheduler {
    graph: Graph,
    /// Until the run begins.
    order: Option<Order>,
    pools: Pools,
    ready: Ready,
    steps: Vec<StepState>,
    batches: Batches,
    breakers: Breakers,
    retries: BTreeSet<(Timestamp, u32)>,
    policy: RetryPolicy,
    running: u32,
    ended: u32,
    handed_back: u64,
    cancelled: bool,
    done: bool,
    operations: u64,
}

impl Scheduler {
    /// A scheduler of these steps, without breakers. `deadlines`: when each site should be back.
    ///
    /// # Errors
    /// [`ScheduleError`] when the steps cannot all run.
    pub fn new(
        steps: &[PlanStep],
        pools: &BTreeMap<String, u64>,
        deadlines: &BTreeMap<SiteId, Timestamp>,
        policy: RetryPolicy,
    ) -> Result<Self, ScheduleError> {
        Self::with_gates(steps, pools, deadlines, policy, Gates::default())
    }

    /// As [`Self::new`], with breakers at these gates.
    fn with_gates(
        steps: &[PlanStep],
        pools: &BTreeMap<String, u64>,
        deadlines: &BTreeMap<SiteId, Timestamp>,
        policy: RetryPolicy,
        gates: Gates,
    ) -> Result<Self, ScheduleError> {
        let (graph, remaining, topological) = Graph::new(steps)?;
        let (pools, demands) = Pools::new(steps, pools)?;
        batch::check(steps)?;
        let ready = Ready::new(demands, steps.iter().map(|step| step.group), pools.len(), &gates);
        let states = (0..graph.len()).map(|step| StepState {
            phase: Phase::Waiting,
            unmet: graph.predecessors(step),
            attempts: 0,
            failures: 0,
            waits: 0,
            ready_at: Timestamp::EPOCH,
            batch: 0,
            company_max: u32::MAX,
        });
        Ok(Self {
            steps: states.collect(),
            order: Some(Order::new(steps, &remaining, topological, deadlines)),
            graph,
            pools,
            ready,
            batches: Batches::default(),
            breakers: Breakers::new(gates.shards),
            retries: BTreeSet::new(),
            policy,
            running: 0,
            ended: 0,
            handed_back: 0,
            cancelled: false,
            done: false,
            operations: 0,
        })
    }

    /// A scheduler of a plan: a site should be back `rto_seconds` after its outage, or after the declaration where
    /// the outage is not known.
    ///
    /// # Errors
    /// [`ScheduleError`] when the steps cannot all run.
    pub fn for_plan(plan: &Plan, policy: RetryPolicy) -> Result<Self, ScheduleError> {
        let declared_at = plan.request.incident.declared_at;
        let deadline = |site: &muster_types::plan::SitePlan| {
            let rto_micros = i64::try_from(site.rto_seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            (site.site.clone(), site.outage_at.unwrap_or(declared_at).plus_micros(rto_micros))
        };
        let deadlines = plan.sites.iter().map(deadline).collect();
        Self::with_gates(&plan.steps, &plan.pools, &deadlines, policy, Gates::of_plan(plan))
    }

    /// Takes one input and says what is to be done, in order.
    ///
    /// Inputs that do not fit the state (a step that is not running) are ignored.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Vec<Command> {
        self.step_all(now, [input])
    }

    /// As [`Self::step`] for inputs that came together, as the ends of a batch do: what they make ready can start
    /// together, too.
    pub fn step_all(&mut self, now: Timestamp, inputs: impl IntoIterator<Item = Input>) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut wake_before = self.next_wake();
        for input in inputs {
            // A wake that came too early, as clocks differ, is used up all the same.
            wake_before = wake_before.filter(|_| !matches!(input, Input::Tick));
            self.take(now, input, &mut commands);
        }
        self.wake_retries(now);
        self.open_gates(now);
        self.dispatch(now, &mut commands);
        self.conclude(now, &mut commands);
        if !self.done && self.next_wake() != wake_before {
            commands.extend(self.next_wake().map(Command::WakeAt));
        }
        commands
    }

    fn take(&mut self, now: Timestamp, input: Input, commands: &mut Vec<Command>) {
        match input {
            Input::Begin => self.begin(now),
            Input::Restore(standings) => self.restore(now, &standings, commands),
            Input::Finished { step, outcome } => self.finished(now, step, outcome, commands),
            Input::Failed { step, class, error } => self.failed(now, step, class, error, commands),
            Input::Tick => {}
            Input::Cancel => self.cancelled = true,
        }
    }

    /// Steps that are running.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Use, present limit and capacity of each pool.
    pub fn pools(&self) -> impl Iterator<Item = PoolUse<'_>> {
        self.pools.uses()
    }

    /// What holds steps back now, beside the capacities of the pools.
    pub fn restraint(&self) -> Restraint {
        let lowered = self.pools.uses().filter(|pool| pool.limit < pool.capacity);
        let limits = lowered.map(|pool| (pool.pool.to_owned(), pool.limit)).collect();
        Restraint { limits, pauses: self.breakers.pauses().collect() }
    }

    /// Another number once [`Self::restraint`] has changed.
    pub fn restraint_changes(&self) -> u64 {
        self.pools.changes() + self.breakers.changes()
    }

    /// Elementary operations so far (heap and edge visits), for tests of the cost.
    pub fn operations(&self) -> u64 {
        self.operations + self.ready.operations()
    }

    fn next_wake(&self) -> Option<Timestamp> {
        if self.cancelled {
            return None;
        }
        let retry = self.retries.first().map(|&(at, _)| at);
        retry.into_iter().chain(self.breakers.next_wake()).min()
    }

    /// Settles the order of what is left.
    fn rank(&mut self, now: Timestamp) {
        let Some(order) = self.order.take() else { return };
        let open = |step: u32| !self.steps[step as usize].phase.ended();
        let (demands, capacities) = (self.ready.demands(), self.pools.capacities());
        let ranks = order.ranks(demands, &capacities, now, open, self.graph.all_dependents());
        self.ready.set_ranks(ranks);
    }

    fn begin(&mut self, now: Timestamp) {
        self.rank(now);
        for step in self.graph.roots() {
            self.make_ready(now, step);
        }
    }

    fn restore(&mut self, now: Timestamp, standings: &[Standing], commands: &mut Vec<Command>) {
        for (step, standing) in (0u32..).zip(standings) {
            let Some(state) = self.steps.get_mut(step as usize) else { break };
            state.attempts = standing.attempts;
            state.phase = match standing.phase {
                StandingPhase::Pending => continue,
                StandingPhase::Succeeded => Phase::Succeeded,
                StandingPhase::Failed => Phase::Failed,
                StandingPhase::Blocked => Phase::Blocked,
            };
            self.count_end(step);
        }
        for step in 0..self.graph.len() {
            match self.phase(step) {
                Phase::Succeeded => self.release_successors(None, step, true),
                Phase::Failed | Phase::Blocked => self.release_successors(None, step, false),
                _ => {}
            }
        }
        self.rank(now);
        // A crash may have come between a failure and the records of what it blocks.
        for step in 0..self.graph.len() {
            if self.phase(step) == Phase::Failed {
                self.block_descendants(now, step, commands);
            }
        }
        for step in 0..self.graph.len() {
            let state = &self.steps[step as usize];
            if state.phase == Phase::Waiting && state.unmet == 0 {
                self.make_ready(now, step);
            }
        }
    }

    fn phase(&self, step: u32) -> Phase {
        self.steps[step as usize].phase
    }

    fn count_end(&mut self, step: u32) {
        self.ended += 1;
        let state = &self.steps[step as usize];
        if state.phase == Phase::Succeeded && matches!(self.graph.key(step), StepKey::Handback(_)) {
            self.handed_back += 1;
        }
    }

    fn make_ready(&mut self, now: Timestamp, step: u32) {
        let state = &mut self.steps[step as usize];
        state.phase = Phase::Ready;
        state.ready_at = now;
        self.ready.insert(step);
    }

    /// Tells the successors of a step that ended; those that wait for nothing more become ready if `now` is given.
    fn release_successors(&mut self, now: Option<Timestamp>, step: u32, succeeded: bool) {
        let edges = self.graph.successors(step, succeeded);
        for successor in edges {
            self.operations += 1;
            let state = &mut self.steps[successor as usize];
            state.unmet -= 1;
            if let Some(now) = now
                && state.unmet == 0
                && state.phase == Phase::Waiting
            {
                self.make_ready(now, successor);
            }
        }
    }

    /// The attempt of `step`, if it is running.
    fn running_attempt(&self, step: u32) -> Option<u32> {
        let state = self.steps.get(step as usize)?;
        (state.phase == Phase::Running).then_some(state.attempts)
    }

    /// A step of a batch has ended; the last one gives the pools back, and those that failed wait for their next attempt.
    fn end_attempt(&mut self, now: Timestamp, step: u32, failed: Option<ErrorClass>) {
        self.running -= 1;
        let Some(ended) = self.batches.ended(self.steps[step as usize].batch, step, failed) else { return };
        let demand = self.ready.demand(step);
        self.pools.release(demand);
        if ended.succeeded {
            self.pools.recover(demand);
        }
        self.ready.released(step);
        for again in ended.again() {
            let state = &mut self.steps[again.step as usize];
            state.company_max = again.company_max;
            if again.at_once {
                self.make_ready(now, again.step);
                continue;
            }
            state.phase = Phase::Backoff;
            // The same delay for all, so that those that may return together do.
            let at = now.plus_micros(self.policy.delay_micros(ended.first(), 1, ErrorClass::Transient));
            self.retries.insert((at, again.step));
        }
    }

    fn finished(&mut self, now: Timestamp, step: u32, outcome: Outcome, commands: &mut Vec<Command>) {
        let Some(attempt) = self.running_attempt(step) else { return };
        self.batches.succeeded(self.steps[step as usize].batch);
        self.judge(now, step, None);
        self.steps[step as usize].phase = Phase::Succeeded;
        self.count_end(step);
        let key = self.graph.key(step).clone();
        commands.push(Command::Record(Record::Succeeded { step: key, attempt, at: now, outcome }));
        self.release_successors(Some(now), step, true);
        self.end_attempt(now, step, None);
    }

    /// In company: what failed is tried again, and nothing is counted against it.
    fn failed_in_company(
        &mut self,
        now: Timestamp,
        (step, attempt): (u32, u32),
        class: ErrorClass,
        error: String,
        commands: &mut Vec<Command>,
    ) {
        self.steps[step as usize].phase = Phase::Waiting;
        let key = self.graph.key(step).clone();
        commands.push(Command::Record(Record::Failed {
            step: key,
            attempt,
            at: now,
            error,
            will_retry: true,
        }));
        self.end_attempt(now, step, Some(class));
    }

    fn failed(
        &mut self,
        now: Timestamp,
        step: u32,
        class: ErrorClass,
        error: String,
        commands: &mut Vec<Command>,
    ) {
        let Some(attempt) = self.running_attempt(step) else { return };
        let in_company = self.batches.size(self.steps[step as usize].batch) > 1;
        // A batch asks for less once, however many of its steps were throttled.
        if class == ErrorClass::Throttled && self.batches.is_first_throttled(self.steps[step as usize].batch)
        {
            self.pools.throttle(self.ready.demand(step));
        }
        let is_probe = self.blamed(step, class).is_some_and(|gate| self.breakers.is_probed_by(gate, step));
        self.judge(now, step, Some(class));
        if in_company {
            return self.failed_in_company(now, (step, attempt), class, error, commands);
        }
        self.end_attempt(now, step, None);
        let retry_at = self.retry_at(now, step, class, is_probe);
        let key = self.graph.key(step).clone();
        let will_retry = retry_at.is_some();
        commands.push(Command::Record(Record::Failed { step: key, attempt, at: now, error, will_retry }));
        if let Some(at) = retry_at {
            self.steps[step as usize].phase = Phase::Backoff;
            self.retries.insert((at, step));
            return;
        }
        self.steps[step as usize].phase = Phase::Failed;
        self.count_end(step);
        self.release_successors(Some(now), step, false);
        self.block_descendants(now, step, commands);
    }

    fn retry_at(
        &mut self,
        now: Timestamp,
        step: u32,
        class: ErrorClass,
        is_probe: bool,
    ) -> Option<Timestamp> {
        // Its last attempt: nobody was there for as long as is waited.
        if self.blamed(step, class).is_some_and(|gate| self.breakers.is_given_up(gate)) {
            return None;
        }
        let state = &mut self.steps[step as usize];
        let (count, most) = match class {
            ErrorClass::Permanent | ErrorClass::Fenced => return None,
            ErrorClass::Throttled | ErrorClass::Unavailable => (&mut state.waits, self.policy.waits_max),
            ErrorClass::Transient
            | ErrorClass::Ambiguous
            | ErrorClass::RepositoryAway
            | ErrorClass::StagingLost => (&mut state.failures, self.policy.attempts_max),
        };
        // How often nobody is there for a probe, its breaker bounds.
        let is_free = is_probe && matches!(class, ErrorClass::Unavailable | ErrorClass::RepositoryAway);
        *count += u32::from(!is_free);
        let nth = (*count).max(1);
        (nth < most).then(|| now.plus_micros(self.policy.delay_micros(step, nth, class)))
    }

    fn block_descendants(&mut self, now: Timestamp, failed: u32, commands: &mut Vec<Command>) {
        let mut stack: Vec<u32> = self.graph.dependents(failed).to_vec();
        while let Some(step) = stack.pop() {
            self.operations += 1;
            if self.phase(step).ended() {
                continue;
            }
            self.steps[step as usize].phase = Phase::Blocked;
            self.count_end(step);
            commands.push(Command::Record(Record::Blocked {
                step: self.graph.key(step).clone(),
                by: self.graph.key(failed).clone(),
                at: now,
            }));
            self.release_successors(Some(now), step, false);
            stack.extend(self.graph.dependents(step));
        }
    }

    fn wake_retries(&mut self, now: Timestamp) {
        while let Some(&(at, step)) = self.retries.first()
            && at <= now
            && !self.cancelled
        {
            self.retries.pop_first();
            self.make_ready(now, step);
        }
    }

    fn dispatch(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        while !self.cancelled
            && let Some(step) = self.ready.next(&mut self.pools, &self.breakers)
        {
            let members = self.company(step);
            self.breakers.started(self.ready.gates(step), step);
            let batch = self.batches.begin(&members);
            let attempts = members.into_iter().map(|step| self.start(now, step, batch, commands)).collect();
            commands.push(Command::Start(attempts));
        }
    }

    /// The step, and the ready ones of its group that start with it, by their order.
    fn company(&mut self, first: u32) -> Vec<u32> {
        let is_probe = self.breakers.is_probe(self.ready.gates(first));
        let most = if is_probe { 1 } else { self.steps[first as usize].company_max };
        let mut members = vec![first];
        if most > 1 {
            // Those that failed together stay among themselves: others have no part in it.
            let fits = |step: &u32| {
                self.steps[*step as usize].company_max == most
                    && self.ready.gates(*step) == self.ready.gates(first)
            };
            let room = most as usize - 1;
            members.extend(self.ready.group_of(first).filter(fits).take(room));
        }
        self.operations += members.len() as u64;
        members[1..].iter().for_each(|&step| self.ready.remove(step));
        members
    }

    fn start(&mut self, now: Timestamp, step: u32, batch: u32, commands: &mut Vec<Command>) -> Attempt {
        let state = &mut self.steps[step as usize];
        state.phase = Phase::Running;
        state.attempts += 1;
        state.batch = batch;
        self.running += 1;
        let (attempt, ready_at) = (state.attempts, state.ready_at);
        let key = self.graph.key(step).clone();
        commands.push(Command::Record(Record::Started { step: key, attempt, ready_at, at: now }));
        Attempt { step, attempt }
    }

    fn conclude(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        let all_ended = self.ended == self.graph.len();
        if self.done || self.running > 0 || !(all_ended || self.cancelled) {
            return;
        }
        self.done = true;
        let sites_restored = self.handed_back;
        let sites_failed = self.graph.sites() - sites_restored;
        if all_ended {
            commands.push(Command::Record(Record::Finished { at: now, sites_restored, sites_failed }));
        }
        commands.push(Command::Done { sites_restored, sites_failed, cancelled: !all_ended });
    }
}

/// A pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse<'a> {
    /// Its name.
    pub pool: &'a str,
    /// Units held by running steps.
    pub used: u64,
    /// Units that may be held now: lowered by throttling, recovering with each success.
    pub limit: u64,
    /// Units that the plan gives it.
    pub capacity: u64,
}
