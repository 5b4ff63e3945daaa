//! All shards, once or until told to stop.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use muster_repo::Repository;
use muster_types::ShardName;
use muster_types::topology::Topology;
use tokio::sync::{Semaphore, watch};

use crate::error::CaptureFailure;
use crate::event::{CaptureEvent, Events};
use crate::install;
use crate::shard::{Recorded, ShardCapture, SourceFactory};

/// Shards in a cycle at once: each has one thread, one connection and up to one chunk of each table in memory.
const SHARDS_AT_ONCE: usize = 8;
/// The longest pause after repeated failures: short enough that a repaired shard is soon covered again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How to capture.
#[derive(Clone)]
pub struct CaptureOptions {
    /// Only these shards.
    pub shards: Option<BTreeSet<ShardName>>,
    /// Take a snapshot of each shard in the first cycle.
    pub snapshot: bool,
    /// Where files are spooled; the system's folder for such if absent.
    pub spool: Option<PathBuf>,
    /// Between two polls of a shard.
    pub poll_interval: Duration,
    /// An idle shard gets a watermark this often.
    pub watermark_interval: Duration,
    /// Shards in a cycle at once.
    pub shards_at_once: usize,
    /// A shard that another capture follows is not given up, but taken over once its log has not grown for so long.
    /// Longer than [`Self::watermark_interval`].
    pub stand_by: Option<Duration>,
    /// Each change of this number asks for a snapshot of every shard.
    pub snapshots_wanted: Option<watch::Receiver<u64>>,
    /// Is told what happens.
    pub events: Events,
}

impl CaptureOptions {
    /// As the topology says, without listeners.
    pub fn of(topology: &Topology) -> Self {
        Self {
            shards: None,
            snapshot: false,
            spool: None,
            poll_interval: Duration::from_millis(topology.capture.poll_interval_milliseconds),
            watermark_interval: Duration::from_secs(topology.capture.watermark_interval_seconds),
            shards_at_once: SHARDS_AT_ONCE,
            stand_by: None,
            snapshots_wanted: None,
            events: Arc::new(|_| ()),
        }
    }
}

/// What became of one shard.
#[derive(Clone, Debug)]
pub struct ShardOutcome {
    /// The shard.
    pub shard: ShardName,
    /// What the last cycle recorded, or why it did not.
    pub result: Result<Recorded, CaptureFailure>,
}

/// Captures shards into a repository.
pub struct CaptureRunner {
    shards: Vec<ShardCapture>,
    options: CaptureOptions,
}

impl CaptureRunner {
    /// The shards of a topology.
    pub fn new(repository: &Repository, topology: &Topology, options: CaptureOptions) -> Self {
        let topology = Arc::new(topology.clone());
        let wanted = |name: &&ShardName| options.shards.as_ref().is_none_or(|shards| shards.contains(*name));
        let factory = |shard: &ShardName| {
            let (topology, shard) = (Arc::clone(&topology), shard.clone());
            let make: SourceFactory = Arc::new(move || install::source(&topology, &shard));
            make
        };
        let sources =
            topology.shards.keys().filter(wanted).map(|shard| (shard.clone(), factory(shard))).collect();
        Self::with_sources(repository, sources, options)
    }

    /// These shards, with their capture sides.
    pub fn with_sources(
        repository: &Repository,
        sources: Vec<(ShardName, SourceFactory)>,
        options: CaptureOptions,
    ) -> Self {
        let capture = |(shard, factory)| {
            let (spool, events) = (options.spool.clone(), Arc::clone(&options.events));
            ShardCapture::new(repository.clone(), shard, factory, spool, events)
        };
        Self { shards: sources.into_iter().map(capture).collect(), options }
    }

    /// One cycle of every shard, each with a recovery point in the log at its end.
    pub async fn once(&mut self) -> Vec<ShardOutcome> {
        let permits = Semaphore::new(self.options.shards_at_once.max(1));
        let snapshot = self.options.snapshot;
        let cycles = self.shards.iter_mut().map(async |capture| {
            let _permit = permits.acquire().await;
            ShardOutcome { shard: capture.shard().clone(), result: capture.cycle(snapshot, true).await }
        });
        join_all(cycles).await
    }

    /// Polls every shard at the interval until `shutdown` completes, then gives each a last watermark. A shard that
    /// fails is tried again; one that another capture follows is given up.
    pub async fn follow(&mut self, shutdown: impl Future<Output = ()>) -> Vec<ShardOutcome> {
        let permits = Semaphore::new(self.options.shards_at_once.max(1));
        let (stop, stopped) = watch::channel(false);
        let options = &self.options;
        let followed = join_all(
            self.shards.iter_mut().map(|capture| follow_shard(capture, options, &permits, stopped.clone())),
        );
        let end = async {
            shutdown.await;
            // Followers may all have ended already.
            let _ = stop.send(true);
        };
        tokio::pin!(followed, end);
        tokio::select! {
            outcomes = &mut followed => outcomes,
            () = &mut end => followed.await,
        }
    }
}

async fn follow_shard(
    capture: &mut ShardCapture,
    options: &CaptureOptions,
    permits: &Semaphore,
    mut stopped: watch::Receiver<bool>,
) -> ShardOutcome {
    let mut snapshot = options.snapshot;
    let mut wanted = options.snapshots_wanted.clone();
    let mut failures = 0_u32;
    loop {
        let last = *stopped.borrow_and_update();
        let watermark = last || capture.idle().is_none_or(|idle| idle >= options.watermark_interval);
        if let Some(wanted) = &mut wanted
            && wanted.has_changed().unwrap_or(false)
        {
            wanted.mark_unchanged();
            snapshot = true;
        }
        let permit = permits.acquire().await;
        let result = capture.cycle(snapshot, watermark).await;
        drop(permit);
        let shard = capture.shard().clone();
        let pause = match &result {
            Ok(recorded) => {
                (snapshot, failures) = (false, 0);
                // Somebody may begin to capture it again.
                if recorded.released { options.poll_interval.max(RETRY_MAX) } else { options.poll_interval }
            }
            Err(failure) if failure.is_rivalry() && !last && options.stand_by.is_some() => {
                (options.events)(CaptureEvent::StandsBy { failure: failure.clone() });
                stand_by(capture, options.stand_by.unwrap_or_default(), &mut stopped).await;
                continue;
            }
            Err(failure) => {
                if last || failure.is_rivalry() {
                    (options.events)(CaptureEvent::Stopped { failure: failure.clone() });
                    return ShardOutcome { shard, result };
                }
                failures += 1;
                let pause = retry_pause(options.poll_interval, failures);
                let (failure, retry_seconds) = (failure.clone(), pause.as_secs_f64());
                (options.events)(CaptureEvent::Failed { failure, retry_seconds });
                pause
            }
        };
        if last {
            return ShardOutcome { shard, result };
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
}

/// Waits until the log that another capture writes has not grown for `pause`, or the runner is told to stop.
async fn stand_by(capture: &mut ShardCapture, pause: Duration, stopped: &mut watch::Receiver<bool>) {
    let mut known = capture.log_end().await;
    while tokio::time::timeout(pause, stopped.wait_for(|stop| *stop)).await.is_err() {
        let now = capture.log_end().await;
        // What cannot be read says nothing.
        if now.is_some() && now == known {
            return;
        }
        known = now.or(known);
    }
}

/// Doubles with every failure in a row.
fn retry_pause(interval: Duration, failures: u32) -> Duration {
    let longest = RETRY_MAX.max(interval);
    interval.max(Duration::from_millis(100)).saturating_mul(1 << failures.min(16)).min(longest)
}
