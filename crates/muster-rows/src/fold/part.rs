//! Splitting the key space, so that a change set of any size is folded within a budget.
//!
//! Every key belongs to one part. A pass over all changes and all snapshot rows with one part gives the rows of that
//! part; the passes over all parts give every row once. An update that changes a row's key and carries the whole row
//! is a delete in one part and an insert in another. One that leaves columns out needs the row as it was, so both keys
//! must lie in one part: [`MovedKeys`] links them in a pass before. It holds the keys of such updates and nothing
//! else; SQLite's log never leaves columns out, and PostgreSQL's only large values that did not change.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::change::Change;

use super::key::{Effect, KeyColumns};

/// One part of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub index: u32,
    /// The number of parts.
    pub of: u32,
}

impl Part {
    /// The whole key space.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// All parts of a key space in `of` parts; at least one.
    pub fn all(of: u32) -> impl Iterator<Item = Self> {
        let of = of.max(1);
        (0..of).map(move |index| Self { index, of })
    }
}

/// Bytes of the shortest change line: one digit in each number, and one column.
const LINE_BYTES_MIN: u64 = 26;
/// What a fold holds for each change beside the text: places in tables that double in size, and allocations.
const BYTES_PER_CHANGE: u64 = 480;
/// The text of a change is held at most as its row and its two keys.
const COPIES_OF_TEXT: u64 = 2;

/// How many parts a change set of `raw_bytes` of lines needs for the fold of each to stay within `budget_bytes`.
/// Assumes the shortest lines; [`parts_for_changes`] needs fewer parts.
pub fn parts_for(raw_bytes: u64, budget_bytes: u64) -> u32 {
    parts_for_changes(raw_bytes, raw_bytes / LINE_BYTES_MIN, budget_bytes)
}

/// How many parts `changes` changes in `raw_bytes` of lines need for the fold of each to stay within `budget_bytes`.
///
/// Parts are equal but for chance. Rows whose key changes while columns are left out stay together, however many.
pub fn parts_for_changes(raw_bytes: u64, changes: u64, budget_bytes: u64) -> u32 {
    let held =
        raw_bytes.saturating_mul(COPIES_OF_TEXT).saturating_add(changes.saturating_mul(BYTES_PER_CHANGE));
    u32::try_from(held.div_ceil(budget_bytes.max(1))).unwrap_or(u32::MAX).max(1)
}

/// Keys that must lie in one part: those that rows moved between while the log left columns out.
#[derive(Debug)]
pub struct MovedKeys {
    keys: KeyColumns,
    places: HashMap<Box<[u8]>, usize>,
    /// A forest: keys of one tree stay together; a root is its own parent.
    parents: Vec<usize>,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl MovedKeys {
    /// None yet. The arguments are those of [`Fold::new`](super::Fold::new).
    pub fn new(key_indexes: Vec<usize>, columns: usize) -> Self {
        let keys = KeyColumns::new(key_indexes, columns);
        Self { keys, places: HashMap::new(), parents: Vec::new(), from: Vec::new(), to: Vec::new() }
    }

    /// Takes note of `change`; to be called with every change that is going to be folded.
    pub fn scan(&mut self, change: Change) {
        let effect = Effect::of(change.op, &self.keys, &mut self.from, &mut self.to);
        if !matches!(effect, Some(Effect::Become { .. })) || self.from == self.to {
            return;
        }
        let (from, to) = (self.place(true), self.place(false));
        let (from, to) = (self.root(from), self.root(to));
        self.parents[from.max(to)] = from.min(to);
    }

    fn place(&mut self, from: bool) -> usize {
        let key = if from { &self.from } else { &self.to };
        if let Some(&place) = self.places.get(key.as_slice()) {
            return place;
        }
        let place = self.parents.len();
        self.places.insert(key.as_slice().into(), place);
        self.parents.push(place);
        place
    }

    /// The root of the tree of `place`, and a shorter way there for the next who asks.
    fn root(&mut self, mut place: usize) -> usize {
        while self.parents[place] != place {
            self.parents[place] = self.parents[self.parents[place]];
            place = self.parents[place];
        }
        place
    }

    fn root_of(&self, key: &[u8]) -> Option<usize> {
        let mut place = *self.places.get(key)?;
        while self.parents[place] != place {
            place = self.parents[place];
        }
        Some(place)
    }
}

/// The part, of `of`, that `key` belongs to. The same within a process, which is as long as passes belong together.
pub(super) fn part_of(key: &[u8], of: u32, moved: Option<&MovedKeys>) -> u32 {
    if of <= 1 {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    match moved.and_then(|moved| moved.root_of(key)) {
        Some(root) => root.hash(&mut hasher),
        None => hasher.write(key),
    }
    (hasher.finish() % u64::from(of)) as u32
}
