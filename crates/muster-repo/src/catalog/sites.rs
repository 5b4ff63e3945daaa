//! Which sites there are, without their slices and frames.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use muster_types::{Incarnation, ShardName, SiteId};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{READS_AT_ONCE, blocking, snapshots};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::repository::Repository;

/// A page or an index, of which only the names of the sites are kept.
#[derive(Deserialize)]
pub(super) struct Names {
    pub(super) sites: BTreeMap<SiteId, IgnoredAny>,
}

/// The sites that left a trace, each with the shards that hold it.
///
/// Damaged snapshots and segments are passed over: [`survey`](super::survey) names them.
///
/// # Errors
/// What the object store answers; newer documents.
pub async fn list_sites(
    repository: &Repository,
    shards: Option<&[ShardName]>,
) -> Result<BTreeMap<SiteId, BTreeSet<ShardName>>, RepoError> {
    let shards = match shards {
        Some(shards) => shards.to_vec(),
        None => repository.shards().await?,
    };
    let mut found: BTreeMap<SiteId, BTreeSet<ShardName>> = BTreeMap::new();
    for shard in shards {
        for document in repository.incarnations(&shard).await? {
            for site in sites_of(repository, &shard, &document.incarnation).await? {
                found.entry(site).or_default().insert(shard.clone());
            }
        }
    }
    Ok(found)
}

async fn sites_of(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
) -> Result<BTreeSet<SiteId>, RepoError> {
    let mut damages = Vec::new();
    let mut sites = BTreeSet::new();
    for root in snapshots::roots(repository, shard, incarnation, &mut damages).await? {
        match snapshots::sites_of(repository, &root).await {
            Ok(found) => sites.extend(found),
            Err(error) => super::note_damage(&mut damages, error)?,
        }
    }
    let folder = keys::log(shard, incarnation);
    let entries = repository.objects().list(&folder, None).await?;
    let indexes = entries.into_iter().filter(|entry| keys::index_sequence(&folder, &entry.key).is_some());
    let named: Vec<Vec<SiteId>> = futures::stream::iter(indexes)
        .map(|entry| async move {
            let body = repository.objects().get(&entry.key).await?;
            let body = body.ok_or_else(|| RepoError::not_found(&entry.key))?;
            let names = blocking(move || from_json_zstd::<Names>(&entry.key, &body)).await;
            let mut passed_over = Vec::new();
            match names {
                Ok(names) => Ok(names.sites.into_keys().collect()),
                Err(error) => super::note_damage(&mut passed_over, error).map(|()| Vec::new()),
            }
        })
        .buffer_unordered(READS_AT_ONCE)
        .try_collect()
        .await?;
    sites.extend(named.into_iter().flatten());
    Ok(sites)
}
