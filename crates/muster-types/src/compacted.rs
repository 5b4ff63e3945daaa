//! Compacted segments: a run of consecutive segments of one log, laid out anew so that what belongs to one site lies
//! together.
//!
//! A compacted segment of level n covers 16^n consecutive segments. It has a small root, which holds everything of the
//! covered segments that is not of a single site (boundaries, commits, table definitions, marks, whole-table events),
//! pages by site range, and packs. It replaces what it covers for readers; positions, times, ordinals and recovery
//! points are those of the covered segments, each of which can be told again from it.
//!
//! # Invariants
//! - `head` is the digest of the stored index of the last covered segment; through the chain of predecessors it stands
//!   for all covered ones, and the index behind the last covered one names it.
//! - The changes of one (site, table, mark) are a [`Run`]: lines by ascending key over many segments, in chunks that
//!   segments share. A [`RunPart`] says what of it was one frame of one segment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Incarnation, ShardName, SiteId};
use crate::position::{Boundary, Position};
use crate::segment::{ChangeStamp, Commit, FrameKind, Mark, TableEvent};
use crate::snapshot::{Chunk, ObjectInfo, PageRef};
use crate::table::CapturedTable;
use crate::time::Timestamp;

/// The root of a compacted segment, stored as zstd JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactedRoot {
    /// Format version.
    pub format: u32,
    /// The shard.
    pub shard: ShardName,
    /// The history that positions are places of.
    pub incarnation: Incarnation,
    /// From 1: it covers 16^level segments.
    pub level: u32,
    /// Sequence number of the first covered segment.
    pub first: u64,
    /// Sequence number of the last covered segment.
    pub last: u64,
    /// Digest of the index before the first covered one; none if that is the first of the chain.
    pub predecessor: Option<Digest>,
    /// Digest of the stored index of the last covered segment.
    pub head: Digest,
    /// Digests of the stored indexes or roots that it was merged from, in order.
    pub sources: Vec<Digest>,
    /// Table definitions, each once.
    pub tables: Vec<CapturedTable>,
    /// Lists of tables that segments have, each once: indexes into `tables`.
    pub lists: Vec<Vec<u32>>,
    /// Marks, each once.
    pub marks: Vec<Mark>,
    /// The covered segments.
    pub segments: Covered,
    /// Data objects.
    pub packs: Vec<ObjectInfo>,
    /// Pages by ascending site, each a [`CompactedPage`] as zstd JSON.
    pub pages: Vec<PageRef>,
    /// The runs of reference tables and of rows whose site cannot be told: a page of its own, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<ObjectInfo>,
}

/// What the covered segments were, a column each; entry i is that of segment `first + i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// The boundary that the first one continues from.
    pub after: Boundary,
    /// The boundary of the last one.
    pub end: Boundary,
    /// Positions of the boundaries, each as the distance from the one before.
    pub positions: Vec<u64>,
    /// Times of the boundaries, each as microseconds from the one before.
    pub micros: Vec<i64>,
    /// The shard's clock minus capture's clock and half the round trip of asking, in microseconds.
    pub clock_offset_micros: Vec<(i64, u64)>,
    /// Number of the list of tables.
    pub lists: Vec<u32>,
    /// By segment, where it does not continue at the boundary before it: where it continues.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub continues: BTreeMap<u32, Boundary>,
    /// By segment: its marks, as indexes into the root's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub marks: BTreeMap<u32, Vec<u32>>,
    /// By segment: its whole-table events.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub table_events: BTreeMap<u32, Vec<TableEvent>>,
    /// By segment: its commits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commits: BTreeMap<u32, Vec<Commit>>,
}

impl Default for Covered {
    fn default() -> Self {
        let nowhere = Boundary { position: Position(0), at: Timestamp::EPOCH };
        Self {
            after: nowhere,
            end: nowhere,
            positions: Vec::new(),
            micros: Vec::new(),
            clock_offset_micros: Vec::new(),
            lists: Vec::new(),
            continues: BTreeMap::new(),
            marks: BTreeMap::new(),
            table_events: BTreeMap::new(),
            commits: BTreeMap::new(),
        }
    }
}

impl Covered {
    /// Appends a segment that goes from `after` to `boundary`.
    pub fn push(&mut self, after: Boundary, boundary: Boundary, clock_offset_micros: (i64, u64), list: u32) {
        if self.positions.is_empty() {
            (self.after, self.end) = (after, after);
        } else if self.end != after {
            // A group holds far fewer than 2^32 segments.
            self.continues.insert(self.positions.len() as u32, after);
        }
        self.positions.push(boundary.position.0.wrapping_sub(self.end.position.0));
        self.micros.push(boundary.at.as_micros() - self.end.at.as_micros());
        self.clock_offset_micros.push(clock_offset_micros);
        self.lists.push(list);
        self.end = boundary;
    }

    /// Where each segment continues from and where it ends, in order.
    pub fn bounds(&self) -> impl Iterator<Item = (Boundary, Boundary)> + '_ {
        let mut before = self.after;
        (0..).zip(self.positions.iter().zip(&self.micros)).map(move |(number, (position, micros))| {
            let after = self.continues.get(&number).copied().unwrap_or(before);
            before = Boundary {
                position: Position(before.position.0.wrapping_add(*position)),
                at: before.at.plus_micros(*micros),
            };
            (after, before)
        })
    }
}

/// The runs of a range of sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactedPage {
    /// Format version.
    pub format: u32,
    /// By site; all runs of a site stand on one page.
    pub sites: BTreeMap<SiteId, Vec<Run>>,
    /// Runs without a site, on a page that has no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unowned: Vec<Run>,
}

/// Lines of one (site, table, mark) over consecutive segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Index into [`CompactedRoot::tables`].
    pub table: u32,
    /// Index into [`CompactedRoot::marks`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// What the lines are.
    pub kind: FrameKind,
    /// Index into [`CompactedRoot::packs`].
    pub pack: u32,
    /// Where the lines are; in order, contiguous.
    pub chunks: Vec<Chunk>,
    /// Which of them came from which segment, ascending.
    pub parts: Vec<RunPart>,
}

/// What was one frame of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPart {
    /// Number of the segment, from 0 at the first covered one.
    pub segment: u32,
    /// Place among the frames of the site in that segment.
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub frame: u32,
    /// First and last chunk that hold lines of it.
    pub chunks: (u32, u32),
    /// Rows inserted, or held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inserts: u64,
    /// Rows updated.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub updates: u64,
    /// Rows deleted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deletes: u64,
    /// First and last change.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "stamps")]
    pub span: Option<(ChangeStamp, ChangeStamp)>,
    /// First and last deletion.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "stamps")]
    pub deletions: Option<(ChangeStamp, ChangeStamp)>,
    /// Order-free digest of the rows, where it holds rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_digest: Option<Digest>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero_u32(number: &u32) -> bool {
    *number == 0
}

/// Two stamps as six numbers: position, ordinal and microseconds of each. Long logs have millions of them.
mod stamps {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{ChangeStamp, Position, Timestamp};
    use crate::position::ChangeKey;

    type Six = (u64, u64, i64, u64, u64, i64);
    type Pair = Option<(ChangeStamp, ChangeStamp)>;

    pub(super) fn serialize<S: Serializer>(pair: &Pair, serializer: S) -> Result<S::Ok, S::Error> {
        let six = pair.map(|(first, last)| -> Six {
            let (a, b) = (first.key, last.key);
            (a.position.0, a.ordinal, first.at.as_micros(), b.position.0, b.ordinal, last.at.as_micros())
        });
        six.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pair, D::Error> {
        let stamp = |position, ordinal, at| ChangeStamp {
            key: ChangeKey { position: Position(position), ordinal },
            at: Timestamp::from_micros(at),
        };
        let six = Option::<Six>::deserialize(deserializer)?;
        Ok(six.map(|(p, o, t, q, r, u)| (stamp(p, o, t), stamp(q, r, u))))
    }
}

/// The beginning of what is left of a log whose older part was pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFloor {
    /// Format version.
    pub format: u32,
    /// The first segment that is still there.
    pub first: u64,
    /// When what lies before it was given up.
    pub pruned_at: Timestamp,
}
