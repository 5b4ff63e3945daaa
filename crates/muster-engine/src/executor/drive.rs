//! The main loop: scheduler in the middle, journal before effects.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use muster_types::journal::{Outcome, Record};
use muster_types::plan::StepKey;
use muster_types::report::Failure;
use muster_types::{Epoch, Timestamp};
use tokio::task::JoinSet;

use super::context::{Context, StepError, StepResult};
use super::job::Job;
use super::rows::RowSource;
use super::{Engine, RunSummary, group, start};
use crate::cancel::Cancel;
use crate::driver::ErrorClass;
use crate::error::EngineError;
use crate::events::{Event, Work};
use crate::fault::Point;
use crate::journal::{Journal, JournalError, RunHistory, RunState, StepPhase, TakeOver};
use crate::scheduler::{Attempt, Command, Input, Scheduler};

/// Progress events come at most this often: as fast as a person can read.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Takes the run through to its end, or until it is cancelled or lost.
pub(super) async fn drive(
    engine: &Engine,
    taken: TakeOver,
    cancel: &Cancel,
) -> Result<RunSummary, EngineError> {
    let (journal, history, writing) = taken.into_journal(engine.options.faults.clone());
    let mut writing = std::pin::pin!(writing);
    let work = run(engine, journal, history, cancel);
    tokio::select! {
        biased;
        summary = work => summary,
        // The writer ends before the work only when the run is lost, or the repository is.
        lost = &mut writing => match lost {
            Err(error) => Err(error.into()),
            Ok(()) => pending().await,
        },
    }
}

async fn run(
    engine: &Engine,
    journal: Journal,
    history: RunHistory,
    cancel: &Cancel,
) -> Result<RunSummary, EngineError> {
    let RunHistory { run, plan, mut state, .. } = history;
    let epoch = state.epoch();
    let scheduler = Scheduler::for_plan(&plan, engine.options.retry)?;
    announce(engine, &state, &plan, &run, epoch);
    let ready = start::start(engine, &run, epoch, &plan, &state).await?;
    for record in &ready.found {
        apply(&mut state, record, &run)?;
    }
    if !ready.found.is_empty() && !journal.append(ready.found).wait().await {
        // The writer's own error ends the select above.
        return pending().await;
    }
    let rows = RowSource::new(&engine.repository, &plan, &state);
    let context = Arc::new(Context::new(engine, &run, epoch, &plan, rows, ready.refused, cancel));
    let mut driving = Driving {
        context,
        scheduler,
        state,
        journal,
        running: JoinSet::new(),
        wake: None,
        last: None,
        end: None,
        restraint_changes: 0,
    };
    driving.begin(engine.options.retry_failed)?;
    driving.until_done(cancel).await
}

fn apply(state: &mut RunState, record: &Record, run: &muster_types::RunId) -> Result<(), EngineError> {
    let illegal = |source| JournalError::Illegal { run: run.clone(), source };
    Ok(state.apply(record).map_err(illegal)?)
}

fn announce(
    engine: &Engine,
    state: &RunState,
    plan: &muster_types::plan::Plan,
    run: &muster_types::RunId,
    epoch: Epoch,
) {
    let status = crate::status::work(plan, state);
    engine.events.add(status.1);
    let (total, done) = status;
    engine.events.send(Event::Taken { run: run.clone(), plan: plan.id.clone(), epoch, total, done });
}

struct BatchEnd {
    /// By step; none where the start never became durable.
    results: Vec<(u32, StepResult)>,
}

struct Driving {
    context: Arc<Context>,
    scheduler: Scheduler,
    state: RunState,
    journal: Journal,
    running: JoinSet<BatchEnd>,
    wake: Option<Timestamp>,
    /// The last records' durability: they become durable in order.
    last: Option<crate::journal::Durable>,
    end: Option<(u64, u64, bool)>,
    /// Changes of the scheduler's restraint that the journal has.
    restraint_changes: u64,
}

impl Driving {
    fn begin(&mut self, retry_failed: bool) -> Result<(), EngineError> {
        let fresh = self.state.steps().iter().all(|step| step.phase == StepPhase::Pending);
        let input = if fresh { Input::Begin } else { Input::Restore(self.state.standings(retry_failed)) };
        self.step(input)
    }

    async fn until_done(mut self, cancel: &Cancel) -> Result<RunSummary, EngineError> {
        let mut cancelled = false;
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        let mut shown = Work::default();
        while self.end.is_none() {
            let wake = sleep_until(self.wake, self.context.options.clock.now());
            tokio::select! {
                biased;
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    self.context.events.send(Event::Stopping { running: self.scheduler.running() });
                    self.step(Input::Cancel)?;
                }
                Some(ended) = self.running.join_next() => self.ended(ended)?,
                () = wake => {
                    self.wake = None;
                    self.step(Input::Tick)?;
                }
                _ = progress.tick() => {
                    let now = self.context.events.progress();
                    if now != shown {
                        shown = now;
                        self.context.events.send(Event::Progress(now));
                    }
                }
            }
        }
        self.conclude().await
    }

    async fn conclude(mut self) -> Result<RunSummary, EngineError> {
        if let Some(last) = self.last.take()
            && !last.wait().await
        {
            return pending().await;
        }
        let (sites_restored, sites_failed, cancelled) = self.end.unwrap_or_default();
        self.context.events.send(Event::Progress(self.context.events.progress()));
        self.context.events.send(Event::Done { sites_restored, sites_failed, cancelled });
        let failed = |(step, state): (&muster_types::plan::PlanStep, &crate::journal::StepState)| {
            let error = state.error.clone().filter(|_| state.phase == StepPhase::Failed)?;
            Some(Failure { step: step.key.clone(), error })
        };
        Ok(RunSummary {
            run: self.context.run.clone(),
            plan: self.context.plan.id.clone(),
            epoch: self.context.epoch,
            sites_restored,
            sites_failed,
            cancelled,
            failures: self.context.plan.steps.iter().zip(self.state.steps()).filter_map(failed).collect(),
        })
    }

    fn ended(&mut self, ended: Result<BatchEnd, tokio::task::JoinError>) -> Result<(), EngineError> {
        let run = || self.context.run.clone();
        let ended = ended.map_err(|error| EngineError::LostStep { run: run(), what: error.to_string() })?;
        let mut inputs = Vec::with_capacity(ended.results.len());
        for (step, result) in ended.results {
            inputs.push(match result {
                Ok(outcome) => Input::Finished { step, outcome },
                Err(error) if error.class == ErrorClass::Fenced => {
                    return Err(EngineError::FencedInShard { run: run(), error: error.message });
                }
                Err(error) => Input::Failed { step, class: error.class, error: error.message },
            });
        }
        // Without a result the journal's writer has failed, and its error ends the run.
        if inputs.is_empty() { Ok(()) } else { self.step_all(inputs) }
    }

    fn step(&mut self, input: Input) -> Result<(), EngineError> {
        self.step_all(vec![input])
    }

    /// Inputs for the scheduler that came together, and all that follows from them.
    fn step_all(&mut self, inputs: Vec<Input>) -> Result<(), EngineError> {
        let now = self.context.options.clock.now();
        let mut records = Vec::new();
        for command in self.scheduler.step_all(now, inputs) {
            match command {
                Command::Record(record) => {
                    apply(&mut self.state, &record, &self.context.run)?;
                    self.tell(&record);
                    records.push(record);
                }
                Command::Start(attempts) => self.start(&attempts, std::mem::take(&mut records)),
                Command::WakeAt(at) => self.wake = Some(at),
                Command::Done { sites_restored, sites_failed, cancelled } => {
                    self.end = Some((sites_restored, sites_failed, cancelled));
                }
            }
        }
        if !records.is_empty() {
            self.last = Some(self.append(records));
        }
        Ok(())
    }

    /// Appends records, with what holds steps back if that has changed.
    fn append(&mut self, records: Vec<Record>) -> crate::journal::Durable {
        let changes = self.scheduler.restraint_changes();
        let changed = std::mem::replace(&mut self.restraint_changes, changes) != changes;
        self.journal.append_restrained(records, changed.then(|| self.scheduler.restraint()))
    }

    /// Starts a step, or several of a group together: what others can see once the starts, the last of `records`, are
    /// durable, and with them all that was recorded before; what only reads, or writes beside the live data, at once.
    fn start(&mut self, attempts: &[Attempt], records: Vec<Record>) {
        let durable = self.append(records);
        let job = |attempt: &Attempt| {
            let key = &self.context.plan.steps[attempt.step as usize].key;
            (attempt.step, Job::of(key, &self.context, &self.state))
        };
        let jobs: Vec<(u32, Result<Job, StepError>)> = attempts.iter().map(job).collect();
        let rests_on_journal = jobs.iter().any(|(_, job)| job.as_ref().is_ok_and(Job::is_visible));
        let context = Arc::clone(&self.context);
        self.running.spawn(async move {
            if rests_on_journal && !durable.wait().await {
                return BatchEnd { results: Vec::new() };
            }
            context.options.faults.reach(Point::BeforeEffect).await;
            let results = group::run(&context, jobs).await;
            context.options.faults.reach(Point::AfterEffect).await;
            BatchEnd { results }
        });
    }

    fn tell(&self, record: &Record) {
        let events = &self.context.events;
        match record.clone() {
            Record::Started { step, attempt, at, .. } => events.send(Event::Started { step, attempt, at }),
            Record::Succeeded { step, attempt, at, outcome } => {
                events.add(done_work(&step, &outcome));
                events.send(Event::Succeeded { step, attempt, at });
            }
            Record::Failed { step, attempt, at, error, will_retry } => {
                events.add(Work { steps: u64::from(!will_retry), ..Work::default() });
                events.send(Event::Failed { step, attempt, at, error, will_retry });
            }
            Record::Blocked { step, by, .. } => {
                events.add(Work { steps: 1, ..Work::default() });
                events.send(Event::Blocked { step, by });
            }
            _ => {}
        }
    }
}

/// What a success adds to the sums; rows and bytes of staging were counted as they flowed.
fn done_work(step: &StepKey, outcome: &Outcome) -> Work {
    let mut work = Work { steps: 1, ..Work::default() };
    match (step, outcome) {
        (StepKey::Publish(_), Outcome::Published(published)) => {
            work.stores = 1;
            work.rows_published = published.rows;
        }
        (StepKey::Publish(_), _) => work.stores = 1,
        (StepKey::Handback(_), _) => work.sites = 1,
        _ => {}
    }
    work
}

async fn sleep_until(at: Option<Timestamp>, now: Timestamp) {
    match at {
        None => pending().await,
        Some(at) => {
            let micros = u64::try_from(at.as_micros() - now.as_micros()).unwrap_or(0);
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }
}
