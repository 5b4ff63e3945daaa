//! Reading the snapshots of an incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use muster_types::catalog::SnapshotInfo;
use muster_types::snapshot::{ManifestPage, ObjectInfo, SnapshotRoot, TableSlice};
use muster_types::{Digest, Incarnation, ShardName, SiteId, SnapshotId};

use super::history::BySite;
use super::{READS_AT_ONCE, Sites, note_damage, while_harmed};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// Snapshots and the slices of the sites asked for.
#[derive(Default)]
pub(super) struct Snapshots {
    pub(super) snapshots: Vec<SnapshotInfo>,
    pub(super) slices: BySite<TableSlice>,
    /// Of each snapshot: first and last site of the pages that could not be read.
    pub(super) unread: Vec<Vec<(SiteId, SiteId)>>,
    pub(super) unowned: Vec<Vec<TableSlice>>,
    /// Snapshots whose root could not be read.
    pub(super) without_root: Vec<SnapshotId>,
    pub(super) damages: Vec<RepoError>,
}

pub(super) async fn read(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    sites: Arc<Sites>,
) -> Result<Snapshots, RepoError> {
    let mut found = Snapshots::default();
    let (roots, without_root) = roots(repository, shard, incarnation, &mut found.damages).await?;
    found.without_root = without_root;
    for root in roots {
        let mut slices = BTreeMap::new();
        let pages = root.pages.iter().filter(|page| sites.wants_between(&page.first, &page.last));
        let reads: Vec<_> = futures::stream::iter(pages.cloned().collect::<Vec<_>>())
            .map(|page| async {
                let read = read_page(repository, page.object, Arc::clone(&sites)).await;
                (page.first, page.last, read)
            })
            .buffered(READS_AT_ONCE)
            .collect()
            .await;
        let mut unread = Vec::new();
        for (first, last, page) in reads {
            match page {
                Ok(page) => slices.extend(page),
                Err(error) => {
                    note_damage(&mut found.damages, error)?;
                    unread.push((first, last));
                }
            }
        }
        found.snapshots.push(SnapshotInfo {
            snapshot: root.snapshot,
            boundary: root.boundary,
            tables: root.tables,
            packs: root.packs,
            beside: root.beside,
            folded_from: root.folded_from,
        });
        found.unowned.push(root.unowned);
        found.slices.push(slices);
        found.unread.push(unread);
    }
    Ok(found)
}

/// The readable roots by ascending position, and the snapshots whose root is not.
pub(super) async fn roots(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    damages: &mut Vec<RepoError>,
) -> Result<(Vec<SnapshotRoot>, Vec<SnapshotId>), RepoError> {
    let objects = repository.objects();
    let folder = keys::snapshots(shard, incarnation);
    let entries = objects.list(&folder, None).await?;
    let suffix = format!("/{}", keys::ROOT);
    let keys: Vec<String> =
        entries.into_iter().map(|entry| entry.key).filter(|key| key.ends_with(&suffix)).collect();
    let reads: Vec<_> = futures::stream::iter(keys)
        .map(|key| async move {
            let key = &key;
            let read = while_harmed(|| async move {
                let body = objects.get(key).await?.ok_or_else(|| RepoError::not_found(key))?;
                from_json_zstd::<SnapshotRoot>(key, &body)
            });
            (key.clone(), read.await)
        })
        .buffered(READS_AT_ONCE)
        .collect()
        .await;
    let (mut roots, mut without_root) = (Vec::new(), Vec::new());
    for (key, read) in reads {
        match read {
            Ok(root) => roots.push(root),
            Err(error) => {
                note_damage(damages, error)?;
                let name = key.strip_prefix(&folder).and_then(|rest| rest.strip_suffix(&suffix));
                without_root.extend(name.and_then(|name| name.parse().ok()));
            }
        }
    }
    roots.sort_by_key(|root| root.boundary);
    Ok((roots, without_root))
}

async fn read_page(
    repository: &Repository,
    object: ObjectInfo,
    sites: Arc<Sites>,
) -> Result<BTreeMap<SiteId, Vec<TableSlice>>, RepoError> {
    let body = fetch(repository, &object).await?;
    blocking(move || {
        let mut page: ManifestPage = from_json_zstd(&object.key, &body)?;
        page.sites.retain(|site, _| sites.wants(site));
        Ok(page.sites)
    })
    .await
}

/// Reads an object whole and checks it.
pub(super) async fn fetch(repository: &Repository, object: &ObjectInfo) -> Result<Bytes, RepoError> {
    while_harmed(|| fetch_once(repository, object)).await
}

async fn fetch_once(repository: &Repository, object: &ObjectInfo) -> Result<Bytes, RepoError> {
    let body = repository.objects().get(&object.key).await?;
    let body = body.ok_or_else(|| RepoError::not_found(&object.key))?;
    if body.len() as u64 != object.bytes {
        return Err(RepoError::damaged_range(
            &object.key,
            0,
            object.bytes,
            &format!("the object has {} bytes", body.len()),
        ));
    }
    let found = Digest::of(&body);
    if found != object.digest {
        let what = format!("their digest is {} and not {}", found.short(), object.digest.short());
        return Err(RepoError::damaged_range(&object.key, 0, object.bytes, &what));
    }
    Ok(body)
}

/// The sites of a snapshot, from its pages.
pub(super) async fn sites_of(repository: &Repository, root: &SnapshotRoot) -> Result<Vec<SiteId>, RepoError> {
    let pages: Vec<Vec<SiteId>> = futures::stream::iter(root.pages.clone())
        .map(|page| async move {
            let body = fetch(repository, &page.object).await?;
            blocking(move || {
                let page: super::sites::Names = from_json_zstd(&page.object.key, &body)?;
                Ok(page.sites.into_keys().collect())
            })
            .await
        })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(pages.into_iter().flatten().collect())
}
