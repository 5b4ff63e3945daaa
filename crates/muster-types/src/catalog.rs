//! What can be restored: a plain value read from the repository, for a given set of sites.
//!
//! Shards' histories are whole; slices and frames are read only for the sites asked for, so that a catalog of k
//! sites costs O(k).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, Kind, ShardName, SiteId, SnapshotId};
use crate::position::Boundary;
use crate::segment::{Gap, LogFrame, Mark, TableEvent};
use crate::snapshot::{ObjectInfo, TableSlice};
use crate::table::CapturedTable;
use crate::time::Timestamp;

/// Histories and slices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// The repository's id.
    pub repository: String,
    /// When it was read.
    pub read_at: Timestamp,
    /// By shard.
    pub shards: BTreeMap<ShardName, ShardHistory>,
    /// By site; sites that were asked for and have left no trace are absent.
    pub sites: BTreeMap<SiteId, SiteHistory>,
}

/// All incarnations of a shard, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardHistory {
    /// Oldest first.
    pub incarnations: Vec<IncarnationHistory>,
}

/// One unbroken history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncarnationHistory {
    /// Its name.
    pub incarnation: Incarnation,
    /// By ascending position.
    pub snapshots: Vec<SnapshotInfo>,
    /// The chain, ascending; entry i has sequence i + 1, unless a gap lies before it.
    pub segments: Vec<SegmentInfo>,
    /// Missing stretches.
    pub gaps: Vec<Gap>,
}

impl IncarnationHistory {
    /// All recovery points, ascending by position: of snapshots and of segments.
    pub fn boundaries(&self) -> Vec<Boundary> {
        let mut all: Vec<Boundary> = self.snapshots.iter().map(|snapshot| snapshot.boundary).collect();
        all.extend(self.segments.iter().map(|segment| segment.boundary));
        all.sort();
        all.dedup();
        all
    }
}

/// A snapshot, without its sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Its state.
    pub boundary: Boundary,
    /// Its tables.
    pub tables: Vec<CapturedTable>,
    /// Its packs.
    pub packs: Vec<ObjectInfo>,
}

/// A segment, without its sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Number in the chain.
    pub sequence: u64,
    /// Where it continues from.
    pub after: Boundary,
    /// Where it ends.
    pub boundary: Boundary,
    /// Its data object.
    pub data: Option<ObjectInfo>,
    /// Its tables; segments with equal ones share them, since a chain has thousands.
    #[serde(with = "shared")]
    pub tables: Arc<[CapturedTable]>,
    /// Its marks.
    pub marks: Vec<Mark>,
    /// Its whole-table events.
    pub table_events: Vec<TableEvent>,
    /// Clock offset of the shard and its uncertainty, in microseconds.
    pub clock_offset_micros: (i64, u64),
}

/// What the repository holds of one site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteHistory {
    /// By shard and incarnation; a kind lives in one shard at a time, a site that moved has left traces in several.
    pub traces: Vec<SiteTrace>,
    /// What the site's directory row and licences say, newest last.
    pub facts: Option<SiteFacts>,
}

/// One site's slices and frames in one incarnation of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteTrace {
    /// The shard.
    pub shard: ShardName,
    /// Index into [`ShardHistory::incarnations`].
    pub incarnation: u32,
    /// By snapshot (index into [`IncarnationHistory::snapshots`]): its slices.
    pub snapshots: BTreeMap<u32, Vec<TableSlice>>,
    /// By segment (index into [`IncarnationHistory::segments`]): its frames.
    pub segments: BTreeMap<u32, Vec<LogFrame>>,
}

/// What was true of a site at its target time, as the directory and licence rows folded to then say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFacts {
    /// Its display name.
    pub name: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// The customer behind it.
    pub customer: Option<String>,
    /// Belongs to the operator itself.
    pub internal: bool,
    /// Users, as the licence or directory counts them.
    pub users: u64,
    /// Kinds that the site was licensed for.
    pub licensed: Vec<Kind>,
}

/// A shared list is written like any other.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        list: &Arc<[T]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        list.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<[T]>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::from)
    }
}
