//! Putting shards together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_types::catalog::{Catalog, IncarnationHistory, ShardHistory, SiteTrace};
use muster_types::segment::{Gap, LogFrame};
use muster_types::snapshot::TableSlice;
use muster_types::{Boundary, Digest, ShardName, SiteId, Timestamp};

use super::{Sites, Survey, log, snapshots};
use crate::error::RepoError;
use crate::forget::Forgotten;
use crate::repository::{IncarnationDocument, Repository};

/// Shards read at once; each has reads of its own in flight.
const SHARDS_AT_ONCE: usize = 4;

/// Slices or frames by site, of one snapshot or segment after the other.
pub(super) type BySite<T> = Vec<BTreeMap<SiteId, Vec<T>>>;

pub(super) struct ShardRead {
    shard: ShardName,
    pub(super) incarnations: Vec<IncarnationHistory>,
    pub(super) traces: BTreeMap<(SiteId, u32), SiteTrace>,
    pub(super) unowned: Vec<SiteTrace>,
    pub(super) damages: Vec<RepoError>,
    /// Digest of the last index of the newest log.
    pub(super) head: Option<Digest>,
}

pub(super) async fn survey(
    repository: &Repository,
    shards: &[ShardName],
    sites: &Sites,
    now: Timestamp,
) -> Result<Survey, RepoError> {
    let sites = Arc::new(sites.clone());
    let reads: Vec<ShardRead> = futures::stream::iter(shards.to_vec())
        .map(|shard| read_shard(repository, shard, Arc::clone(&sites)))
        .buffered(SHARDS_AT_ONCE)
        .try_collect()
        .await?;
    let mut catalog = Catalog {
        repository: repository.id().to_owned(),
        read_at: now,
        shards: BTreeMap::new(),
        sites: BTreeMap::new(),
        unowned: Vec::new(),
    };
    let mut damages = Vec::new();
    for read in reads {
        catalog.shards.insert(read.shard, ShardHistory { incarnations: read.incarnations });
        for ((site, _), trace) in read.traces {
            let history = catalog.sites.entry(site).or_default();
            history.traces.push(trace);
        }
        catalog.unowned.extend(read.unowned);
        damages.extend(read.damages);
    }
    Forgotten::read(repository).await?.hide(&mut catalog);
    Ok(Survey { catalog, damages })
}

pub(super) async fn read_shard(
    repository: &Repository,
    shard: ShardName,
    sites: Arc<Sites>,
) -> Result<ShardRead, RepoError> {
    let documents = repository.incarnations(&shard).await?;
    let mut read = ShardRead {
        shard,
        incarnations: Vec::new(),
        traces: BTreeMap::new(),
        unowned: Vec::new(),
        damages: Vec::new(),
        head: None,
    };
    for (number, document) in (0..).zip(&documents) {
        let (snapshots, log) = futures::try_join!(
            snapshots::read(repository, &read.shard, &document.incarnation, Arc::clone(&sites)),
            log::read(repository, &read.shard, &document.incarnation, Arc::clone(&sites)),
        )?;
        read.add_unowned(number, snapshots.unowned, log.unowned);
        read.add_slices(number, snapshots.slices);
        read.add_unread(number, &snapshots.unread, &sites);
        read.add_frames(number, log.frames);
        read.head = log.head;
        read.damages.extend(snapshots.damages.into_iter().chain(log.damages));
        let mut history = IncarnationHistory {
            incarnation: document.incarnation.clone(),
            snapshots: snapshots.snapshots,
            segments: log.segments,
            gaps: log.gaps,
            snapshots_unread: snapshots.without_root,
        };
        if let Some(next) = documents.get(number as usize + 1) {
            history.gaps.extend(end_of(&history, next));
        }
        read.incarnations.push(history);
    }
    Ok(read)
}

/// What separates an incarnation from the one that followed it.
fn end_of(history: &IncarnationHistory, next: &IncarnationDocument) -> Option<Gap> {
    let known: Option<Boundary> = history.end();
    let after = known.or(next.after)?;
    let reason = format!(
        "the shard's history ended here, and incarnation {} began at {}: {}",
        next.incarnation, next.began_at, next.reason
    );
    Some(Gap { after, before: None, reason })
}

impl ShardRead {
    fn trace(&mut self, site: SiteId, incarnation: u32) -> &mut SiteTrace {
        let shard = &self.shard;
        self.traces.entry((site, incarnation)).or_insert_with(|| SiteTrace {
            shard: shard.clone(),
            incarnation,
            snapshots: BTreeMap::new(),
            segments: BTreeMap::new(),
            unread: BTreeSet::new(),
        })
    }

    /// What belongs to no site.
    fn add_unowned(&mut self, incarnation: u32, slices: Vec<Vec<TableSlice>>, frames: Vec<Vec<LogFrame>>) {
        let trace = SiteTrace {
            shard: self.shard.clone(),
            incarnation,
            snapshots: (0..).zip(slices).filter(|(_, slices)| !slices.is_empty()).collect(),
            segments: (0..).zip(frames).filter(|(_, frames)| !frames.is_empty()).collect(),
            unread: BTreeSet::new(),
        };
        self.unowned.push(trace);
    }

    fn add_slices(&mut self, incarnation: u32, slices: BySite<TableSlice>) {
        for (number, by_site) in (0..).zip(slices) {
            for (site, slices) in by_site {
                self.trace(site, incarnation).snapshots.insert(number, slices);
            }
        }
    }

    /// Sites that were asked for and that a page lists which could not be read.
    fn add_unread(&mut self, incarnation: u32, unread: &[Vec<(SiteId, SiteId)>], sites: &Sites) {
        let Sites::Some(wanted) = sites else { return };
        for (number, pages) in (0..).zip(unread) {
            for (first, last) in pages {
                for site in wanted.range::<SiteId, _>(first..=last) {
                    self.trace(site.clone(), incarnation).unread.insert(number);
                }
            }
        }
    }

    fn add_frames(&mut self, incarnation: u32, frames: BySite<LogFrame>) {
        for (number, by_site) in (0..).zip(frames) {
            for (site, frames) in by_site {
                self.trace(site, incarnation).segments.insert(number, frames);
            }
        }
    }
}
