//! Reading the change log of an incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use muster_types::catalog::SegmentInfo;
use muster_types::segment::{Gap, LogFrame, Segment};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, Timestamp};

use super::history::BySite;
use super::{READS_AT_ONCE, Sites, compacted, note_damage, while_harmed};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// Segments and the frames of the sites asked for.
#[derive(Default)]
pub(super) struct Log {
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) frames: BySite<LogFrame>,
    pub(super) unowned: Vec<Vec<LogFrame>>,
    pub(super) gaps: Vec<Gap>,
    pub(super) damages: Vec<RepoError>,
    /// Digest of the last index.
    pub(super) head: Option<Digest>,
}

/// A segment, or a compacted one with all that it covers, without what was not asked for.
pub(super) struct Item {
    /// Sequence number of the first segment.
    pub(super) first: u64,
    /// Sequence number of the last segment.
    pub(super) last: u64,
    /// Digest of the index before the first.
    pub(super) predecessor: Option<Digest>,
    /// Digest of the index of the last.
    pub(super) head: Digest,
    /// Where it was read from.
    pub(super) key: String,
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) frames: BySite<LogFrame>,
    /// By segment, what belongs to no site.
    pub(super) unowned: Vec<Vec<LogFrame>>,
}

pub(super) async fn read(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    sites: Arc<Sites>,
) -> Result<Log, RepoError> {
    let mut log = Log::default();
    let floor = repository.log_floor(shard, incarnation).await?;
    let cover = compacted::cover(repository, shard, incarnation, &sites, &mut log.damages).await?;
    let mut items = BTreeMap::new();
    for compacted in cover.compacted {
        let item = blocking(move || compacted::expand(compacted)).await;
        match item {
            Ok(item) => drop(items.insert(item.first, item)),
            Err(error) => note_damage(&mut log.damages, error)?,
        }
    }
    let sequences = sequences(repository, shard, incarnation, &cover.holes).await?;
    let reads: Vec<(u64, Result<Item, RepoError>)> = futures::stream::iter(sequences)
        .map(|sequence| {
            let key = keys::segment_index(shard, incarnation, sequence);
            let sites = Arc::clone(&sites);
            async move { (sequence, read_index(repository, key, sequence, sites).await) }
        })
        .buffered(READS_AT_ONCE)
        .collect()
        .await;
    let covered = items.values().map(|item: &Item| item.last).max().unwrap_or(0);
    let listed = reads.last().map_or(0, |(sequence, _)| *sequence).max(covered);
    for (sequence, index) in reads {
        match index {
            Ok(index) => drop(items.insert(sequence, index)),
            Err(error) => note_damage(&mut log.damages, error)?,
        }
    }
    let key = |sequence| keys::segment_index(shard, incarnation, sequence);
    drop_disowned(&mut items, &mut log.damages);
    link(&mut log, items, (floor, listed), key);
    Ok(log)
}

/// The numbers of the indexes that lie in holes, ascending.
pub(crate) async fn sequences(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    holes: &[(u64, u64)],
) -> Result<Vec<u64>, RepoError> {
    let folder = keys::log(shard, incarnation);
    let mut found = Vec::new();
    for &(first, last) in holes {
        let after = keys::segment_index(shard, incarnation, first - 1);
        let entries = match last {
            u64::MAX => repository.objects().list(&folder, Some(&after)).await?,
            _ => {
                let upto = keys::segment_index(shard, incarnation, last);
                repository.objects().list_between(&folder, &after, &upto).await?
            }
        };
        // The listing ascends, and so do the numbers.
        found.extend(entries.iter().filter_map(|entry| keys::index_sequence(&folder, &entry.key)));
    }
    Ok(found)
}

pub(super) async fn read_index(
    repository: &Repository,
    key: String,
    sequence: u64,
    sites: Arc<Sites>,
) -> Result<Item, RepoError> {
    while_harmed(|| read_index_once(repository, key.clone(), sequence, Arc::clone(&sites))).await
}

async fn read_index_once(
    repository: &Repository,
    key: String,
    sequence: u64,
    sites: Arc<Sites>,
) -> Result<Item, RepoError> {
    let body = repository.objects().get(&key).await?;
    let body = body.ok_or_else(|| RepoError::not_found(&key))?;
    blocking(move || {
        let mut segment: Segment = from_json_zstd(&key, &body)?;
        if segment.sequence != sequence {
            return Err(RepoError::damaged(&key, format!("it says that it is segment {}", segment.sequence)));
        }
        segment.sites.retain(|site, _| sites.wants(site));
        Ok(Item {
            first: sequence,
            last: sequence,
            predecessor: segment.predecessor,
            head: Digest::of(&body),
            key,
            frames: vec![segment.sites],
            unowned: vec![segment.unowned],
            segments: vec![SegmentInfo {
                sequence,
                after: segment.after,
                boundary: segment.boundary,
                data: segment.data,
                tables: segment.tables.into(),
                marks: segment.marks,
                table_events: segment.table_events,
                commits: segment.commits,
                clock_offset_micros: segment.clock_offset_micros,
            }],
        })
    })
    .await
}

/// Takes away indexes whose successors name another digest: they are not what the chain was built on.
fn drop_disowned(items: &mut BTreeMap<u64, Item>, damages: &mut Vec<RepoError>) {
    let pairs = items.values().zip(items.values().skip(1));
    let disowned: Vec<(u64, RepoError)> = pairs
        .filter(|(before, next)| before.last + 1 == next.first && next.predecessor != Some(before.head))
        .map(|(before, next)| {
            let named = next.predecessor.map_or("none".to_owned(), |digest| digest.short());
            let what = match before.first == before.last {
                true => {
                    format!("its digest is {}, and segment {} names {named}", before.head.short(), next.first)
                }
                false => {
                    format!("it ends at {}, and segment {} names {named}", before.head.short(), next.first)
                }
            };
            (before.first, RepoError::damaged(&before.key, what))
        })
        .collect();
    for (first, damage) in disowned {
        items.remove(&first);
        damages.push(damage);
    }
}

/// Strings the items together and notes what is missing between them, from the floor on.
fn link(log: &mut Log, items: BTreeMap<u64, Item>, (floor, listed): (u64, u64), key: impl Fn(u64) -> String) {
    let mut expected = 1;
    let mut lists: Vec<Arc<[CapturedTable]>> = Vec::new();
    for (_, item) in items {
        let Some(after) = item.segments.first().map(|first| first.after) else { continue };
        let before = log.segments.last().map(|last: &SegmentInfo| last.boundary);
        if item.first != expected && item.first > floor {
            let missing = expected.max(floor);
            let count = item.first - missing;
            let reason = format!("{count} segment(s) from `{}` on are missing or damaged", key(missing));
            log.gaps.push(Gap { after: before.unwrap_or(BEGINNING), before: Some(after), reason });
        }
        expected = item.last + 1;
        log.head = Some(item.head);
        for ((mut info, frames), unowned) in item.segments.into_iter().zip(item.frames).zip(item.unowned) {
            let before = log.segments.last().map(|last: &SegmentInfo| last.boundary);
            let follows = log.segments.last().is_some_and(|last| last.sequence + 1 == info.sequence);
            if let Some(before) = before.filter(|before| follows && before.position < info.after.position) {
                let reason =
                    format!("segment {} does not continue where the one before it ended", info.sequence);
                log.gaps.push(Gap { after: before, before: Some(info.after), reason });
            }
            share(&mut info.tables, &mut lists);
            log.segments.push(info);
            log.frames.push(frames);
            log.unowned.push(unowned);
        }
    }
    if expected <= listed {
        let after = log.segments.last().map_or(BEGINNING, |last| last.boundary);
        let reason = format!("the log from `{}` on is damaged", key(expected));
        log.gaps.push(Gap { after, before: None, reason });
    }
}

/// Lists kept to be shared: a log alternates between that of its tables and that of segments without changes.
const LISTS_KEPT: usize = 4;

/// Puts the list known from segments before in the place of an equal one.
fn share(tables: &mut Arc<[CapturedTable]>, lists: &mut Vec<Arc<[CapturedTable]>>) {
    if let Some(known) = lists.iter().find(|known| Arc::ptr_eq(known, tables) || *known == tables) {
        *tables = Arc::clone(known);
        return;
    }
    if lists.len() == LISTS_KEPT {
        lists.remove(0);
    }
    lists.push(Arc::clone(tables));
}

/// Before every recovery point.
const BEGINNING: Boundary = Boundary { position: Position(0), at: Timestamp::EPOCH };
