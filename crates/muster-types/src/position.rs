//! Places in one shard's history.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A place in the history of one incarnation of one shard: an LSN, or a change number. History is ordered by
/// position, never by time; positions of different shards or incarnations do not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What identifies one change for ever: the position of its commit and its number within the commit. A change
/// whose key was seen already is a repeat and is dropped. SQLite shards give each change a position of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangeKey {
    /// Commit position.
    pub position: Position,
    /// Number within the commit.
    pub ordinal: u64,
}

/// A recovery point: the state of a shard after every change up to and including `position`, and the moment it
/// stands for. No later write of the shard happened at or before `at`, as far as the order of its log and its clock
/// agree: a commit behind it with an earlier time comes too late for it, and is named where that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Boundary {
    /// The last change included.
    pub position: Position,
    /// The stamp.
    pub at: Timestamp,
}
