//! Change-log segments.
//!
//! The log of one incarnation of a shard is a chain of segment indexes, each created if absent under the next
//! sequence number and naming the digest of its predecessor. An index names a data object that was durable before
//! it: concatenated zstd frames of COPY text, one frame run per (site, table, mark), line format in
//! `muster-rows::change`. A segment without changes is a watermark: it says that the shard is covered up to its
//! boundary.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Epoch, Incarnation, Kind, RunId, ShardName, SiteId};
use crate::position::{Boundary, ChangeKey, Position};
use crate::snapshot::{Chunk, ObjectInfo};
use crate::table::CapturedTable;
use crate::time::Timestamp;

/// The note that a transaction of Muster leaves in the shard and so in the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The run.
    pub run: RunId,
    /// The step, as its key is written.
    pub step: String,
    /// The epoch under which it was done.
    pub epoch: Epoch,
}

/// When and where a change happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChangeStamp {
    /// Its identity.
    pub key: ChangeKey,
    /// Its time by the shard's clock.
    pub at: Timestamp,
}

/// The reason of events that note a database of one site as gone; see [`TableEvent::reason`].
pub const DATABASE_GONE: &str = "its database is gone";

/// A commit inside a segment: a recovery point of its own, where the shard's log tells transactions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Where it stands in the log.
    pub position: Position,
    /// Its time by the shard's clock, as the log has it: clocks step back, and times are taken before positions are
    /// given, so that times need not ascend with positions.
    pub at: Timestamp,
}

/// What the lines of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    /// Changes, in the change line format.
    Changes,
    /// All rows of (site, table) at the segment's boundary, in the row line format; replaces what was known.
    Rows,
}

/// Lines of one (site, table, mark).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFrame {
    /// Index into [`Segment::tables`].
    pub table: u32,
    /// Index into [`Segment::marks`] if Muster itself wrote these changes.
    pub mark: Option<u32>,
    /// What the lines are.
    pub kind: FrameKind,
    /// Where they are; in order, contiguous.
    pub chunks: Vec<Chunk>,
    /// Rows inserted (for [`FrameKind::Rows`]: rows held).
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// First and last change; absent for [`FrameKind::Rows`].
    pub span: Option<(ChangeStamp, ChangeStamp)>,
    /// First and last deletion.
    pub deletions: Option<(ChangeStamp, ChangeStamp)>,
    /// Order-free digest of the rows of a [`FrameKind::Rows`] frame.
    pub rows_digest: Option<Digest>,
    /// Where the chunks lie, for a frame that was read from a compacted segment; else they lie in its segment's data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<FramePlace>,
}

/// Where the chunks of a frame of a compacted segment lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramePlace {
    /// The data object.
    #[serde(with = "shared_object")]
    pub object: Arc<ObjectInfo>,
    /// Which changes of the chunks are the frame's; absent for rows, whose chunks hold nothing else.
    pub within: Option<Within>,
}

/// A part of a run of changes, whose chunks hold changes of neighbouring segments, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Within {
    /// Where the run begins in the object: what tells it from others. Its changes ascend.
    pub run: u64,
    /// Changes up to here are others'; the part before it ends here.
    pub after: Position,
    /// Changes behind this are others'.
    pub upto: Position,
}

/// A shared object is written like any other.
mod shared_object {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::ObjectInfo;

    pub(super) fn serialize<S: Serializer>(
        object: &Arc<ObjectInfo>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        object.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<ObjectInfo>, D::Error> {
        ObjectInfo::deserialize(deserializer).map(Arc::new)
    }
}

/// A change that concerns a whole table, whoever owns its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEvent {
    /// The table.
    pub table: String,
    /// Its kind.
    pub kind: Kind,
    /// What happened.
    pub event: TableEventKind,
    /// When it was known; the last moment it can have happened.
    pub at: Timestamp,
    /// Where it stands in the log, if that is known: changes up to there came before it. For a truncation that is right
    /// before the commit that truncates: what else that commit did to the table came after. For a table that was dropped
    /// it is that commit, which makes void what else it did to the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// In words.
    pub reason: String,
}

/// What can happen to a whole table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableEventKind {
    /// Read again whole: its [`FrameKind::Rows`] frames in this segment are all its rows at the boundary; a site
    /// without such a frame has none. Changes to it since the previous boundary are not in the log (a gap of its
    /// history, not of its recovery points).
    Reread,
    /// Every row removed at once.
    Truncated,
    /// Gone.
    Dropped,
    /// Present in the shard and not declared in the topology: not captured.
    Undeclared,
}

/// A stretch of a shard's history that is not in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The last recovery point before it.
    pub after: Boundary,
    /// The first recovery point behind it, if there is one.
    pub before: Option<Boundary>,
    /// Why.
    pub reason: String,
}

/// The index of one segment, stored as zstd JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Format version.
    pub format: u32,
    /// The shard.
    pub shard: ShardName,
    /// The history that positions are places of.
    pub incarnation: Incarnation,
    /// Number in the chain, from 1.
    pub sequence: u64,
    /// Digest of the stored bytes of the predecessor's index; none for the first.
    pub predecessor: Option<Digest>,
    /// Who wrote it: process-unique, to tell one's own success from another's.
    pub writer: String,
    /// The boundary that it continues from.
    pub after: Boundary,
    /// The recovery point that it ends at.
    pub boundary: Boundary,
    /// The shard's clock minus capture's clock, in microseconds, and half the round trip of asking.
    pub clock_offset_micros: (i64, u64),
    /// The data object, if there is any data.
    pub data: Option<ObjectInfo>,
    /// Tables that frames refer to.
    pub tables: Vec<CapturedTable>,
    /// Marks that frames refer to.
    pub marks: Vec<Mark>,
    /// Frames by site.
    pub sites: BTreeMap<SiteId, Vec<LogFrame>>,
    /// Frames of reference tables and of rows whose site cannot be told.
    pub unowned: Vec<LogFrame>,
    /// Whole-table events.
    pub table_events: Vec<TableEvent>,
    /// The commits in it that changed captured tables, and Muster's own watermarks, by ascending position; empty where
    /// only the boundary is a recovery point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<Commit>,
}
