//! Background writers: what the living fleet does meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::activity::{self, Scene};
use crate::fleet::Fleet;
use crate::kind::{Kind, Role};
use crate::record::{Intent, Outcome, Session, Statement};

/// Share of transactions that go to the sites that the script deletes next, so that something is at stake there.
const NEXT_VICTIMS_SHARE: f64 = 0.4;
/// How many sites ahead of the script that is.
const NEXT_VICTIMS: usize = 16;
/// Share of transactions that applications roll back.
const ROLLED_BACK_SHARE: f64 = 0.03;

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub struct WriterConfig {
    /// Over all threads.
    pub transactions_per_second: u32,
    /// Threads, each with its own connections: one a shard.
    pub threads: usize,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { transactions_per_second: 300, threads: 2 }
    }
}

/// Running writers.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<u64>>>,
    fleet: Arc<Fleet>,
}

/// What writers did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterSummary {
    /// Transactions committed.
    pub committed: u64,
    /// Transactions rolled back, on purpose or by a constraint.
    pub rolled_back: u64,
    /// The longest that a writer waited for a shard's write lock.
    pub waited_most: Duration,
}

impl Fleet {
    /// Starts writers over all sites that are not deleted.
    pub fn start_writers(self: &Arc<Self>, config: WriterConfig) -> Writers {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pause =
            Duration::from_secs_f64(config.threads as f64 / f64::from(config.transactions_per_second.max(1)));
        let threads = (0..config.threads)
            .map(|number| {
                let (fleet, stop, committed) = (Arc::clone(self), Arc::clone(&stop), Arc::clone(&committed));
                std::thread::spawn(move || write_until(&fleet, number as u64, pause, &stop, &committed))
            })
            .collect();
        Writers { stop, committed, threads, fleet: Arc::clone(self) }
    }
}

impl Writers {
    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Lets every writer finish its transaction and stops them.
    ///
    /// # Errors
    /// If a writer failed, now or before.
    pub fn stop(mut self) -> Result<WriterSummary> {
        self.stop.store(true, Ordering::Release);
        let mut rolled_back = 0;
        for thread in self.threads.drain(..) {
            rolled_back += thread.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        let waited = self.fleet.shards.iter().map(|shard| shard.ledger().waited_most).max();
        Ok(WriterSummary {
            committed: self.committed(),
            rolled_back,
            waited_most: waited.unwrap_or_default(),
        })
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn write_until(
    fleet: &Fleet,
    number: u64,
    pause: Duration,
    stop: &AtomicBool,
    committed: &AtomicU64,
) -> Result<u64> {
    let mut writer = Writer {
        fleet,
        rng: ChaCha8Rng::seed_from_u64(fleet.config.seed.wrapping_mul(31).wrapping_add(number)),
        sessions: fleet.shards.iter().map(|shard| shard.connect()).collect::<Result<_>>()?,
    };
    let (mut rolled_back, mut due) = (0, Instant::now());
    while !stop.load(Ordering::Acquire) {
        match writer.step()? {
            Outcome::Committed => committed.fetch_add(1, Ordering::Relaxed),
            Outcome::RolledBack => {
                rolled_back += 1;
                0
            }
            Outcome::Skipped => 0,
        };
        due += pause;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(early) => std::thread::sleep(early),
            // After a stall the rate is kept, not made up for.
            None => due = now,
        }
    }
    Ok(rolled_back)
}

struct Writer<'f> {
    fleet: &'f Fleet,
    rng: ChaCha8Rng,
    sessions: Vec<Session>,
}

impl Writer<'_> {
    fn step(&mut self) -> Result<Outcome> {
        let Some(site) = self.choose() else { return Ok(Outcome::Skipped) };
        let roll = self.rng.random_range(0..1000);
        if roll < 4 {
            return self.reprice();
        }
        if roll < 10 && !self.fleet.has(site, Kind::Statuspage) {
            return self.activate(site);
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| self.fleet.has(site, *kind)).collect();
        let kind = kinds[self.rng.random_range(0..kinds.len())];
        let roll_back = self.rng.random_bool(ROLLED_BACK_SHARE);
        self.write(site, kind, roll_back, |scene| activity::transaction(scene, kind))
    }

    /// A living site; now and then one that the script is about to reach.
    fn choose(&mut self) -> Option<usize> {
        if self.rng.random_bool(NEXT_VICTIMS_SHARE) {
            let queue = self.fleet.queue.read().unwrap_or_else(PoisonError::into_inner);
            let at = self.fleet.queue_at.load(Ordering::Acquire).min(queue.len());
            let next = &queue[at..queue.len().min(at + NEXT_VICTIMS)];
            if !next.is_empty() {
                return Some(next[self.rng.random_range(0..next.len())]);
            }
        }
        let site = self.rng.random_range(0..self.fleet.sites.len());
        let asleep = self.fleet.sites[site].inactive && self.rng.random_bool(0.8);
        (!asleep && !self.fleet.is_gone(site)).then_some(site)
    }

    fn write(
        &mut self,
        site: usize,
        kind: Kind,
        roll_back: bool,
        build: impl FnOnce(&mut Scene<'_>) -> Result<Vec<Statement>>,
    ) -> Result<Outcome> {
        let place = self.fleet.shard_of(site, kind);
        let intent = Intent { site: Some(site), kind, deletion: false, roll_back };
        let (fleet, rng) = (self.fleet, &mut self.rng);
        let (id, name) = (&fleet.sites[site].id, &fleet.sites[site].name);
        fleet.shards[place].commit(
            &mut self.sessions[place],
            fleet.turn(Some(site)),
            intent,
            || fleet.is_gone(site),
            |connection| build(&mut Scene { fleet, connection, rng, site: id.clone(), name }),
        )
    }

    /// The site gets a Statuspage: its first rows, and its licence in another shard.
    fn activate(&mut self, site: usize) -> Result<Outcome> {
        // Said before it is done: a deletion that starts now must not pass over it.
        self.fleet.activate(site, Kind::Statuspage);
        let made =
            self.write(site, Kind::Statuspage, false, |scene| Ok(activity::first_statuspage(scene)))?;
        if made != Outcome::Committed {
            return Ok(made);
        }
        self.write(site, Kind::Licence, false, |scene| Ok(activity::new_licence(scene, Kind::Statuspage)))
    }

    /// Prices change: rows that belong to no site.
    fn reprice(&mut self) -> Result<Outcome> {
        let cores: Vec<usize> = (0..self.fleet.shards.len())
            .filter(|place| self.fleet.shards[*place].role == Role::Core)
            .collect();
        let place = cores[self.rng.random_range(0..cores.len())];
        let intent = Intent { site: None, kind: Kind::Licence, deletion: false, roll_back: false };
        let statements = activity::new_prices(&mut self.rng);
        let turn = self.fleet.turn(None);
        self.fleet.shards[place].commit(&mut self.sessions[place], turn, intent, || false, |_| Ok(statements))
    }
}
