//! Whether rows that are read back are those that this process has sent.
//!
//! What was sent is known as the sum of a keyed hash of each line of COPY text. The key is drawn for each driver and never
//! leaves it: nobody can choose rows by it, and two sets of lines that differ have equal sums with a chance below 2^-128,
//! up to 2^32 lines. So no construction is needed that withstands those who know the hash, as for digests that are kept
//! ([`muster_rows::RowsDigest`]), and lines need not be taken apart. Where sums differ, nothing is said: the same row can be
//! written in two ways, and then digests decide.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use muster_types::StoreId;

/// Stores of which it is remembered what was sent: some hundred bytes each. What is sent beyond is read back by digests.
const STORES_MAX: usize = 100_000;

/// The sum of a set of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinesSum {
    lanes: [u64; 4],
    lines: u64,
}

/// A key of its own, drawn at random.
#[derive(Clone, Copy)]
pub(super) struct LinesKey([u8; 32]);

impl LinesKey {
    pub(super) fn draw() -> Self {
        Self(rand::random())
    }
}

impl LinesSum {
    /// Adds a line, without its end.
    pub(super) fn add(&mut self, key: &LinesKey, line: &[u8]) {
        let hash = blake3::keyed_hash(&key.0, line);
        for (lane, bytes) in self.lanes.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            // A chunk has eight bytes.
            *lane = lane.wrapping_add(u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        }
        self.lines += 1;
    }

    /// Number of lines.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }
}

/// What was sent of stores, in the attempt that counts.
#[derive(Default)]
pub(super) struct SentLines(Mutex<BTreeMap<StoreId, Attempt>>);

struct Attempt {
    number: i64,
    /// By staging table.
    sums: BTreeMap<String, LinesSum>,
}

impl SentLines {
    /// An attempt at a store ended, and takes the place of former ones.
    pub(super) fn learn(&self, store: &StoreId, number: i64, sums: BTreeMap<String, LinesSum>) {
        let mut known = self.known();
        known.remove(store);
        if known.len() < STORES_MAX {
            known.insert(store.clone(), Attempt { number, sums });
        }
    }

    /// What this attempt sent into a staging table, if that is known.
    pub(super) fn of(&self, store: &StoreId, attempt: i64, table: &str) -> Option<LinesSum> {
        let known = self.known();
        known.get(store).filter(|known| known.number == attempt)?.sums.get(table).copied()
    }

    /// It is not going to be asked for again.
    pub(super) fn forget<'s>(&self, stores: impl IntoIterator<Item = &'s StoreId>) {
        let mut known = self.known();
        stores.into_iter().for_each(|store| drop(known.remove(store)));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<StoreId, Attempt>> {
        // Whole after a panic: each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(key: &LinesKey, lines: &[&str]) -> LinesSum {
        let mut sum = LinesSum::default();
        lines.iter().for_each(|line| sum.add(key, line.as_bytes()));
        sum
    }

    #[test]
    fn sums_tell_sets_apart_and_not_orders() {
        let key = LinesKey::draw();
        assert_eq!(sum(&key, &["a", "b", "b"]), sum(&key, &["b", "a", "b"]));
        for other in [&["a", "b"][..], &["a", "a", "b"], &["a", "b", "c"], &["ab", "b", ""]] {
            assert_ne!(sum(&key, &["a", "b", "b"]), sum(&key, other));
        }
        assert_ne!(sum(&key, &["a"]), sum(&LinesKey::draw(), &["a"]));
    }

    #[test]
    fn only_the_attempt_that_counts_is_known() {
        let (sent, key) = (SentLines::default(), LinesKey::draw());
        let store: StoreId = "site:s/metadata".parse().unwrap();
        let sums = |line| BTreeMap::from([("stage_1".to_owned(), sum(&key, &[line]))]);
        sent.learn(&store, 1, sums("a"));
        sent.learn(&store, 2, sums("b"));
        assert_eq!(sent.of(&store, 1, "stage_1"), None);
        assert_eq!(sent.of(&store, 2, "stage_1"), Some(sum(&key, &["b"])));
        assert_eq!(sent.of(&store, 2, "stage_2"), None);
        sent.forget([&store]);
        assert_eq!(sent.of(&store, 2, "stage_1"), None);
    }
}
