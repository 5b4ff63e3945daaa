//! Forgetting a site: what was asked, and the receipt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Incarnation, ShardName, SiteId};
use crate::position::Position;
use crate::time::Timestamp;

/// That a site is being forgotten: from here on, what the repository held of it so far is not read any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgetting {
    /// Format version.
    pub format: u32,
    /// Its name: that of its objects.
    pub name: String,
    /// The site.
    pub site: SiteId,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// By whom.
    pub begun_by: String,
    /// Why.
    pub reason: String,
    /// How far each history went then; a site of that id that comes later is another one.
    pub histories: Vec<ForgottenHistory>,
}

/// How far a history went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenHistory {
    /// The shard.
    pub shard: ShardName,
    /// The history.
    pub incarnation: Incarnation,
    /// Its last segment.
    pub sequence: u64,
    /// The last position that is known.
    pub position: Position,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetReceipt {
    /// Format version.
    pub format: u32,
    /// What was asked.
    pub forgetting: Forgetting,
    /// When all of it was done.
    pub finished_at: Timestamp,
    /// Data objects in which the site's rows were overwritten.
    pub rewritten: Vec<RewrittenObject>,
    /// Documents from which facts of the site were taken, or that were removed.
    pub redacted: Vec<String>,
    /// Documents that still have the site's id, or digests and counts of its rows: how many, by sort. Journals and records of
    /// drills also keep what a failed check or statement said, which may quote values.
    pub keep_ids: BTreeMap<String, u64>,
    /// Data that nothing names, left by writers that ended early: it may hold rows of any site, and pruning removes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unnamed: Vec<String>,
    /// Older versions of rewritten objects that the bucket keeps and that could not be removed, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old_versions_kept: Vec<String>,
    /// Older versions that were removed.
    #[serde(default)]
    pub old_versions_removed: u64,
}

/// A data object in which ranges were overwritten; its length is what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrittenObject {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// Chunks that were overwritten.
    pub chunks: u64,
    /// Its digest before.
    pub before: Digest,
    /// Its digest now.
    pub after: Digest,
}
