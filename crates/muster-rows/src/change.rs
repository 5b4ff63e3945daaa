//! One row change.

use muster_types::segment::ChangeStamp;

use crate::row::Row;

/// A row change with its place and time in a shard's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Identity and time.
    pub stamp: ChangeStamp,
    /// What happened.
    pub op: Op,
}

/// What happened to a row. Old rows may have [`Unchanged`](crate::Class::Unchanged) fields where the log carries only
/// the key; new rows where the log does not repeat a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row.
    Insert {
        /// The row.
        new: Row,
    },
    /// A row changed, perhaps in its key.
    Update {
        /// The row before.
        old: Row,
        /// The row after.
        new: Row,
    },
    /// A row is gone.
    Delete {
        /// The row before.
        old: Row,
    },
    /// All rows of the frame's site are gone.
    Truncate,
}
