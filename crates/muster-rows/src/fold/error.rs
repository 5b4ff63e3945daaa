//! What can be wrong with the input of a fold.

use std::fmt;

use muster_types::segment::ChangeStamp;

/// Snapshot and change log do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A change with another number of fields than the table has columns.
    #[error("{} has {found} fields and the table has {expected} columns", At(.stamp))]
    ChangeFields {
        /// The change.
        stamp: ChangeStamp,
        /// Columns of the table.
        expected: usize,
        /// Fields of the change.
        found: usize,
    },
    /// A change that does not say which row it is about.
    #[error("{} does not carry the whole key of its row", At(.stamp))]
    KeyUnknown {
        /// The change.
        stamp: ChangeStamp,
    },
    /// An insert that leaves columns out.
    #[error("{} inserts row {key} without all its columns", At(.stamp))]
    InsertIncomplete {
        /// The row's key.
        key: String,
        /// The change.
        stamp: ChangeStamp,
    },
    /// An update or delete of a row that the log has deleted, moved or truncated before.
    #[error("{} is about row {key}, which is not there any more at that point of the log", At(.stamp))]
    RowMissing {
        /// The row's key.
        key: String,
        /// The change.
        stamp: ChangeStamp,
    },
    /// An update or delete whose old image is not the row as the log has left it.
    #[error("{} has an old image of row {key} that differs from the log before it in column {}", At(.stamp), .column + 1)]
    OldDiffers {
        /// The row's key.
        key: String,
        /// The change.
        stamp: ChangeStamp,
        /// Index of the first column that differs.
        column: usize,
    },
    /// An insert, or a change of a key, onto a row that was there and did not go within the same commit.
    #[error("{} puts a row at key {key}, which another row has", At(.stamp))]
    KeyTaken {
        /// The key.
        key: String,
        /// The change.
        stamp: ChangeStamp,
    },
    /// A change of a key that leaves columns out, between keys of two parts.
    #[error("{} moves row {key} to another part of the key space and leaves columns out", At(.stamp))]
    MoveUnscanned {
        /// The row's key before.
        key: String,
        /// The change.
        stamp: ChangeStamp,
    },
    /// A snapshot row with a wrong number of fields, or with unchanged ones.
    #[error("a snapshot row has {found} complete fields and the table has {expected} columns")]
    BaseFields {
        /// Columns of the table.
        expected: usize,
        /// Fields of the row that have a value.
        found: usize,
    },
    /// The log inserts a row that the snapshot has already.
    #[error("{} puts a row at key {key}, which a row of the snapshot has", At(.stamp))]
    BaseTaken {
        /// The key.
        key: String,
        /// The change.
        stamp: ChangeStamp,
    },
    /// The log changes or deletes a row that neither it nor the snapshot has.
    #[error("{} is about row {key}, which neither the snapshot nor the log before it has", At(.stamp))]
    BaseMissing {
        /// The row's key.
        key: String,
        /// The first change of the row.
        stamp: ChangeStamp,
    },
    /// The snapshot has two rows of one key.
    #[error("the snapshot has row {key} twice")]
    BaseRepeated {
        /// The key.
        key: String,
    },
}

impl FoldError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ChangeFields { .. } | Self::BaseFields { .. } => {
                "check that rows and changes are read with the table definition of their own frame"
            }
            Self::MoveUnscanned { .. } => "scan all changes with MovedKeys before folding in parts",
            Self::KeyUnknown { .. } | Self::InsertIncomplete { .. } => {
                "the log was captured without whole rows; choose a snapshot behind this change"
            }
            Self::RowMissing { .. }
            | Self::OldDiffers { .. }
            | Self::KeyTaken { .. }
            | Self::BaseTaken { .. }
            | Self::BaseMissing { .. }
            | Self::BaseRepeated { .. } => {
                "the log misses a change or belongs to another snapshot; choose a target before this change, \
                 or a snapshot behind it"
            }
        }
    }
}

/// A change in a message.
struct At<'a>(&'a ChangeStamp);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChangeStamp { key, at } = self.0;
        write!(f, "change {}/{} of {at}", key.position, key.ordinal)
    }
}
