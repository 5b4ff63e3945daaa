//! What an engine tells while it works, for progress bars and lines.
//!
//! Events are for people: the journal is the truth. Step events come as they happen; [`Event::Progress`] carries
//! sums and comes at most a few times a second, however fast rows flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_types::plan::StepKey;
use muster_types::{Epoch, PlanId, RunId, ShardName, SiteId, Timestamp};
use serde::Serialize;
use tokio::sync::mpsc;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The engine holds the run.
    Taken {
        /// The run.
        run: RunId,
        /// Its plan.
        plan: PlanId,
        /// The epoch won.
        epoch: Epoch,
        /// What there is to do in all, over all engines of the run.
        total: Work,
        /// What earlier engines have done of it.
        done: Work,
    },
    /// The engine raised its epoch in a shard and holds its stores there.
    ShardReady {
        /// The shard.
        shard: ShardName,
        /// Publishes of earlier engines that the journal did not know of.
        found_published: u64,
    },
    /// A shard, or some stores of it, cannot be used; the sites named fail.
    Refused {
        /// The shard.
        shard: ShardName,
        /// The sites.
        sites: Vec<SiteId>,
        /// Why.
        reason: String,
    },
    /// An attempt begins.
    Started {
        /// The step.
        step: StepKey,
        /// Attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
    },
    /// A step is done.
    Succeeded {
        /// The step.
        step: StepKey,
        /// Attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
    },
    /// An attempt failed.
    Failed {
        /// The step.
        step: StepKey,
        /// Attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
        /// The error.
        error: String,
        /// Another attempt follows.
        will_retry: bool,
    },
    /// A step will not run.
    Blocked {
        /// The step.
        step: StepKey,
        /// The one that failed.
        by: StepKey,
    },
    /// Sums so far, over all engines of the run.
    Progress(Work),
    /// The operator asked to stop; this many steps are still running.
    Stopping {
        /// Running steps.
        running: u32,
    },
    /// Nothing is left, or the operator stopped the run.
    Done {
        /// Sites handed back.
        sites_restored: u64,
        /// Sites that were not.
        sites_failed: u64,
        /// Stopped before the end.
        cancelled: bool,
    },
}

/// Amounts of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Sites handed back.
    pub sites: u64,
    /// Stores published.
    pub stores: u64,
    /// Steps ended.
    pub steps: u64,
    /// Rows loaded beside the live data.
    pub rows_staged: u64,
    /// Rows made live.
    pub rows_published: u64,
    /// Compressed bytes read.
    pub bytes: u64,
}

/// Where events go; without a receiver they go nowhere.
#[derive(Clone, Debug, Default)]
pub struct Events {
    sender: Option<mpsc::UnboundedSender<Event>>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    sites: AtomicU64,
    stores: AtomicU64,
    steps: AtomicU64,
    rows_staged: AtomicU64,
    rows_published: AtomicU64,
    bytes: AtomicU64,
}

impl Events {
    /// Events into a channel: a few per step, so its length is bounded by the plan's.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender: Some(sender), counters: Arc::default() }, receiver)
    }

    /// Events that no one wants.
    pub fn none() -> Self {
        Self::default()
    }

    pub(crate) fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            // Whoever listened may be gone.
            let _ = sender.send(event);
        }
    }

    /// Sums so far.
    pub fn progress(&self) -> Work {
        let counters = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Work {
            sites: load(&counters.sites),
            stores: load(&counters.stores),
            steps: load(&counters.steps),
            rows_staged: load(&counters.rows_staged),
            rows_published: load(&counters.rows_published),
            bytes: load(&counters.bytes),
        }
    }

    /// Takes back what an attempt that failed had added.
    pub(crate) fn take_back(&self, rows_staged: u64, bytes: u64) {
        self.counters.rows_staged.fetch_sub(rows_staged, Ordering::Relaxed);
        self.counters.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, work: Work) {
        let counters = &self.counters;
        for (counter, amount) in [
            (&counters.sites, work.sites),
            (&counters.stores, work.stores),
            (&counters.steps, work.steps),
            (&counters.rows_staged, work.rows_staged),
            (&counters.rows_published, work.rows_published),
            (&counters.bytes, work.bytes),
        ] {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }
}
