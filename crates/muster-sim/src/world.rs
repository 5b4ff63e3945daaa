//! What all processes of a run share: objects, shards, faults, chance, and those who look on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_engine::Clock;
use muster_types::Timestamp;
use tokio::time::Instant;

use crate::audit::Audit;
use crate::dice::Dice;
use crate::every::{Ambiguity, AtWrite};
use crate::faults::Faults;
use crate::life::Life;
use crate::mutation::Mutation;
use crate::trace::Trace;

/// When virtual time begins, in seconds: any time will do.
const EPOCH_SECONDS: i64 = 1_700_000_000;

/// An object of the model store.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) body: Bytes,
    pub(crate) created: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    trace: Mutex<Trace>,
    dice: Mutex<Dice>,
    audit: Mutex<Audit>,
    objects: Mutex<BTreeMap<String, Stored>>,
    pub(crate) faults: Faults,
    healed: AtomicBool,
    began: Instant,
    pub(crate) oddities: Oddities,
    journal_writes: AtomicU64,
}

/// What is wrong on purpose, apart from what is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Oddities {
    pub(crate) mutation: Option<Mutation>,
    pub(crate) at_write: Option<AtWrite>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One thread; a panic ends the run.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world with these objects. Must be called within the run's runtime.
    pub(crate) fn new(
        objects: impl IntoIterator<Item = (String, Bytes)>,
        faults: Faults,
        dice: Dice,
        oddities: Oddities,
        whole_trace: bool,
    ) -> Arc<Self> {
        let stored = |(key, body)| (key, Stored { body, created: Duration::ZERO });
        Arc::new(Self {
            trace: Mutex::new(Trace::new(whole_trace)),
            dice: Mutex::new(dice),
            audit: Mutex::new(Audit::default()),
            objects: Mutex::new(objects.into_iter().map(stored).collect()),
            faults,
            healed: AtomicBool::new(false),
            began: Instant::now(),
            oddities,
            journal_writes: AtomicU64::new(0),
        })
    }

    /// Counts a conditional write of a journal entry; what it is to meet.
    pub(crate) fn journal_write(&self) -> Option<Ambiguity> {
        let nth = self.journal_writes.fetch_add(1, Ordering::Relaxed) + 1;
        self.oddities.at_write.filter(|at| at.nth == nth).map(|at| at.ambiguity)
    }

    /// Conditional writes of journal entries so far.
    pub(crate) fn journal_writes(&self) -> u64 {
        self.journal_writes.load(Ordering::Relaxed)
    }

    pub(crate) fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    pub(crate) fn audit(&self) -> MutexGuard<'_, Audit> {
        lock(&self.audit)
    }

    pub(crate) fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        lock(&self.objects)
    }

    pub(crate) fn trace(&self) -> MutexGuard<'_, Trace> {
        lock(&self.trace)
    }

    /// Time since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The true time.
    pub(crate) fn now(&self) -> Timestamp {
        let micros = i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(EPOCH_SECONDS * 1_000_000 + micros)
    }

    /// The clock of the machines, which may be set meanwhile.
    pub(crate) fn clock(self: &Arc<Self>) -> Clock {
        let world = Arc::clone(self);
        Clock::from_fn(move || world.now().plus_micros(world.clock_offset()))
    }

    fn clock_offset(&self) -> i64 {
        if self.is_healed() {
            return 0;
        }
        let passed = self.faults.clock.iter().take_while(|(at, _)| *at <= self.elapsed());
        passed.last().map_or(0, |&(_, offset)| offset)
    }

    /// From now on nothing goes wrong.
    pub(crate) fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
        self.note("world", "healed");
    }

    pub(crate) fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Draws whether a fault of this rate happens now.
    pub(crate) fn strikes(&self, per_million: u32) -> bool {
        per_million > 0 && !self.is_healed() && self.dice().chance(per_million)
    }

    pub(crate) fn is_within(&self, windows: &[crate::faults::Window]) -> bool {
        !windows.is_empty() && !self.is_healed() && crate::faults::within(windows, self.elapsed())
    }

    /// A way of a request or an answer.
    pub(crate) fn way(&self, (least, most): (Duration, Duration)) -> Duration {
        // A healed world still takes its time.
        self.dice().span(least, most)
    }

    pub(crate) fn note(&self, who: &str, what: &str) {
        let at = u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.trace().add(at, who, what);
    }

    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.oddities.mutation == Some(mutation)
    }
}

/// What one process sees of the world.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
}

impl View {
    pub(crate) fn note(&self, what: &str) {
        self.world.note(self.life.name(), what);
    }

    /// Sends a request: `work` is what the other side does of it, which goes on when the process that asked dies.
    pub(crate) async fn ask<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.life.point().await;
        let asked = tokio::spawn(work);
        self.life.point().await;
        let answer = asked.await;
        self.life.point().await;
        match answer {
            Ok(answer) => answer,
            // A model that panics ends the run; nobody aborts these tasks.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
