//! Reading what can be restored.
//!
//! Shards' histories are read whole; slices and frames are kept only for the sites asked for. Pages are read only
//! where their range of sites holds one of those.
//!
//! # Invariants
//! - A segment is trusted only if its successor names the digest of its stored bytes (the head: if it can be read).
//! - Compacted segments are read in the place of what they cover; segments and recovery points are the same either way.
//! - What is missing from a history is a [`Gap`](muster_types::segment::Gap), whatever the reason: a lost or damaged index, a break between
//!   boundaries, the end of an incarnation. Behind a gap, entry i of
//!   [`IncarnationHistory::segments`](muster_types::catalog::IncarnationHistory::segments) no longer has sequence i + 1.
//! - A gap's boundaries are places of the incarnation that lists it: history is known up to `after` and again from
//!   `before` on; without `before`, this incarnation has no more of it.
//!
//! # Errors
//! [`read`] fails on the first damaged snapshot root or page; [`survey`] goes on without it and lists what it met.
//! A damaged segment is a gap in both. A newer format is an error in both.

pub(crate) mod compacted;
mod follow;
mod history;
pub(crate) mod log;
mod sites;
mod snapshots;

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_types::catalog::Catalog;
use muster_types::snapshot::{ObjectInfo, SnapshotRoot};
use muster_types::{Incarnation, ShardName, SiteId, SnapshotId, Timestamp};

use crate::document::from_json_zstd;
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

pub use follow::FollowedCatalog;
pub use sites::list_sites;

/// Documents fetched at once: enough to hide a round trip of tens of milliseconds, few enough for any server.
pub(crate) const READS_AT_ONCE: usize = 16;

/// What comes damaged so often lies there damaged; harm on the way is rare.
const READS_MAX: usize = 3;

/// Reads a document again while it comes damaged. Of a long log nearly every reading meets harm somewhere if any is about:
/// what is read again is the object, not all of them.
pub(crate) async fn while_harmed<T, F>(read: impl Fn() -> F) -> Result<T, RepoError>
where
    F: Future<Output = Result<T, RepoError>>,
{
    let mut found = read().await;
    for _ in 1..READS_MAX {
        match &found {
            Err(error) if matches!(error.kind, RepoErrorKind::Damaged { .. }) => found = read().await,
            _ => break,
        }
    }
    found
}

/// Which sites' slices and frames to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sites {
    /// Of every site: O(fleet).
    All,
    /// Of these: O(their number).
    Some(BTreeSet<SiteId>),
}

impl Sites {
    pub(crate) fn wants(&self, site: &SiteId) -> bool {
        match self {
            Self::All => true,
            Self::Some(sites) => sites.contains(site),
        }
    }

    pub(crate) fn wants_between(&self, first: &SiteId, last: &SiteId) -> bool {
        match self {
            Self::All => true,
            // An inverted range panics; a damaged page reference may be one.
            Self::Some(sites) => first <= last && sites.range::<SiteId, _>(first..=last).next().is_some(),
        }
    }
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogQuery {
    /// The sites.
    pub sites: Sites,
    /// The shards; all that the repository holds if absent.
    pub shards: Option<Vec<ShardName>>,
}

/// A catalog and what could not be read for it.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What can be restored without the damaged objects.
    pub catalog: Catalog,
    /// Missing and damaged objects, each named with what to do about it.
    pub damages: Vec<RepoError>,
}

/// Reads a catalog; a damaged snapshot is an error.
///
/// # Errors
/// What the object store answers; damaged or newer documents.
pub async fn read(
    repository: &Repository,
    query: &CatalogQuery,
    now: Timestamp,
) -> Result<Catalog, RepoError> {
    let survey = survey(repository, query, now).await?;
    let outside_log = |error: &&RepoError| match &error.kind {
        RepoErrorKind::Damaged { key, .. } | RepoErrorKind::NotFound { key } => key.contains("/snapshots/"),
        _ => true,
    };
    match survey.damages.iter().find(outside_log) {
        Some(damage) => Err(damage.clone()),
        None => Ok(survey.catalog),
    }
}

/// Reads a catalog of what is whole, and lists what is damaged.
///
/// # Errors
/// What the object store answers; newer documents; a damaged incarnation document.
pub async fn survey(
    repository: &Repository,
    query: &CatalogQuery,
    now: Timestamp,
) -> Result<Survey, RepoError> {
    let shards = match &query.shards {
        Some(shards) => shards.clone(),
        None => repository.shards().await?,
    };
    history::survey(repository, &shards, &query.sites, now).await
}

/// The root of a snapshot.
///
/// # Errors
/// What the object store answers; a missing, damaged or newer one.
pub async fn snapshot_root(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    snapshot: &SnapshotId,
) -> Result<SnapshotRoot, RepoError> {
    let key = keys::snapshot(shard, incarnation, snapshot) + keys::ROOT;
    let body = repository.objects().get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
    blocking(move || from_json_zstd(&key, &body)).await
}

/// A compacted segment that stands for a stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covering {
    /// Key of its root.
    pub root: String,
    /// First covered segment.
    pub first: u64,
    /// Last covered segment.
    pub last: u64,
    /// Its packs and pages.
    pub objects: Vec<ObjectInfo>,
}

/// The compacted segments that stand for the log of an incarnation, ascending. Damaged ones are left out.
///
/// # Errors
/// What the object store answers; newer documents.
pub async fn covering(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
) -> Result<Vec<Covering>, RepoError> {
    let mut damages = Vec::new();
    let none = Arc::new(Sites::Some(BTreeSet::new()));
    let cover = compacted::cover(repository, shard, incarnation, &none, &mut damages).await?;
    let covering = |found: compacted::Compacted| {
        let pages = found.root.pages.into_iter().map(|page| page.object);
        Covering {
            root: found.key,
            first: found.root.first,
            last: found.root.last,
            objects: found.root.packs.into_iter().chain(pages).chain(found.root.unowned).collect(),
        }
    };
    Ok(cover.compacted.into_iter().map(covering).collect())
}

/// Keeps damage for the survey; passes other errors on.
pub(crate) fn note_damage(damages: &mut Vec<RepoError>, error: RepoError) -> Result<(), RepoError> {
    match error.kind {
        RepoErrorKind::Damaged { .. } | RepoErrorKind::NotFound { .. } => {
            damages.push(error);
            Ok(())
        }
        _ => Err(error),
    }
}
