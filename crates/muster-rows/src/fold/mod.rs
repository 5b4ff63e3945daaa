//! The fold: snapshot rows overlaid with the changes behind them are the rows at the last change.
//!
//! ```text
//! changes, ascending ──► Fold ──into_overlay──► Overlay ◄── base_row ── snapshot rows, in any order
//!                                                  │
//!                                                  └──► rows at T: from base_row, and the rest from finish
//! ```
//!
//! A [`Fold`] holds one row per key that the changes touch, never a snapshot row. What exceeds the memory is folded in
//! several passes, one per [`Part`] of the key space; see [`parts_for`] and [`MovedKeys`].
//!
//! # Invariants
//! - Changes come by ascending [`ChangeKey`], whatever frames and marks they lie in. A key that is not above the last
//!   one is a repeat and is dropped: what was read twice counts once. (So frames that overlap must be merged by key
//!   before, or changes would be taken for repeats.)
//! - Only changes behind the snapshot's position are given, and none behind the target.
//! - All parts together give the same rows, whatever their number. Rows come in no promised order, the same each time.
//! - Within one commit (one position) a key may be held by two rows, as deferred constraints allow: an update or
//!   delete then means the row that agrees with its old image, and among those the one that was there first. At the
//!   end of the commit the key must be free again or the log is broken.
//!
//! # Errors
//! A log that cannot have happened is a [`FoldError`] with key and change, not a guess: inserts over a row that is
//! there, updates and deletes of a row that is not there or that looked different. Nothing is repaired silently.
//!
//! # Not here
//! Which frames to read, cutting at T, and digests of what comes out.

mod error;
mod key;
mod overlay;
mod part;

use std::collections::HashMap;
use std::sync::Arc;

use muster_types::ChangeKey;
use muster_types::segment::ChangeStamp;

use crate::change::{Change, Op};
use crate::row::Row;

pub use error::FoldError;
use key::{Effect, KeyColumns, difference, fill, is_complete, show};
pub use overlay::Overlay;
use part::part_of;
pub use part::{MovedKeys, Part, parts_for, parts_for_changes};

type RowId = usize;
type Slots = HashMap<Box<[u8]>, Slot>;

/// What the log says about one key.
#[derive(Debug)]
struct Slot {
    /// The first change that touched it.
    first: ChangeStamp,
    /// The snapshot's row of this key.
    base: Base,
    /// The row that has this key now.
    now: Option<RowId>,
}

/// What the log says about a snapshot row.
#[derive(Debug)]
enum Base {
    /// The snapshot cannot have one: the first change put a row there.
    Free,
    /// It is gone.
    Gone,
    /// It has become this row, here or under another key, if that is still held.
    Became(RowId),
    /// As `Gone` or `Became`, and the snapshot's row has come by.
    Met,
}

/// A row that the log has written.
#[derive(Debug)]
struct Held {
    /// None when it is gone.
    row: Option<Row>,
    /// A snapshot row has become it, and a slot refers to it.
    from_base: bool,
}

/// A row whose key another row has taken within the same commit.
#[derive(Debug)]
struct Displaced {
    key: Box<[u8]>,
    id: RowId,
    by: ChangeStamp,
}

/// Collects changes.
#[derive(Debug)]
pub struct Fold {
    keys: KeyColumns,
    part: Part,
    moved: Option<Arc<MovedKeys>>,
    last: Option<ChangeKey>,
    repeats: u64,
    truncated: bool,
    slots: Slots,
    held: Vec<Held>,
    free: Vec<RowId>,
    displaced: Vec<Displaced>,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Fold {
    /// A fold of rows of `columns` fields, identified by the fields `key_indexes` (by all fields, if none are given),
    /// for the keys of one part.
    pub fn new(key_indexes: Vec<usize>, columns: usize, part: Part) -> Self {
        Self {
            keys: KeyColumns::new(key_indexes, columns),
            part,
            moved: None,
            last: None,
            repeats: 0,
            truncated: false,
            slots: HashMap::new(),
            held: Vec::new(),
            free: Vec::new(),
            displaced: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
        }
    }

    /// With what a scan of all changes has found; needed where there are several parts and the log leaves columns out.
    #[must_use]
    pub fn with_moved_keys(mut self, moved: Arc<MovedKeys>) -> Self {
        self.moved = Some(moved);
        self
    }

    /// Changes dropped as repeats so far.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// Bytes held, for budgets.
    pub fn held_bytes(&self) -> usize {
        let slots = self.slots.capacity() * (size_of::<(Box<[u8]>, Slot)>() + 1);
        let keys: usize = self.slots.keys().map(|key| key.len()).sum();
        let rows: usize = self.held.iter().filter_map(|held| held.row.as_ref()).map(Row::heap_bytes).sum();
        slots
            + keys
            + rows
            + self.held.capacity() * size_of::<Held>()
            + self.free.capacity() * size_of::<RowId>()
    }

    /// Takes the next change.
    ///
    /// # Errors
    /// When the change cannot have happened after those before it. The fold is of no use then.
    pub fn change(&mut self, change: Change) -> Result<(), FoldError> {
        let stamp = change.stamp;
        if self.last.is_some_and(|last| stamp.key <= last) {
            self.repeats += 1;
            return Ok(());
        }
        self.end_commit_before(stamp.key)?;
        self.last = Some(stamp.key);
        self.check_fields(&change)?;
        let effect = Effect::of(change.op, &self.keys, &mut self.from, &mut self.to)
            .ok_or(FoldError::KeyUnknown { stamp })?;
        let from = std::mem::take(&mut self.from);
        let to = std::mem::take(&mut self.to);
        let done = self.apply(effect, &from, &to, stamp);
        (self.from, self.to) = (from, to);
        done
    }

    /// What the changes say about the rows of a snapshot.
    ///
    /// # Errors
    /// When the last commit leaves two rows under one key.
    pub fn into_overlay(self) -> Result<Overlay, FoldError> {
        self.end_commit()?;
        Ok(Overlay::new(self))
    }

    fn apply(&mut self, effect: Effect, from: &[u8], to: &[u8], stamp: ChangeStamp) -> Result<(), FoldError> {
        match effect {
            Effect::Truncate => self.truncate(),
            Effect::Insert { row } => {
                if !is_complete(&row) {
                    return Err(FoldError::InsertIncomplete { key: show(to), stamp });
                }
                self.insert(to, row, stamp);
            }
            Effect::Delete { old } => self.delete(from, &old, stamp)?,
            Effect::Replace { old, row } => {
                self.delete(from, &old, stamp)?;
                self.insert(to, row, stamp);
            }
            Effect::Become { old, row } => self.become_row(from, to, &old, row, stamp)?,
        }
        Ok(())
    }

    fn insert(&mut self, key: &[u8], row: Row, stamp: ChangeStamp) {
        if self.has_part_of(key) {
            let id = self.hold(row, false);
            self.put(key, id, stamp);
        }
    }

    fn delete(&mut self, key: &[u8], old: &Row, stamp: ChangeStamp) -> Result<(), FoldError> {
        if !self.has_part_of(key) {
            return Ok(());
        }
        if let Some(id) = self.take(key, old, stamp)? {
            let held = &mut self.held[id];
            held.row = None;
            if !held.from_base {
                self.free.push(id);
            }
        }
        Ok(())
    }

    fn become_row(
        &mut self,
        from: &[u8],
        to: &[u8],
        old: &Row,
        row: Row,
        stamp: ChangeStamp,
    ) -> Result<(), FoldError> {
        let part = |key| part_of(key, self.part.of, self.moved.as_deref());
        if from != to && part(from) != part(to) {
            return Err(FoldError::MoveUnscanned { key: show(from), stamp });
        }
        if !self.has_part_of(from) {
            return Ok(());
        }
        let id = match self.take(from, old, stamp)? {
            Some(id) => {
                let held = &mut self.held[id];
                held.row = Some(match &held.row {
                    Some(before) => fill(row, before),
                    None => row,
                });
                id
            }
            None => {
                let id = self.hold(row, true);
                if let Some(slot) = self.slots.get_mut(from) {
                    slot.base = Base::Became(id);
                }
                id
            }
        };
        self.put(to, id, stamp);
        Ok(())
    }

    fn truncate(&mut self) {
        self.truncated = true;
        self.slots.clear();
        self.held.clear();
        self.free.clear();
        self.displaced.clear();
    }

    fn hold(&mut self, row: Row, from_base: bool) -> RowId {
        let held = Held { row: Some(row), from_base };
        if let Some(id) = self.free.pop() {
            self.held[id] = held;
            return id;
        }
        self.held.push(held);
        self.held.len() - 1
    }

    /// Puts a row at `key`. A row that has the key must leave it before the commit ends.
    fn put(&mut self, key: &[u8], id: RowId, stamp: ChangeStamp) {
        match self.slots.get_mut(key) {
            Some(slot) => {
                if let Some(other) = slot.now.replace(id) {
                    self.displaced.push(Displaced { key: key.into(), id: other, by: stamp });
                }
            }
            None => {
                self.slots.insert(key.into(), Slot { first: stamp, base: Base::Free, now: Some(id) });
            }
        }
    }

    /// Takes the row that `old` describes off its key; none if it is a snapshot row that no change has touched, whose
    /// slot then says that it is gone.
    fn take(&mut self, key: &[u8], old: &Row, stamp: ChangeStamp) -> Result<Option<RowId>, FoldError> {
        let held = &self.held;
        let differs = |id: RowId| held[id].row.as_ref().and_then(|row| difference(old, row));
        let displaced = |row: &Displaced| *row.key == *key && differs(row.id).is_none();
        if let Some(index) = self.displaced.iter().position(displaced) {
            return Ok(Some(self.displaced.remove(index).id));
        }
        let Some(slot) = self.slots.get_mut(key) else {
            if self.truncated {
                return Err(FoldError::RowMissing { key: show(key), stamp });
            }
            self.slots.insert(key.into(), Slot { first: stamp, base: Base::Gone, now: None });
            return Ok(None);
        };
        let Some(id) = slot.now else { return Err(FoldError::RowMissing { key: show(key), stamp }) };
        // The first to come to this key came in this very commit: a snapshot row may have been there all along.
        let arrived = slot.first.key.position == stamp.key.position && matches!(slot.base, Base::Free);
        let shared = arrived && !self.truncated;
        let Some(column) = differs(id) else {
            slot.now = None;
            if shared {
                // It has gone as it came; if there is a snapshot row, this says nothing about it.
                self.slots.remove(key);
            }
            return Ok(Some(id));
        };
        if !shared {
            return Err(FoldError::OldDiffers { key: show(key), stamp, column });
        }
        // It is about the one that was there before.
        slot.base = Base::Gone;
        Ok(None)
    }

    fn has_part_of(&self, key: &[u8]) -> bool {
        part_of(key, self.part.of, self.moved.as_deref()) == self.part.index
    }

    fn end_commit_before(&self, next: ChangeKey) -> Result<(), FoldError> {
        if self.last.is_some_and(|last| last.position == next.position) { Ok(()) } else { self.end_commit() }
    }

    fn end_commit(&self) -> Result<(), FoldError> {
        match self.displaced.first() {
            None => Ok(()),
            Some(row) => Err(FoldError::KeyTaken { key: show(&row.key), stamp: row.by }),
        }
    }

    fn check_fields(&self, change: &Change) -> Result<(), FoldError> {
        let expected = self.keys.columns();
        let rows = match &change.op {
            Op::Insert { new } => [Some(new), None],
            Op::Update { old, new } => [Some(old), Some(new)],
            Op::Delete { old } => [Some(old), None],
            Op::Truncate => [None, None],
        };
        match rows.into_iter().flatten().find(|row| row.len() != expected) {
            None => Ok(()),
            Some(row) => Err(FoldError::ChangeFields { stamp: change.stamp, expected, found: row.len() }),
        }
    }
}
