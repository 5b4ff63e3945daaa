//! Reading the change log of an incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use muster_types::catalog::SegmentInfo;
use muster_types::segment::{Gap, LogFrame, Segment};
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, SiteId, Timestamp};

use super::history::BySite;
use super::{READS_AT_ONCE, Sites, blocking, note_damage};
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::repository::Repository;

/// Segments and the frames of the sites asked for.
#[derive(Default)]
pub(super) struct Log {
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) frames: BySite<LogFrame>,
    pub(super) unowned: Vec<Vec<LogFrame>>,
    pub(super) gaps: Vec<Gap>,
    pub(super) damages: Vec<RepoError>,
}

/// One index, without what was not asked for.
struct Index {
    digest: Digest,
    predecessor: Option<Digest>,
    info: SegmentInfo,
    frames: BTreeMap<SiteId, Vec<LogFrame>>,
    unowned: Vec<LogFrame>,
}

pub(super) async fn read(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    sites: Arc<Sites>,
) -> Result<Log, RepoError> {
    let folder = keys::log(shard, incarnation);
    let entries = repository.objects().list(&folder, None).await?;
    let numbered = entries.iter().filter_map(|entry| keys::index_sequence(&folder, &entry.key));
    // The listing ascends, and so do the numbers.
    let reads: Vec<(u64, Result<Index, RepoError>)> = futures::stream::iter(numbered.collect::<Vec<_>>())
        .map(|sequence| {
            let key = keys::segment_index(shard, incarnation, sequence);
            let sites = Arc::clone(&sites);
            async move { (sequence, read_index(repository, key, sequence, sites).await) }
        })
        .buffered(READS_AT_ONCE)
        .collect()
        .await;
    let listed = reads.last().map_or(0, |(sequence, _)| *sequence);
    let mut log = Log::default();
    let mut indexes = BTreeMap::new();
    for (sequence, index) in reads {
        match index {
            Ok(index) => drop(indexes.insert(sequence, index)),
            Err(error) => note_damage(&mut log.damages, error)?,
        }
    }
    let key = |sequence| keys::segment_index(shard, incarnation, sequence);
    drop_disowned(&mut indexes, &mut log.damages, key);
    link(&mut log, indexes, listed, key);
    Ok(log)
}

async fn read_index(
    repository: &Repository,
    key: String,
    sequence: u64,
    sites: Arc<Sites>,
) -> Result<Index, RepoError> {
    let body = repository.objects().get(&key).await?;
    let body = body.ok_or_else(|| RepoError::not_found(&key))?;
    blocking(move || {
        let mut segment: Segment = from_json_zstd(&key, &body)?;
        if segment.sequence != sequence {
            return Err(RepoError::damaged(&key, format!("it says that it is segment {}", segment.sequence)));
        }
        segment.sites.retain(|site, _| sites.wants(site));
        Ok(Index {
            digest: Digest::of(&body),
            predecessor: segment.predecessor,
            frames: segment.sites,
            unowned: segment.unowned,
            info: SegmentInfo {
                sequence,
                after: segment.after,
                boundary: segment.boundary,
                data: segment.data,
                tables: segment.tables.into(),
                marks: segment.marks,
                table_events: segment.table_events,
                commits: segment.commits,
                clock_offset_micros: segment.clock_offset_micros,
            },
        })
    })
    .await
}

/// Takes away indexes whose successors name another digest: they are not what the chain was built on.
fn drop_disowned(
    indexes: &mut BTreeMap<u64, Index>,
    damages: &mut Vec<RepoError>,
    key: impl Fn(u64) -> String,
) {
    let disowned: Vec<(u64, String)> = indexes
        .iter()
        .filter_map(|(&sequence, index)| {
            let before = indexes.get(&sequence.checked_sub(1)?)?;
            let named = index.predecessor.map_or("none".to_owned(), |digest| digest.short());
            let what =
                format!("its digest is {}, and segment {sequence} names {named}", before.digest.short());
            (index.predecessor != Some(before.digest)).then_some((sequence - 1, what))
        })
        .collect();
    for (sequence, what) in disowned {
        indexes.remove(&sequence);
        damages.push(RepoError::damaged(&key(sequence), what));
    }
}

/// Strings the indexes together and notes what is missing between them.
fn link(log: &mut Log, indexes: BTreeMap<u64, Index>, listed: u64, key: impl Fn(u64) -> String) {
    let mut expected = 1;
    for (sequence, index) in indexes {
        let before = log.segments.last().map(|last: &SegmentInfo| last.boundary);
        if sequence != expected {
            let before = before.unwrap_or(BEGINNING);
            let count = sequence - expected;
            let reason = format!("{count} segment(s) from `{}` on are missing or damaged", key(expected));
            log.gaps.push(Gap { after: before, before: Some(index.info.after), reason });
        } else if let Some(before) = before.filter(|before| before.position < index.info.after.position) {
            let reason = format!("segment {sequence} does not continue where the one before it ended");
            log.gaps.push(Gap { after: before, before: Some(index.info.after), reason });
        }
        expected = sequence + 1;
        let mut info = index.info;
        if let Some(before) = log.segments.last().filter(|before| before.tables == info.tables) {
            info.tables = Arc::clone(&before.tables);
        }
        log.segments.push(info);
        log.frames.push(index.frames);
        log.unowned.push(index.unowned);
    }
    if expected <= listed {
        let after = log.segments.last().map_or(BEGINNING, |last| last.boundary);
        let reason = format!("the log from `{}` on is damaged", key(expected));
        log.gaps.push(Gap { after, before: None, reason });
    }
}

/// Before every recovery point.
const BEGINNING: Boundary = Boundary { position: Position(0), at: Timestamp::EPOCH };
