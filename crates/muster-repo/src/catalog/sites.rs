//! Which sites there are, without their slices and frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_types::{Incarnation, ShardName, SiteId};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{READS_AT_ONCE, snapshots};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
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
    let (roots, _) = snapshots::roots(repository, shard, incarnation, &mut damages).await?;
    for root in roots {
        match snapshots::sites_of(repository, &root).await {
            Ok(found) => sites.extend(found),
            Err(error) => super::note_damage(&mut damages, error)?,
        }
    }
    let all = Arc::new(super::Sites::All);
    let cover = super::compacted::cover(repository, shard, incarnation, &all, &mut damages).await?;
    sites.extend(cover.compacted.into_iter().flat_map(|compacted| compacted.sites.into_keys()));
    let indexes = super::log::sequences(repository, shard, incarnation, &cover.holes).await?;
    let named: Vec<Vec<SiteId>> = futures::stream::iter(indexes)
        .map(|sequence| async move {
            let key = &keys::segment_index(shard, incarnation, sequence);
            let names = super::while_harmed(|| async move {
                let body = repository.objects().get(key).await?;
                let (key, body) = (key.clone(), body.ok_or_else(|| RepoError::not_found(key))?);
                blocking(move || from_json_zstd::<Names>(&key, &body)).await
            });
            let names = names.await;
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
