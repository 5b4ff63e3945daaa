//! The second half of a fold: what the changes make of the snapshot's rows.

use std::sync::Arc;

use super::key::{KeyColumns, fill, is_complete, show};
use super::part::part_of;
use super::{Base, Fold, FoldError, Held, MovedKeys, Part, Slots};
use crate::row::{Class, Row};

/// Changes, ready to be laid over the rows of a snapshot.
#[derive(Debug)]
pub struct Overlay {
    keys: KeyColumns,
    part: Part,
    moved: Option<Arc<MovedKeys>>,
    truncated: bool,
    slots: Slots,
    held: Vec<Held>,
    key: Vec<u8>,
}

impl Overlay {
    pub(super) fn new(fold: Fold) -> Self {
        let Fold { keys, part, moved, truncated, slots, held, .. } = fold;
        Self { keys, part, moved, truncated, slots, held, key: Vec::new() }
    }

    /// What has become of a row of the snapshot; none if it is gone, or belongs to another part.
    ///
    /// # Errors
    /// When the snapshot and the log do not fit together.
    pub fn base_row(&mut self, row: Row) -> Result<Option<Row>, FoldError> {
        if row.len() != self.keys.columns() || !is_complete(&row) {
            let found = row.fields().filter(|field| field.class != Class::Unchanged).count();
            return Err(FoldError::BaseFields { expected: self.keys.columns(), found });
        }
        if self.truncated {
            return Ok(None);
        }
        if self.slots.is_empty() && self.part.of <= 1 {
            return Ok(Some(row));
        }
        if !self.keys.read(&row, &mut self.key) {
            let expected = self.keys.columns();
            return Err(FoldError::BaseFields { expected, found: row.len() });
        }
        if part_of(&self.key, self.part.of, self.moved.as_deref()) != self.part.index {
            return Ok(None);
        }
        let Some(slot) = self.slots.get_mut(self.key.as_slice()) else { return Ok(Some(row)) };
        match std::mem::replace(&mut slot.base, Base::Met) {
            Base::Gone => Ok(None),
            Base::Became(id) => Ok(self.held[id].row.take().map(|now| fill(now, &row))),
            Base::Free => Err(FoldError::BaseTaken { key: show(&self.key), stamp: slot.first }),
            Base::Met => Err(FoldError::BaseRepeated { key: show(&self.key) }),
        }
    }

    /// The rows that no row of the snapshot has become. To be called when all snapshot rows have been given.
    ///
    /// # Errors
    /// When the log has changed a row that the snapshot does not have.
    pub fn finish(self) -> Result<impl Iterator<Item = Row>, FoldError> {
        let awaited = self.slots.iter().filter(|(_, slot)| matches!(slot.base, Base::Gone | Base::Became(_)));
        if let Some((key, slot)) = awaited.min_by_key(|(key, slot)| (slot.first.key, *key)) {
            return Err(FoldError::BaseMissing { key: show(key), stamp: slot.first });
        }
        Ok(self.held.into_iter().filter_map(|held| held.row))
    }
}
