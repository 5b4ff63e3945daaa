//! The executor: drives the scheduler with real time, drivers and the journal.
//!
//! - [`Engine`]: applies a plan, resumes a run, gives one up.
//! - [`Options`], [`RunSummary`].
//!
//! # Invariants
//! - No step has effects before the record of its start is durable.
//! - In every shard the epoch is raised before the first act there, and what was published is learnt from the shard.
//! - Dropping the future of [`Engine::apply`] or [`Engine::resume`] is a crash, and safe: all tasks end with it.
//!
//! # Errors
//! [`EngineError`] where the run as a whole cannot begin or go on. What fails for one store is in the journal, and the
//! other sites go on.

mod abandon;
mod changes;
mod check;
mod command;
mod context;
mod drive;
mod group;
mod job;
mod kind_check;
mod log;
mod neighbours;
mod pace;
mod preflight;
mod process;
mod provision;
mod references;
mod rows;
mod stage;
mod start;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_repo::Repository;
use muster_types::plan::{Plan, Restoration};
use muster_types::report::Failure;
use muster_types::{Digest, Epoch, PlanId, RunId, ShardName};

use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::driver::StoreDriver;
use crate::error::EngineError;
use crate::events::Events;
use crate::fault::Faults;
use crate::journal::{JournalError, TakeOver, Writer};
use crate::scheduler::{RetryPolicy, Scheduler};

/// Drivers by shard.
pub type Drivers = BTreeMap<ShardName, Arc<dyn StoreDriver>>;

/// How an engine works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Host and process, for those who ask who holds a run.
    pub operator: String,
    /// Digest of the present topology's text; a plan made for another is refused.
    pub topology: Digest,
    /// When failed steps are tried again.
    pub retry: RetryPolicy,
    /// A resumed run tries again what failed for good under earlier engines.
    pub retry_failed: bool,
    /// A declared command may run so long.
    pub command_limit: Duration,
    /// Memory of one table's fold; change sets above it are folded in parts.
    pub fold_bytes: u64,
    /// A proof waits so long for capture to bring the repository's log to where the shard is.
    pub capture_wait: Duration,
    /// The clock.
    pub clock: Clock,
    /// Crash points of tests.
    pub faults: Faults,
}

impl Options {
    /// Defaults for a process that calls itself `operator`.
    pub fn new(operator: impl Into<String>, topology: Digest) -> Self {
        Self {
            operator: operator.into(),
            topology,
            retry: RetryPolicy::default(),
            retry_failed: true,
            // A search index of a large site takes minutes to rebuild; an hour is a command that hangs.
            command_limit: Duration::from_secs(3600),
            // A few dozen of these run at once on a machine of a few GiB.
            fold_bytes: 32 * 1024 * 1024,
            // Several polls, and the upload of a large segment.
            capture_wait: Duration::from_secs(60),
            clock: Clock::system(),
            faults: Faults::none(),
        }
    }
}

/// How a run ended, or how far it came.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// The run.
    pub run: RunId,
    /// Its plan.
    pub plan: PlanId,
    /// The epoch of this engine.
    pub epoch: Epoch,
    /// Sites handed back, by this engine or one before it.
    pub sites_restored: u64,
    /// Sites that are not.
    pub sites_failed: u64,
    /// The operator stopped it; `muster resume` goes on.
    pub cancelled: bool,
    /// Steps that failed for good. Their sites stay claimed by the run until it is resumed or abandoned.
    pub failures: Vec<Failure>,
}

/// Executes plans.
#[derive(Clone)]
pub struct Engine {
    repository: Repository,
    drivers: Arc<Drivers>,
    options: Options,
    events: Events,
}

impl Engine {
    /// An engine over a repository and the shards that it can reach.
    pub fn new(repository: Repository, drivers: Drivers, options: Options, events: Events) -> Self {
        Self { repository, drivers: Arc::new(drivers), options, events }
    }

    /// Checks that the plan's inputs are as they were: its content, the topology, the objects, the victims' live state.
    ///
    /// # Errors
    /// [`EngineError::Refused`] naming everything that changed; what repository and shards answer.
    pub async fn preflight(&self, plan: &Plan) -> Result<(), EngineError> {
        self.check_drivers(plan)?;
        preflight::preflight_whole(&self.repository, &self.drivers, &self.options, plan).await
    }

    /// Applies a plan as a new run, to its end or until `cancel`. Sites that need a missing or truncated object fail,
    /// and the others go on.
    ///
    /// # Errors
    /// [`EngineError`]; a run that was opened can be resumed afterwards.
    pub async fn apply(&self, plan: Plan, run: &RunId, cancel: &Cancel) -> Result<RunSummary, EngineError> {
        Scheduler::for_plan(&plan, self.options.retry)?;
        self.check_drivers(&plan)?;
        preflight::preflight(&self.repository, &self.drivers, &self.options, &plan).await?;
        let taken = TakeOver::open(&self.repository, run, &Arc::new(plan), &self.writer()).await?;
        self.work(taken, cancel).await
    }

    /// Goes on with a run, taking it from the engine that holds it.
    ///
    /// # Errors
    /// [`EngineError`]; among them that another engine took the run at the same moment.
    pub async fn resume(&self, run: &RunId, cancel: &Cancel) -> Result<RunSummary, EngineError> {
        let history = crate::journal::read_run(&self.repository, run).await?;
        self.check_drivers(&history.plan)?;
        preflight::same_topology(&self.options, &history.plan)?;
        let taken = TakeOver::take(&self.repository, run, &self.writer()).await?;
        self.work(taken, cancel).await
    }

    /// Gives a run up: fences its engine, releases its claims, removes its staging, and says so in the journal. What
    /// was published stays.
    ///
    /// # Errors
    /// [`EngineError`]; after an error it can be repeated.
    pub async fn abandon(&self, run: &RunId, reason: &str) -> Result<(), EngineError> {
        let history = crate::journal::read_run(&self.repository, run).await?;
        self.check_drivers(&history.plan)?;
        let taken = TakeOver::take(&self.repository, run, &self.writer()).await?;
        let epoch = taken.epoch();
        let abandoned = abandon::abandon(taken, &self.drivers, &self.options, reason).await;
        self.told_who(abandoned, run, epoch).await
    }

    /// Gives up the run of a drill, whose shards need not be there any more: says so in the journal and does nothing else. A
    /// run that has ended stays as it is.
    ///
    /// # Errors
    /// [`EngineError`]; [`EngineError::Refused`] for a run that is no drill's.
    pub async fn close_drill(&self, run: &RunId, reason: &str) -> Result<(), EngineError> {
        let history = crate::journal::read_run(&self.repository, run).await?;
        if !history.plan.request.placement.sandbox {
            let reasons = vec![format!("run {run} is no drill's; `muster abandon {run}` gives it up")];
            return Err(EngineError::Refused { reasons });
        }
        if history.state.finished().is_some() || history.state.abandoned().is_some() {
            return Ok(());
        }
        let taken = TakeOver::take(&self.repository, run, &self.writer()).await?;
        abandon::say(taken, &self.options, reason).await
    }

    async fn work(&self, taken: TakeOver, cancel: &Cancel) -> Result<RunSummary, EngineError> {
        let (run, epoch) = (taken.history.run.clone(), taken.epoch());
        let mut engine = self.clone();
        engine.options.clock = self.options.clock.steady();
        let driven = drive::drive(&engine, taken, cancel).await;
        self.told_who(driven, &run, epoch).await
    }

    /// A shard knows only that a later engine has the run; the journal, which that one won first, knows which.
    async fn told_who<T>(
        &self,
        outcome: Result<T, EngineError>,
        run: &RunId,
        epoch: Epoch,
    ) -> Result<T, EngineError> {
        let Err(EngineError::FencedInShard { .. }) = outcome else { return outcome };
        // The shard's word stands where the journal cannot be read.
        let Ok(history) = crate::journal::read_run(&self.repository, run).await else { return outcome };
        match history.state.takings().last() {
            Some((held, by, at)) if *held > epoch => {
                let (run, by, epoch, at) = (run.clone(), by.clone(), *held, *at);
                Err(JournalError::Fenced { run, by, epoch, at }.into())
            }
            _ => outcome,
        }
    }

    fn check_drivers(&self, plan: &Plan) -> Result<(), EngineError> {
        match shards(plan).find(|shard| !self.drivers.contains_key(*shard)) {
            Some(shard) => Err(EngineError::NoDriver { shard: shard.clone() }),
            None => Ok(()),
        }
    }

    fn writer(&self) -> Writer {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        let nth = ENGINES.fetch_add(1, Ordering::Relaxed);
        let micros = self.options.clock.now().as_micros();
        Writer {
            by: self.options.operator.clone(),
            id: format!("{}/{}/{nth}/{micros}", self.options.operator, std::process::id()),
            clock: self.options.clock.clone(),
        }
    }
}

/// Shards that a run acts in: those that restored stores are published to.
fn shards(plan: &Plan) -> impl Iterator<Item = &ShardName> {
    let restored = plan.sites.iter().flat_map(|site| &site.stores);
    let restored = restored.filter(|store| store.restoration == Restoration::Restored);
    let mut names: Vec<&ShardName> = restored.map(|store| &store.shard).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter()
}
