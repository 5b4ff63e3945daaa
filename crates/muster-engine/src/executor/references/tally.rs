//! Keys that are there and keys that lead nowhere, in bounded memory. Pure.
//!
//! Keys are told apart by 128 bits of their digest. Where they are more than fit, they are counted in parts: those whose digest
//! begins with given bits, part after part, each with its own reading of the rows.
//!
//! # Invariants
//! - A [`Tally`] never holds more than [`KEYS_MAX`] keys; one that would has overflowed, and is counted again in two halves.
//! - The parts of a [`Part`] are disjoint and make up the whole.

use std::collections::{HashMap, HashSet};

use muster_types::Digest;

/// Keys held at once. A hash table has at most 40 bytes for each at its emptiest, so that a step takes 10 MiB; as many steps run
/// at once as there are requests in flight.
pub(super) const KEYS_MAX: usize = 256 * 1024;

/// 128 bits of a key's digest: among 2^40 keys, two are alike with a probability below 2^-48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u128);

impl Key {
    pub(super) fn of(text: &[u8]) -> Self {
        let Digest(bytes) = Digest::of(text);
        let (mut half, whole) = ([0; 16], bytes);
        half.copy_from_slice(&whole[..16]);
        Self(u128::from_be_bytes(half))
    }
}

/// Keys whose digest begins with the `bits` lowest bits of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    bits: u32,
    prefix: u128,
}

impl Part {
    /// All keys.
    pub(super) const WHOLE: Self = Self { bits: 0, prefix: 0 };

    pub(super) fn holds(self, key: Key) -> bool {
        // A shift by all bits is none at all.
        self.bits == 0 || key.0 >> (u128::BITS - self.bits) == self.prefix
    }

    pub(super) fn halves(self) -> [Self; 2] {
        [0, 1].map(|bit| Self { bits: self.bits + 1, prefix: self.prefix << 1 | bit })
    }
}

/// A key that leads nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orphan {
    /// Live rows that have it.
    pub(super) rows: u64,
    /// Rows at the recovery point had it.
    pub(super) referred_then: bool,
    /// It led somewhere at the recovery point.
    pub(super) there_then: bool,
}

impl Orphan {
    /// It led nowhere before, too.
    pub(super) fn is_old(self) -> bool {
        self.referred_then && !self.there_then
    }
}

/// More keys than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// Keys of one part, by target and by reference.
pub(super) struct Tally {
    pub(super) part: Part,
    most: usize,
    held: usize,
    there: Vec<HashSet<Key>>,
    orphans: Vec<HashMap<Key, Orphan>>,
    rows: Vec<u64>,
}

impl Tally {
    pub(super) fn new(part: Part, targets: usize, references: usize, most: usize) -> Self {
        Self {
            part,
            most,
            held: 0,
            there: vec![HashSet::new(); targets],
            orphans: vec![HashMap::new(); references],
            rows: vec![0; references],
        }
    }

    fn make_room(&mut self) -> Result<(), Overflow> {
        self.held += 1;
        if self.held > self.most { Err(Overflow) } else { Ok(()) }
    }

    /// A live row can be referred to.
    pub(super) fn is_there(&mut self, target: usize, key: Key) -> Result<(), Overflow> {
        if self.part.holds(key) && self.there[target].insert(key) {
            self.make_room()?;
        }
        Ok(())
    }

    /// A live row refers. All live rows that can be referred to are known.
    pub(super) fn refers(&mut self, reference: usize, target: usize, key: Key) -> Result<(), Overflow> {
        if !self.part.holds(key) {
            return Ok(());
        }
        self.rows[reference] += 1;
        if self.there[target].contains(&key) {
            return Ok(());
        }
        let orphans = &mut self.orphans[reference];
        let before = orphans.len();
        orphans.entry(key).or_default().rows += 1;
        if self.orphans[reference].len() > before { self.make_room() } else { Ok(()) }
    }

    /// Whether any of its live rows leads nowhere.
    pub(super) fn has_orphans(&self, reference: usize) -> bool {
        !self.orphans[reference].is_empty()
    }

    /// The orphan that a row at the recovery point concerns.
    pub(super) fn orphan(&mut self, reference: usize, key: Key) -> Option<&mut Orphan> {
        self.orphans[reference].get_mut(&key)
    }

    /// Rows that refer, those that led nowhere before, too, and those that did not.
    pub(super) fn counts(&self, reference: usize) -> Counts {
        let rows = |old: bool| {
            let orphans = self.orphans[reference].values().filter(|orphan| orphan.is_old() == old);
            orphans.map(|orphan| orphan.rows).sum()
        };
        Counts { rows: self.rows[reference], old: rows(true), new: rows(false) }
    }

    /// The row leads nowhere and its like did not before.
    pub(super) fn is_new(&self, reference: usize, key: Key) -> bool {
        self.orphans[reference].get(&key).is_some_and(|orphan| !orphan.is_old())
    }
}

/// Live rows of one reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// All that refer.
    pub(super) rows: u64,
    /// To nothing, as before.
    pub(super) old: u64,
    /// To nothing, and not before.
    pub(super) new: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.old += other.old;
        self.new += other.new;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Keys = Vec<u8>;

    /// Counts in parts, as few as fit.
    fn counted(
        (from, to): (&Keys, &Keys),
        (from_then, to_then): (&Keys, &Keys),
        most: usize,
    ) -> (Counts, u32) {
        let key = |number: &u8| Key::of(&[*number]);
        let (mut open, mut total, mut parts) = (vec![Part::WHOLE], Counts::default(), 0);
        while let Some(part) = open.pop() {
            let mut tally = Tally::new(part, 1, 1, most);
            let read = (to.iter().try_for_each(|there| tally.is_there(0, key(there))))
                .and_then(|()| from.iter().try_for_each(|refers| tally.refers(0, 0, key(refers))));
            if read.is_err() {
                open.extend(part.halves());
                continue;
            }
            for refers in from_then {
                if let Some(orphan) = tally.orphan(0, key(refers)) {
                    orphan.referred_then = true;
                }
            }
            for there in to_then {
                if let Some(orphan) = tally.orphan(0, key(there)) {
                    orphan.there_then = true;
                }
            }
            total += tally.counts(0);
            parts += 1;
        }
        (total, parts)
    }

    fn keys() -> impl Strategy<Value = Keys> {
        proptest::collection::vec(0..24_u8, 0..40)
    }

    proptest! {
        #[test]
        fn however_few_fit_the_counts_are_those_of_sets(
            from in keys(), to in keys(), from_then in keys(), to_then in keys(), most in 1..30_usize,
        ) {
            let there: BTreeSet<u8> = to.iter().copied().collect();
            let there_then: BTreeSet<u8> = to_then.iter().copied().collect();
            let old: BTreeSet<u8> = from_then.iter().copied().filter(|key| !there_then.contains(key)).collect();
            let orphans: Vec<u8> = from.iter().copied().filter(|key| !there.contains(key)).collect();
            let known = orphans.iter().filter(|key| old.contains(key)).count() as u64;
            let wanted = Counts { rows: from.len() as u64, old: known, new: orphans.len() as u64 - known };
            let (found, parts) = counted((&from, &to), (&from_then, &to_then), most);
            prop_assert_eq!(found, wanted);
            prop_assert!(parts > 1 || there.len() <= most);
        }
    }
}
