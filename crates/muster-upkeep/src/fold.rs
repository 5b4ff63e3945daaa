//! Snapshots folded in the repository: the last snapshot and the log behind it, without the shard.
//!
//! # Invariants
//! - A folded snapshot has the format of one that was read from the shard, and says what it was folded from. Its root is written
//!   last: ended anywhere, a fold leaves objects that nothing names.
//! - Memory: the slices of `SITES_AT_ONCE` sites, and `TABLES_AHEAD` folds of `FOLD_BYTES`; rows are spooled.
//! - What a fold reads is needed by the moments from its base on, so that pruning leaves it for its grace at least.
//! - Sequences, views and triggers are not in the log: they are those of the base.
//!
//! # Errors
//! [`FoldError`]: what the object store answers, and tables whose rows at the point are not known.

mod compare;
mod slices;

use std::path::Path;

use muster_plan::InputError;
use muster_plan::fold::{fold_point, fold_tables};
use muster_plan::index::CatalogIndex;
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::snapshot::new_snapshot_id;
use muster_repo::{RepoError, Repository, SnapshotWriter};
use muster_types::catalog::Catalog;
use muster_types::snapshot::SnapshotRoot;
use muster_types::{Boundary, ShardName, SiteId, SnapshotId, Timestamp};

pub use compare::{Compared, Difference, compare};
use slices::Slices;

/// Sites whose slices and frames are in memory at once: some hundred bytes for each table and stretch of changes.
pub(crate) const SITES_AT_ONCE: usize = 1024;

/// Tables of sites that are read ahead of the one that is written: enough to hide the latency of a request.
pub(crate) const TABLES_AHEAD: usize = 4;

/// Changes of one table of one site that are folded at once; beyond it, they are folded in several passes.
pub(crate) const FOLD_BYTES: u64 = 32 << 20;

/// Why a shard could not be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Rows that are not known.
    #[error(
        "shard {shard} cannot be folded: {error}; take a snapshot of it: `muster capture --once --snapshot --shard {shard}`"
    )]
    Unknown {
        /// The shard.
        shard: ShardName,
        /// The table, and why.
        error: InputError,
    },
    /// Nothing to fold from.
    #[error("shard {shard} has no recovery point to fold to{}; capture it first, or choose a later moment", at_or_before(*.at))]
    NoPoint {
        /// The shard.
        shard: ShardName,
        /// The moment, where one was asked for.
        at: Option<Timestamp>,
    },
}

fn at_or_before(at: Option<Timestamp>) -> String {
    at.map(|at| format!(" at or before {at}")).unwrap_or_default()
}

/// A snapshot that was folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Its id.
    pub snapshot: SnapshotId,
    /// The state that it holds.
    pub boundary: Boundary,
    /// The snapshot that it was folded from.
    pub from: SnapshotId,
    /// Sites that have rows in it.
    pub sites: u64,
    /// Its rows.
    pub rows: u64,
}

/// Folds a snapshot of `shard` at its last recovery point that ends a segment, at or before `at` if given. None where a
/// snapshot is there already. Rows are spooled into the empty folder `dir`.
///
/// # Errors
/// See the module. There is no new snapshot then.
pub async fn fold(
    repository: &Repository,
    shard: &ShardName,
    at: Option<Timestamp>,
    (dir, now): (&Path, Timestamp),
) -> Result<Option<Folded>, FoldError> {
    let no_point = || FoldError::NoPoint { shard: shard.clone(), at };
    let catalog = read(repository, shard, Sites::Some(Default::default()), now).await?;
    let index = CatalogIndex::new(&catalog);
    let histories = index.shard(shard).ok_or_else(no_point)?;
    // A log that has ended is needed as long as it is promised; nobody restores to its end for ever.
    let number = histories.incarnations.len().checked_sub(1).ok_or_else(no_point)?;
    let history = &histories.incarnations[number];
    let boundary = fold_point(history, at).ok_or_else(no_point)?;
    let base = history.snapshot_below(boundary).ok_or_else(no_point)?;
    let base = &history.history.snapshots[base];
    if base.boundary.position == boundary.position {
        return Ok(None);
    }
    let incarnation = &history.history.incarnation;
    let root = catalog::snapshot_root(repository, shard, incarnation, &base.snapshot).await?;
    let tables = fold_tables(history, boundary);
    let id = new_snapshot_id(boundary.position);
    let mut writer = SnapshotWriter::new(dir, shard.clone(), incarnation.clone(), id.clone(), root.session);
    writer.tables(&tables);
    writer.beside(&root.beside);
    writer.folded_from(base.snapshot.clone());
    let slices = Slices { repository, shard, number, boundary, tables: &tables, before: None, now };
    let sites = slices.sites().await?;
    let mut last: (Option<SiteId>, u64) = (None, 0);
    slices
        .each(&sites, |site, table, rows| {
            if site.is_some() && site != last.0.as_ref() && !rows.is_empty() {
                last = (site.cloned(), last.1 + 1);
            }
            rows.iter().try_for_each(|row| writer.row(site, table, row))
        })
        .await?;
    let rows = writer.rows();
    let SnapshotRoot { snapshot, .. } = writer.finish(repository, boundary).await?;
    Ok(Some(Folded { snapshot, boundary, from: base.snapshot.clone(), sites: last.1, rows }))
}

/// What one shard's histories say.
async fn read(
    repository: &Repository,
    shard: &ShardName,
    sites: Sites,
    now: Timestamp,
) -> Result<Catalog, RepoError> {
    catalog::read(repository, &CatalogQuery { sites, shards: Some(vec![shard.clone()]) }, now).await
}
