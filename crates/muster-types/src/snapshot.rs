//! Manifests: what a snapshot of a shard holds, and where.
//!
//! A snapshot is one or more packs (plain concatenated zstd frames of COPY text), a few manifest pages, each for a
//! range of sites, and a small root naming them all. The root is written last: a snapshot without a root is not one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Incarnation, ShardName, SiteId, SnapshotId};
use crate::position::Boundary;
use crate::table::CapturedTable;

/// An object of the repository, by its whole content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Key under the repository's prefix.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
}

/// A run of whole zstd frames within an object: what one ranged read fetches and one decompression yields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// First byte in the object.
    pub offset: u64,
    /// Compressed length in bytes.
    pub bytes: u64,
    /// Length of the COPY text in bytes.
    pub raw_bytes: u64,
    /// Lines of COPY text.
    pub rows: u64,
    /// BLAKE3 of the compressed bytes; checked at every read.
    pub digest: Digest,
}

/// One site's rows of one table in a snapshot, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSlice {
    /// Index into [`SnapshotRoot::tables`].
    pub table: u32,
    /// Index into [`SnapshotRoot::packs`].
    pub pack: u32,
    /// The rows, in order; contiguous in the pack.
    pub chunks: Vec<Chunk>,
    /// Order-free digest of the rows (`RowsDigest` of `muster-rows`).
    pub rows_digest: Digest,
}

/// The root manifest of a snapshot, stored as zstd JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRoot {
    /// Format version.
    pub format: u32,
    /// The shard.
    pub shard: ShardName,
    /// The history that `boundary` is a place of.
    pub incarnation: Incarnation,
    /// Its own id.
    pub snapshot: SnapshotId,
    /// The state that the snapshot holds.
    pub boundary: Boundary,
    /// Settings that the text of the fields depends on, as the session had them.
    pub session: BTreeMap<String, String>,
    /// Tables captured.
    pub tables: Vec<CapturedTable>,
    /// Packs, in order.
    pub packs: Vec<ObjectInfo>,
    /// Pages by ascending site.
    pub pages: Vec<PageRef>,
    /// Rows of reference tables, and owned rows whose site cannot be told.
    pub unowned: Vec<TableSlice>,
    /// What stands beside the tables.
    #[serde(default, skip_serializing_if = "Beside::is_empty")]
    pub beside: Beside,
    /// It was folded in the repository from this snapshot and the log behind it; absent where the shard was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded_from: Option<SnapshotId>,
}

/// What a shard has beside its tables, as an empty shard is given it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// By name as the shard writes it: the last number that a sequence gave.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sequences: BTreeMap<String, i64>,
    /// Statements that make views and triggers again, in order, where the tables' own statements do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<String>,
}

impl Beside {
    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A manifest page and the sites in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    /// First site.
    pub first: SiteId,
    /// Last site, inclusive.
    pub last: SiteId,
    /// Number of sites.
    pub sites: u64,
    /// The page, a [`ManifestPage`] as zstd JSON.
    pub object: ObjectInfo,
}

/// The slices of a range of sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPage {
    /// Format version.
    pub format: u32,
    /// By site; every site that has a row.
    pub sites: BTreeMap<SiteId, Vec<TableSlice>>,
}
