//! What can be restored: a plain value read from the repository, for a given set of sites.
//!
//! Shards' histories are whole; slices and frames are read only for the sites asked for, so that a catalog of k
//! sites costs O(k).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, Kind, ShardName, SiteId, SnapshotId};
use crate::position::{Boundary, Position};
use crate::segment::{Commit, Gap, LogFrame, Mark, TableEvent, TableEventKind};
use crate::snapshot::{Beside, ObjectInfo, TableSlice};
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
    /// By shard and incarnation: rows of reference tables, and owned rows whose site cannot be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unowned: Vec<SiteTrace>,
}

/// All incarnations of a shard, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardHistory {
    /// Oldest first.
    pub incarnations: Vec<IncarnationHistory>,
}

impl ShardHistory {
    /// Snapshots that are there and whose root could not be read.
    pub fn snapshots_unread(&self) -> impl Iterator<Item = &SnapshotId> {
        self.incarnations.iter().flat_map(|incarnation| &incarnation.snapshots_unread)
    }

    /// Whether one of those begins an incarnation, as far as can be told: ids ascend with the positions of snapshots.
    pub fn begins_unread(&self) -> bool {
        self.incarnations.iter().any(|incarnation| {
            let first = incarnation.snapshots.first().map(|first| &first.snapshot);
            incarnation.snapshots_unread.iter().any(|unread| first.is_none_or(|first| unread < first))
        })
    }
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
    /// Snapshots that are there and whose root could not be read: what only they knew looks absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots_unread: Vec<SnapshotId>,
}

impl IncarnationHistory {
    /// All recovery points, ascending by position: of snapshots, segments and commits, 16 bytes each.
    ///
    /// Where the log has commits, a point's time is its *effective* one: the latest of all times up to it. Commit times
    /// are taken before positions are given, so that a commit may have an earlier time than one before it; by
    /// effective times the points ascend, and the cut for a time T, the longest prefix of the log without a commit
    /// time behind T, is the last point at or before T.
    ///
    /// A snapshot inside a segment with commits is no point of its own: the commits around it are known to the
    /// microsecond, and its stamp is only an upper bound.
    pub fn boundaries(&self) -> Vec<Boundary> {
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.boundary);
        let mut all: Vec<Boundary> =
            snapshots.filter(|boundary| !self.is_between_commits(*boundary)).collect();
        let commits: usize = self.segments.iter().map(|segment| segment.recovery_commits().len()).sum();
        all.reserve_exact(commits + self.segments.len());
        for segment in &self.segments {
            let points = segment.recovery_commits().iter();
            all.extend(points.map(|commit| Boundary { position: commit.position, at: commit.at }));
            all.push(segment.end());
        }
        all.sort();
        if self.has_commits() {
            let mut latest = Timestamp::from_micros(i64::MIN);
            for boundary in &mut all {
                latest = latest.max(boundary.at);
                boundary.at = latest;
            }
        }
        all.dedup();
        all
    }

    /// The log tells transactions apart, at least in parts.
    pub fn has_commits(&self) -> bool {
        self.segments.iter().any(|segment| !segment.commits.is_empty())
    }

    /// The last place that is known, with its own stamp.
    pub fn end(&self) -> Option<Boundary> {
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.boundary);
        snapshots.chain(self.segments.iter().map(|segment| segment.boundary)).max()
    }

    /// The number of the segment that holds what stands at `position`: the first that ends there or behind it, if it
    /// begins before.
    pub fn segment_at(&self, position: Position) -> Option<usize> {
        let number = self.segments.partition_point(|segment| segment.boundary.position < position);
        self.segments.get(number).filter(|segment| segment.after.position < position).map(|_| number)
    }

    /// A commit that is a recovery point stands at `position`.
    pub fn commit_at(&self, position: Position) -> bool {
        let commits = self.segment_at(position).map(|number| self.segments[number].recovery_commits());
        commits
            .is_some_and(|commits| commits.binary_search_by_key(&position, |commit| commit.position).is_ok())
    }

    fn is_between_commits(&self, boundary: Boundary) -> bool {
        let segment = self.segment_at(boundary.position).map(|number| &self.segments[number]);
        segment.is_some_and(|segment| !segment.recovery_commits().is_empty())
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
    /// What stands beside its tables.
    #[serde(default, skip_serializing_if = "Beside::is_empty")]
    pub beside: Beside,
    /// It was folded from this snapshot and the log behind it; absent where the shard was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded_from: Option<SnapshotId>,
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
    /// Its data object; absent where it was read from a compacted segment, whose frames say themselves where they lie.
    pub data: Option<ObjectInfo>,
    /// Its tables; segments with equal ones share them, since a chain has thousands.
    #[serde(with = "shared")]
    pub tables: Arc<[CapturedTable]>,
    /// Its marks.
    pub marks: Vec<Mark>,
    /// Its whole-table events.
    pub table_events: Vec<TableEvent>,
    /// Its commits, by ascending position, where each is a recovery point of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<Commit>,
    /// Clock offset of the shard and its uncertainty, in microseconds.
    pub clock_offset_micros: (i64, u64),
}

impl SegmentInfo {
    /// The commits that are recovery points of their own: none where a table was read again, or dropped at a place that
    /// is not known, since what changed in it before is known at the end of the segment only.
    pub fn recovery_commits(&self) -> &[Commit] {
        let whole = |event: &TableEvent| match event.event {
            TableEventKind::Reread => true,
            TableEventKind::Dropped => event.position.is_none(),
            TableEventKind::Truncated | TableEventKind::Undeclared => false,
        };
        if self.table_events.iter().any(whole) { &[] } else { &self.commits }
    }

    /// Where it ends, not before any of its commits' times.
    fn end(&self) -> Boundary {
        let latest = self.commits.iter().map(|commit| commit.at).max();
        Boundary {
            at: latest.map_or(self.boundary.at, |latest| latest.max(self.boundary.at)),
            ..self.boundary
        }
    }
}

/// What the repository holds of one site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteHistory {
    /// By shard and incarnation; a kind lives in one shard at a time, a site that moved has left traces in several.
    pub traces: Vec<SiteTrace>,
    /// What the site's directory row and licences say, newest last.
    pub facts: Option<SiteFacts>,
    /// Why some of these rows could not be read, where an object that holds them is missing or damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_unread: Option<String>,
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
    /// Snapshots whose list of the site's slices is missing or damaged: what they hold of it cannot be told. Known only of
    /// sites that were asked for by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<u32>,
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
