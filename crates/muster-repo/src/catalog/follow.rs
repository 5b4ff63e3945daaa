//! A catalog that is kept, and extended by what is new since the last look.
//!
//! What is new is, nearly always, segments at the end of the log: these are read and put behind the ones that are known.
//! Where anything else changed in a shard (a snapshot, an incarnation, a compaction, a pruning), or the new segments do
//! not continue the known ones, the shard is read anew.
//!
//! # Invariants
//! - After [`FollowedCatalog::refresh`] the catalog is what [`survey`](super::survey) would read, but for the places of
//!   segments that were compacted since their shard was last read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use muster_types::catalog::{Catalog, ShardHistory, SiteTrace};
use muster_types::{Digest, Incarnation, ShardName, Timestamp};

use super::history::read_shard;
use super::log::Item;
use super::{READS_AT_ONCE, Sites, log};
use crate::error::RepoError;
use crate::forget::Forgotten;
use crate::keys;
use crate::repository::Repository;

/// What a shard's part of the catalog was read from, but for its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outline {
    incarnations: Vec<String>,
    snapshots: Vec<String>,
    compacted: Vec<String>,
    floors: Vec<String>,
}

/// How far a shard is known.
#[derive(Clone, Debug)]
struct Known {
    outline: Outline,
    /// The digest of the last index; none where what comes next cannot be held against it.
    head: Option<Digest>,
    damages: Vec<RepoError>,
}

/// The kept catalog.
#[derive(Debug)]
pub struct FollowedCatalog {
    repository: Repository,
    sites: Arc<Sites>,
    catalog: Catalog,
    known: BTreeMap<ShardName, Known>,
    forgotten: Forgotten,
    /// Notes of what is forgotten that could not be read: sites that they name show up again.
    unread_notes: Vec<RepoError>,
}

impl FollowedCatalog {
    /// Of these sites, of every shard of the repository; nothing is read yet.
    pub fn new(repository: &Repository, sites: Sites) -> Self {
        let catalog = Catalog {
            repository: repository.id().to_owned(),
            read_at: Timestamp::EPOCH,
            shards: BTreeMap::new(),
            sites: BTreeMap::new(),
            unowned: Vec::new(),
        };
        Self {
            repository: repository.clone(),
            sites: Arc::new(sites),
            catalog,
            known: BTreeMap::new(),
            forgotten: Forgotten::default(),
            unread_notes: Vec::new(),
        }
    }

    /// As of the last look.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What could not be read, each named with what to do about it.
    pub fn damages(&self) -> impl Iterator<Item = &RepoError> {
        self.known.values().flat_map(|known| &known.damages).chain(&self.unread_notes)
    }

    /// Reads on.
    ///
    /// # Errors
    /// As [`survey`](super::survey); shards that were looked at before the error are up to date.
    pub async fn refresh(&mut self, now: Timestamp) -> Result<&Catalog, RepoError> {
        let shards = self.repository.shards().await?;
        let gone: Vec<ShardName> =
            self.known.keys().filter(|shard| !shards.contains(shard)).cloned().collect();
        for shard in gone {
            self.drop_shard(&shard);
        }
        for shard in shards {
            self.refresh_shard(&shard).await?;
        }
        self.unread_notes = self.forgotten.read_on(&self.repository).await?;
        self.forgotten.hide(&mut self.catalog);
        self.catalog.read_at = now;
        Ok(&self.catalog)
    }

    async fn refresh_shard(&mut self, shard: &ShardName) -> Result<(), RepoError> {
        let outline = outline(&self.repository, shard, self.newest(shard)).await?;
        let same = self.known.get(shard).is_some_and(|known| known.outline == outline);
        if same && self.extend(shard).await? {
            return Ok(());
        }
        self.read_anew(shard).await
    }

    fn newest(&self, shard: &ShardName) -> Option<&Incarnation> {
        let history = self.catalog.shards.get(shard)?.incarnations.last()?;
        Some(&history.incarnation)
    }

    /// Puts what is new behind what is known; `false` where it does not fit.
    async fn extend(&mut self, shard: &ShardName) -> Result<bool, RepoError> {
        let history = self.catalog.shards.get(shard).and_then(|shard| shard.incarnations.last());
        let Some((history, last)) = history.and_then(|history| Some((history, history.segments.last()?)))
        else {
            return Ok(false);
        };
        let Some(mut head) = self.known.get(shard).and_then(|known| known.head) else { return Ok(false) };
        let (first, mut position) = (last.sequence + 1, last.boundary.position);
        let incarnation = history.incarnation.clone();
        let found = log::sequences(&self.repository, shard, &incarnation, &[(first, u64::MAX)]).await?;
        if !(first..).zip(&found).all(|(expected, found)| expected == *found) {
            return Ok(false);
        }
        let reads: Vec<Result<Item, RepoError>> = futures::stream::iter(found)
            .map(|sequence| {
                let key = keys::segment_index(shard, &incarnation, sequence);
                let (repository, sites) = (&self.repository, Arc::clone(&self.sites));
                async move { log::read_index(repository, key, sequence, sites).await }
            })
            .buffered(READS_AT_ONCE)
            .collect()
            .await;
        let mut items = Vec::with_capacity(reads.len());
        for read in reads {
            match read {
                Ok(item) => items.push(item),
                Err(error) if error.is_harm() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        for item in &items {
            let follows = item.segments.first().is_some_and(|segment| segment.after.position == position);
            if item.predecessor != Some(head) || !follows {
                return Ok(false);
            }
            head = item.head;
            position = item.segments.last().map_or(position, |segment| segment.boundary.position);
        }
        items.into_iter().for_each(|item| self.push(shard, item));
        if let Some(known) = self.known.get_mut(shard) {
            known.head = Some(head);
        }
        Ok(true)
    }

    /// Puts one segment behind the last.
    fn push(&mut self, shard: &ShardName, item: Item) {
        let Some(history) = self.catalog.shards.get_mut(shard) else { return };
        let Some(number) = history.incarnations.len().checked_sub(1) else { return };
        let own = &mut history.incarnations[number];
        // A shard has fewer incarnations than that.
        let incarnation = u32::try_from(number).unwrap_or(u32::MAX);
        for ((mut info, frames), unowned) in item.segments.into_iter().zip(item.frames).zip(item.unowned) {
            let index = u32::try_from(own.segments.len()).unwrap_or(u32::MAX);
            // Most segments have the tables of the one before.
            if let Some(last) = own.segments.iter().rev().take(2).find(|last| last.tables == info.tables) {
                info.tables = Arc::clone(&last.tables);
            }
            own.segments.push(info);
            for (site, frames) in frames {
                let traces = &mut self.catalog.sites.entry(site).or_default().traces;
                trace(traces, shard, incarnation).segments.insert(index, frames);
            }
            if !unowned.is_empty() {
                trace(&mut self.catalog.unowned, shard, incarnation).segments.insert(index, unowned);
            }
        }
    }

    async fn read_anew(&mut self, shard: &ShardName) -> Result<(), RepoError> {
        // Before the reads: what comes meanwhile makes it differ at the next look.
        let documents = self.repository.incarnations(shard).await?;
        let newest = documents.last().map(|document| &document.incarnation);
        let outline = outline(&self.repository, shard, newest).await?;
        let read = read_shard(&self.repository, shard.clone(), Arc::clone(&self.sites)).await?;
        self.drop_shard(shard);
        for ((site, _), trace) in read.traces {
            put(&mut self.catalog.sites.entry(site).or_default().traces, trace);
        }
        read.unowned.into_iter().for_each(|trace| put(&mut self.catalog.unowned, trace));
        let whole =
            read.damages.is_empty() && read.incarnations.last().is_some_and(|last| last.gaps.is_empty());
        let head = if whole { read.head } else { None };
        self.catalog.shards.insert(shard.clone(), ShardHistory { incarnations: read.incarnations });
        self.known.insert(shard.clone(), Known { outline, head, damages: read.damages });
        Ok(())
    }

    fn drop_shard(&mut self, shard: &ShardName) {
        self.known.remove(shard);
        self.catalog.shards.remove(shard);
        self.catalog.unowned.retain(|trace| trace.shard != *shard);
        self.catalog.sites.retain(|_, history| {
            history.traces.retain(|trace| trace.shard != *shard);
            !history.traces.is_empty()
        });
    }
}

/// The place of a trace among those that ascend by shard and incarnation.
fn place(traces: &[SiteTrace], shard: &ShardName, incarnation: u32) -> Result<usize, usize> {
    traces.binary_search_by(|trace| (&trace.shard, trace.incarnation).cmp(&(shard, incarnation)))
}

fn put(traces: &mut Vec<SiteTrace>, trace: SiteTrace) {
    match place(traces, &trace.shard, trace.incarnation) {
        Ok(found) => traces[found] = trace,
        Err(free) => traces.insert(free, trace),
    }
}

fn trace<'t>(traces: &'t mut Vec<SiteTrace>, shard: &ShardName, incarnation: u32) -> &'t mut SiteTrace {
    let found = place(traces, shard, incarnation).unwrap_or_else(|free| {
        let (snapshots, segments) = (BTreeMap::new(), BTreeMap::new());
        traces.insert(
            free,
            SiteTrace { shard: shard.clone(), incarnation, snapshots, segments, unread: BTreeSet::new() },
        );
        free
    });
    &mut traces[found]
}

async fn outline(
    repository: &Repository,
    shard: &ShardName,
    newest: Option<&Incarnation>,
) -> Result<Outline, RepoError> {
    let objects = repository.objects();
    let keys_of = async |prefix: String| {
        let entries = objects.list(&prefix, None).await?;
        Ok::<_, RepoError>(entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>())
    };
    let mut outline =
        Outline { incarnations: keys_of(keys::incarnations(shard)).await?, ..Outline::default() };
    if let Some(newest) = newest {
        outline.snapshots = keys_of(keys::snapshots(shard, newest)).await?;
        outline.snapshots.retain(|key| key.ends_with(keys::ROOT));
        outline.compacted = keys_of(keys::compacted_roots(shard, newest)).await?;
        outline.floors = keys_of(keys::floors(shard, newest)).await?;
    }
    Ok(outline)
}
