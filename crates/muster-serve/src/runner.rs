//! Runs jobs when they are due, in agreement with the other servers of the repository.
//!
//! # Invariants
//! - Work begins only after its claim is durable in the job's chain.
//! - What cannot be decided now, since the repository does not answer, is decided later; nothing else stops the runner.
//! - A clean stop releases what is at work, so that another server begins it at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use muster_repo::jobs::{JobChain, leave_beat, read_beat};
use muster_repo::{RepoError, Repository};
use muster_types::Timestamp;
use muster_types::format::FORMAT;
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord, Missed};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agenda::{Job, Next, follows, next};
use crate::liveness::Liveness;

/// The longest sleep: clocks are set, and schedules of other servers may differ.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// After an error of the repository, at most: long enough not to hammer it, short enough for a job a minute.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What a job does.
#[async_trait]
pub trait Work: Send + Sync {
    /// Does it for one occurrence; what it says of itself, or why it failed. It is dropped when the server stops.
    async fn run(&self, occurrence: Timestamp) -> Result<String, String>;

    /// Whether this server can do it now; if not, it leaves the job to others.
    fn is_able(&self) -> bool {
        true
    }
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// Occurrences passed that nobody ran.
    Missed {
        /// The job.
        job: String,
        /// Which.
        missed: Missed,
    },
    /// Its work begins here.
    Started {
        /// The job.
        job: String,
        /// For which occurrence.
        occurrence: Timestamp,
        /// How often it was begun.
        attempt: u32,
    },
    /// It came to its end.
    Ended {
        /// The job.
        job: String,
        /// For which occurrence.
        occurrence: Timestamp,
        /// How.
        outcome: JobOutcome,
        /// How long it took here, in milliseconds.
        milliseconds: u64,
    },
    /// It came to its end, and another server had taken it over: it does not count.
    Superseded {
        /// The job.
        job: String,
        /// For which occurrence.
        occurrence: Timestamp,
    },
    /// The repository does not answer; it is tried again.
    Unreachable {
        /// The job; none for signs of life.
        job: Option<String>,
        /// Why.
        error: String,
    },
}

/// Is told what happens, from any thread; must not block.
pub type JobEvents = Arc<dyn Fn(JobEvent) + Send + Sync>;

/// One server's part.
#[derive(Clone)]
pub struct JobRunner {
    repository: Repository,
    server: String,
    lease: Duration,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    events: JobEvents,
    liveness: Arc<Mutex<Liveness>>,
    began: Instant,
}

impl JobRunner {
    /// A server with a name that no process before it had, which is taken for dead when it leaves no sign of life for
    /// `lease`.
    pub fn new(
        repository: &Repository,
        server: impl Into<String>,
        lease: Duration,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        events: JobEvents,
    ) -> Self {
        Self {
            repository: repository.clone(),
            server: server.into(),
            lease,
            now: Arc::new(now),
            events,
            liveness: Arc::new(Mutex::new(Liveness::new(lease))),
            began: Instant::now(),
        }
    }

    /// Runs until `stop` says so; every job in a task of its own.
    pub async fn run(&self, jobs: Vec<(Job, Arc<dyn Work>)>, stop: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let (runner, stopping) = (self.clone(), stop.clone());
        tasks.spawn(async move { runner.live(stopping).await });
        for (job, work) in jobs {
            let (runner, stopping) = (self.clone(), stop.clone());
            tasks.spawn(async move { runner.follow(&job, work.as_ref(), stopping).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Leaves signs of life.
    async fn live(&self, mut stop: watch::Receiver<bool>) {
        let mut beat = 0;
        loop {
            beat += 1;
            if let Err(error) = leave_beat(&self.repository, &self.server, beat, (self.now)()).await {
                self.unreachable(None, &error);
            }
            if stopped_within(&mut stop, self.lease / 4).await {
                return;
            }
        }
    }

    async fn follow(&self, job: &Job, work: &dyn Work, mut stop: watch::Receiver<bool>) {
        let mut chain = JobChain::new(&self.repository, &job.name);
        while !*stop.borrow() {
            let pause = match self.advance(job, &mut chain, work, &mut stop).await {
                Ok(pause) => pause,
                Err(error) => {
                    self.unreachable(Some(job), &error);
                    RETRY_PAUSE.min(self.lease)
                }
            };
            if stopped_within(&mut stop, pause).await {
                return;
            }
        }
    }

    /// Decides once; how long to wait before the next time.
    async fn advance(
        &self,
        job: &Job,
        chain: &mut JobChain,
        work: &dyn Work,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Duration, RepoError> {
        if !work.is_able() {
            return Ok((self.lease / 4).min(SLEEP_MAX));
        }
        chain.refresh().await?;
        let alive = self.is_holder_alive(chain.last()).await?;
        let now = (self.now)();
        match next(job, chain.last(), now, |_| alive) {
            Next::Wait { until: None } => Ok((self.lease / 4).min(SLEEP_MAX)),
            Next::Wait { until: Some(until) } => {
                let seconds = until.seconds_since(now).max(0.0);
                Ok(Duration::from_secs_f64(seconds.min(SLEEP_MAX.as_secs_f64())))
            }
            Next::Decide { settled, decision } => {
                let record = self.record(chain.last(), settled, decision.clone());
                if !chain.append(record).await? {
                    return Ok(Duration::ZERO);
                }
                let has_worked = matches!(decision, JobDecision::Claimed { .. });
                self.act(job, chain, decision, work, stop).await?;
                // Others look every quarter of a lease: whoever has worked leaves what is due already to them.
                Ok(if has_worked { (self.lease / 3).min(SLEEP_MAX) } else { Duration::ZERO })
            }
        }
    }

    async fn act(
        &self,
        job: &Job,
        chain: &mut JobChain,
        decision: JobDecision,
        work: &dyn Work,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), RepoError> {
        let name = || job.name.clone();
        match decision {
            JobDecision::Claimed { occurrence, attempt, missed } => {
                if let Some(missed) = missed {
                    (self.events)(JobEvent::Missed { job: name(), missed });
                }
                (self.events)(JobEvent::Started { job: name(), occurrence, attempt });
                self.work(job, chain, (occurrence, attempt), work, stop).await
            }
            JobDecision::Done { occurrence, outcome, .. } => {
                (self.events)(JobEvent::Ended { job: name(), occurrence, outcome, milliseconds: 0 });
                Ok(())
            }
            JobDecision::Begun | JobDecision::Released { .. } => Ok(()),
        }
    }

    async fn work(
        &self,
        job: &Job,
        chain: &mut JobChain,
        (occurrence, attempt): (Timestamp, u32),
        work: &dyn Work,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), RepoError> {
        let began = Instant::now();
        let ended = tokio::select! {
            // What came to its end counts, also where the stop comes with it.
            biased;
            ended = work.run(occurrence) => Some(match ended {
                Ok(summary) => JobOutcome::Succeeded { summary },
                Err(reason) => JobOutcome::Failed { reason },
            }),
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let decision = match ended.clone() {
            Some(outcome) => JobDecision::Done { occurrence, attempt, outcome },
            None => JobDecision::Released { occurrence, attempt },
        };
        let counts = self.conclude(job, chain, decision, stop).await?;
        let job = job.name.clone();
        match ended {
            Some(outcome) if counts => {
                (self.events)(JobEvent::Ended { job, occurrence, outcome, milliseconds });
            }
            Some(_) => (self.events)(JobEvent::Superseded { job, occurrence }),
            None => {}
        }
        Ok(())
    }

    /// Records the end of an attempt, however long the repository is away; whether it counts.
    async fn conclude(
        &self,
        job: &Job,
        chain: &mut JobChain,
        decision: JobDecision,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<bool, RepoError> {
        let Some(settled) = chain.last().map(|last| last.settled) else { return Ok(false) };
        // One body for the slot, whatever the number of tries.
        let record = self.record(chain.last(), settled, decision);
        if !follows(chain.last(), &record) {
            return Ok(false);
        }
        loop {
            match chain.append(record.clone()).await {
                Ok(won) => return Ok(won),
                Err(error) if *stop.borrow() || !error.is_transient() => return Err(error),
                Err(error) => self.unreachable(Some(job), &error),
            }
            stopped_within(stop, RETRY_PAUSE).await;
        }
    }

    fn record(&self, last: Option<&JobRecord>, settled: Timestamp, decision: JobDecision) -> JobRecord {
        let sequence = last.map_or(1, |last| last.sequence + 1);
        let (server, at) = (self.server.clone(), (self.now)());
        JobRecord { format: FORMAT, sequence, server, at, settled, decision }
    }

    /// Whether the server that is at work on the job shows signs of life. An own claim that this life of the server does
    /// not work on is one whose end could not be recorded.
    async fn is_holder_alive(&self, last: Option<&JobRecord>) -> Result<bool, RepoError> {
        let Some(holder) = last.filter(|last| matches!(last.decision, JobDecision::Claimed { .. })) else {
            return Ok(false);
        };
        if holder.server == self.server {
            return Ok(false);
        }
        let beat = read_beat(&self.repository, &holder.server).await?;
        let mut liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(beat) = beat {
            liveness.saw(&holder.server, beat, self.began.elapsed());
        }
        Ok(liveness.is_alive(&holder.server, self.began.elapsed()))
    }

    fn unreachable(&self, job: Option<&Job>, error: &RepoError) {
        let job = job.map(|job| job.name.clone());
        (self.events)(JobEvent::Unreachable { job, error: error.to_string() });
    }
}

/// Waits; true when the server is told to stop.
async fn stopped_within(stop: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    // Without its sender the server is gone.
    tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok()
}
