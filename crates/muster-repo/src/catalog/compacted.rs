//! Reading compacted segments in the place of what they cover.
//!
//! # Invariants
//! - Levels are looked at from the highest down, and each only where those above it left holes, so that both listings
//!   and reads grow with the logarithm of the log.
//! - One that is missing, damaged or half there leaves a hole for what lies below it: lower levels, then segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_types::catalog::SegmentInfo;
use muster_types::compacted::{CompactedPage, CompactedRoot, Run, RunPart};
use muster_types::segment::{FrameKind, FramePlace, LogFrame, Within};
use muster_types::snapshot::ObjectInfo;
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Digest, Incarnation, ShardName, SiteId};

use super::log::Item;
use super::{READS_AT_ONCE, Sites, note_damage, while_harmed};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// A compacted segment with the runs of the sites asked for.
#[derive(Clone, Debug)]
pub(crate) struct Compacted {
    pub(crate) key: String,
    /// Digest of the root, as stored.
    pub(crate) digest: Digest,
    pub(crate) root: CompactedRoot,
    pub(crate) sites: BTreeMap<SiteId, Vec<Run>>,
    /// Of no site.
    pub(crate) unowned: Vec<Run>,
}

/// What stands for the log: compacted segments, and the stretches that none of them covers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cover {
    /// Ascending.
    pub(crate) compacted: Vec<Compacted>,
    /// First and last sequence number, ascending; the last one has no end.
    pub(crate) holes: Vec<(u64, u64)>,
}

/// Reads the compacted segments that stand for the log of an incarnation.
pub(crate) async fn cover(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    sites: &Arc<Sites>,
    damages: &mut Vec<RepoError>,
) -> Result<Cover, RepoError> {
    let folders = repository.objects().list_folders(&keys::compacted(shard, incarnation)).await?;
    let mut levels: Vec<u32> = folders.iter().filter_map(|folder| keys::level_number(folder)).collect();
    levels.sort_unstable();
    let mut cover = Cover { compacted: Vec::new(), holes: vec![(1, u64::MAX)] };
    for level in levels.into_iter().rev() {
        let ranges = listed(repository, shard, incarnation, level, &cover.holes).await?;
        let reads: Vec<Result<Compacted, RepoError>> = futures::stream::iter(ranges)
            .map(|range| read(repository, shard, incarnation, level, range, Arc::clone(sites)))
            .buffered(READS_AT_ONCE)
            .collect()
            .await;
        for found in reads {
            match found {
                Ok(found) => cover.compacted.push(found),
                Err(error) => note_damage(damages, error)?,
            }
        }
        cover.compacted.sort_by_key(|compacted| compacted.root.first);
        cover.holes = holes(&cover.compacted);
    }
    Ok(cover)
}

/// The ranges of a level that lie in holes.
async fn listed(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    level: u32,
    holes: &[(u64, u64)],
) -> Result<Vec<(u64, u64)>, RepoError> {
    let folder = keys::compacted_level(shard, incarnation, level);
    let mut ranges = Vec::new();
    for &(first, last) in holes {
        let after = format!("{folder}{first:020}");
        let upto = format!("{folder}{last:020}~");
        let entries = repository.objects().list_between(&folder, &after, &upto).await?;
        let found = entries.iter().filter_map(|entry| keys::compacted_range(&folder, &entry.key));
        ranges.extend(found.filter(|range| range.0 >= first && range.1 <= last && range.0 <= range.1));
    }
    // Aligned ranges of one level do not overlap; others are not ours.
    ranges.dedup_by(|next, kept| next.0 <= kept.1);
    Ok(ranges)
}

fn holes(compacted: &[Compacted]) -> Vec<(u64, u64)> {
    let mut next = 1;
    let mut holes = Vec::new();
    for Compacted { root, .. } in compacted {
        if root.first > next {
            holes.push((next, root.first - 1));
        }
        next = root.last + 1;
    }
    holes.push((next, u64::MAX));
    holes
}

/// Reads the root of a compacted segment, and what it says of the sites asked for.
pub(crate) async fn read(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    level: u32,
    range: (u64, u64),
    sites: Arc<Sites>,
) -> Result<Compacted, RepoError> {
    let key = keys::compacted_root(shard, incarnation, level, range);
    let (digest, root) = while_harmed(|| read_root(repository, key.clone())).await?;
    let count = root.segments.positions.len() as u64;
    let columns =
        [root.segments.micros.len(), root.segments.clock_offset_micros.len(), root.segments.lists.len()];
    let whole = columns.iter().all(|length| *length as u64 == count);
    if (root.first, root.last) != range || range.1 - range.0 + 1 != count || !whole {
        return Err(RepoError::damaged(&key, "its range is not that of its name, or it lacks some of it"));
    }
    let wanted = root.pages.iter().filter(|page| sites.wants_between(&page.first, &page.last));
    let pages: Vec<BTreeMap<SiteId, Vec<Run>>> = futures::stream::iter(wanted.cloned().collect::<Vec<_>>())
        .map(|page| read_page(repository, page.object, Arc::clone(&sites)))
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    let unowned = match &root.unowned {
        Some(page) => read_unowned(repository, page.clone()).await?,
        None => Vec::new(),
    };
    Ok(Compacted { key, digest, root, sites: pages.into_iter().flatten().collect(), unowned })
}

async fn read_root(repository: &Repository, key: String) -> Result<(Digest, CompactedRoot), RepoError> {
    let body = repository.objects().get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
    blocking(move || Ok((Digest::of(&body), from_json_zstd(&key, &body)?))).await
}

/// Reads a page of a compacted segment.
pub(crate) async fn read_page(
    repository: &Repository,
    object: ObjectInfo,
    sites: Arc<Sites>,
) -> Result<BTreeMap<SiteId, Vec<Run>>, RepoError> {
    let body = super::snapshots::fetch(repository, &object).await?;
    blocking(move || {
        let mut page: CompactedPage = from_json_zstd(&object.key, &body)?;
        page.sites.retain(|site, _| sites.wants(site));
        Ok(page.sites)
    })
    .await
}

/// Reads the page of runs without a site.
pub(crate) async fn read_unowned(repository: &Repository, object: ObjectInfo) -> Result<Vec<Run>, RepoError> {
    let body = super::snapshots::fetch(repository, &object).await?;
    blocking(move || from_json_zstd::<CompactedPage>(&object.key, &body).map(|page| page.unowned)).await
}

/// The covered segments as they were, their frames lying where they lie now.
pub(super) fn expand(compacted: Compacted) -> Result<Item, RepoError> {
    let Compacted { key, root, sites, unowned: of_none, .. } = compacted;
    let lists = lists(&key, &root)?;
    let mut segments = Vec::with_capacity(root.segments.positions.len());
    let covered = &root.segments;
    for (number, (after, boundary)) in (0u32..).zip(covered.bounds()) {
        let index = number as usize;
        let list = lists.get(covered.lists[index] as usize);
        let own = covered.marks.get(&number).map_or(&[][..], Vec::as_slice);
        let marks = own.iter().map(|mark| root.marks.get(*mark as usize).cloned());
        let (Some(tables), Some(marks)) = (list, marks.collect::<Option<Vec<_>>>()) else {
            return Err(RepoError::damaged(&key, format!("segment {number} of it names what it lacks")));
        };
        segments.push(SegmentInfo {
            sequence: root.first + u64::from(number),
            after,
            boundary,
            data: None,
            tables: Arc::clone(tables),
            marks,
            table_events: covered.table_events.get(&number).cloned().unwrap_or_default(),
            commits: covered.commits.get(&number).cloned().unwrap_or_default(),
            clock_offset_micros: covered.clock_offset_micros[index],
        });
    }
    let mut frames: Vec<BTreeMap<SiteId, Vec<LogFrame>>> = vec![BTreeMap::new(); segments.len()];
    let places = Places::new(&root);
    for (site, runs) in &sites {
        let found = places.frames(&key, runs)?;
        for (segment, own) in found {
            frames[segment as usize].insert(site.clone(), own);
        }
    }
    let mut unowned = vec![Vec::new(); segments.len()];
    for (segment, frames) in places.frames(&key, &of_none)? {
        unowned[segment as usize] = frames;
    }
    Ok(Item {
        first: root.first,
        last: root.last,
        predecessor: root.predecessor,
        head: root.head,
        key,
        segments,
        frames,
        unowned,
    })
}

/// The lists of tables, shared by the segments that have them.
fn lists(key: &str, root: &CompactedRoot) -> Result<Vec<Arc<[CapturedTable]>>, RepoError> {
    let list = |numbers: &Vec<u32>| -> Option<Arc<[CapturedTable]>> {
        numbers.iter().map(|number| root.tables.get(*number as usize).cloned()).collect()
    };
    let lists = root.lists.iter().map(list).collect::<Option<Vec<_>>>();
    lists.ok_or_else(|| RepoError::damaged(key, "a list names a table that it lacks"))
}

/// Tells frames from runs.
pub(crate) struct Places<'a> {
    root: &'a CompactedRoot,
    bounds: Vec<(Boundary, Boundary)>,
    packs: Vec<Arc<ObjectInfo>>,
}

impl<'a> Places<'a> {
    pub(crate) fn new(root: &'a CompactedRoot) -> Self {
        let packs = root.packs.iter().cloned().map(Arc::new).collect();
        Self { root, bounds: root.segments.bounds().collect(), packs }
    }

    /// The frames of one site by segment, in the order that they had.
    pub(crate) fn frames(&self, key: &str, runs: &[Run]) -> Result<BTreeMap<u32, Vec<LogFrame>>, RepoError> {
        let mut found: BTreeMap<u32, Vec<(u32, LogFrame)>> = BTreeMap::new();
        for run in runs {
            let mut reached = None;
            for part in &run.parts {
                let frame = self.frame(run, part, reached);
                let frame = frame.ok_or_else(|| RepoError::damaged(key, "a run names what it lacks"))?;
                reached = self.bounds.get(part.segment as usize).map(|(_, end)| end.position);
                found.entry(part.segment).or_default().push((part.frame, frame));
            }
        }
        let ordered = found.into_iter().map(|(segment, mut frames)| {
            frames.sort_by_key(|(number, _)| *number);
            (segment, frames.into_iter().map(|(_, frame)| frame).collect())
        });
        Ok(ordered.collect())
    }

    /// One frame; `reached` is where the part before it in its run ends.
    fn frame(&self, run: &Run, part: &RunPart, reached: Option<muster_types::Position>) -> Option<LogFrame> {
        let (after, end) = self.bounds.get(part.segment as usize)?;
        let covered = &self.root.segments;
        let list = self.root.lists.get(covered.lists[part.segment as usize] as usize)?;
        let table = list.iter().position(|table| *table == run.table)?;
        let mark = match run.mark {
            None => None,
            Some(mark) => {
                let own = covered.marks.get(&part.segment)?;
                Some(u32::try_from(own.iter().position(|known| *known == mark)?).ok()?)
            }
        };
        let chunks = run.chunks.get(part.chunks.0 as usize..=part.chunks.1 as usize)?;
        let within = Within {
            run: run.chunks.first()?.offset,
            after: reached.unwrap_or(after.position),
            upto: end.position,
        };
        let within = (run.kind == FrameKind::Changes).then_some(within);
        Some(LogFrame {
            table: u32::try_from(table).ok()?,
            mark,
            kind: run.kind,
            chunks: chunks.to_vec(),
            inserts: part.inserts,
            updates: part.updates,
            deletes: part.deletes,
            span: part.span,
            deletions: part.deletions,
            rows_digest: part.rows_digest,
            place: Some(FramePlace { object: Arc::clone(self.packs.get(run.pack as usize)?), within }),
        })
    }
}
