//! The judge.
//!
//! # What is right
//! A store (one site's rows of one kind) has a history: its first rows, then one state after each committed transaction
//! that touched it. Restored to the recovery point `reached` of its shard, it must equal one of these states, and
//!
//! - no transaction may be in it whose COMMIT began after `reached` (never after);
//! - no transaction may be missing whose COMMIT had returned one poll interval before `reached` (the stamp of a
//!   recovery point is taken after its read snapshot, and well within one interval of it);
//! - no part of the deletion may be in it;
//! - all stores of a shard that were restored to one recovery point must fit **one** cut of the shard's order of commits:
//!   there must be a commit number up to which all of them have everything and behind which none has anything.
//!
//! A store without a recovery point must have been empty then, and be empty now. Whatever is not a victim's must
//! equal the first rows plus all that the writers committed, whole tables at a time, and tables, indexes and
//! triggers must be the ones that were made.
//!
//! Of PostgreSQL shards, which are exact to the commit, the interval is 0.
//!
//! # How
//! Each shard's first copy is copied once more. The ledger's transactions of the neighbours are applied to it at once, those of a
//! victim one by one up to the states in question, and rows are compared by SQLite itself (`EXCEPT`, every column with
//! its storage class) between this copy and the live file, or an export of the live database.

mod compare;
mod shard;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Result, anyhow};

use crate::deletion::DeletionLog;
use crate::fleet::Fleet;
pub use verdict::{Difference, Loss, Verdict};

/// Recovery point of each restored store, in microseconds since the Unix epoch, by bare site id and kind.
pub type Reached = BTreeMap<(String, String), i64>;

impl Fleet {
    /// Judges the live shards. Writers must have stopped.
    ///
    /// # Errors
    /// If a shard cannot be read; differences are in the [`Verdict`].
    pub fn judge(&self, log: &DeletionLog, reached: &Reached, poll_interval_micros: i64) -> Result<Verdict> {
        let next = Mutex::new(0..self.shards.len());
        let judged = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let work = || -> Result<()> {
            while let Some(place) = next.lock().ok().and_then(|mut next| next.next()) {
                let part = shard::judge(self, place, log, reached, poll_interval_micros)?;
                if let Ok(mut judged) = judged.lock() {
                    judged.push(part);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            handles
                .into_iter()
                .try_for_each(|handle| handle.join().unwrap_or_else(|_| Err(anyhow!("the judge panicked"))))
        })?;
        let parts = judged.into_inner().map_err(|_| anyhow!("the judge panicked"))?;
        Ok(Verdict::of(self, log, parts))
    }
}
