//! The change log of a shard read back by position: what happened between two places of its present history.
//!
//! For proofs about a run: the change log is read where it is new, from its head backwards, and indexes that were read
//! are kept for the next question.
//!
//! # Invariants
//! - [`LogReader::changes`] answers whole or not at all: `None` until the log reaches the end of the range.
//!
//! # Errors
//! A stretch of the range that is missing from the log; damaged objects; what the object store answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use muster_rows::{Change, ChangeReader};
use muster_types::segment::{FrameKind, LogFrame, Mark, Segment, TableEvent};
use muster_types::snapshot::{Chunk, ObjectInfo};
use muster_types::{Incarnation, Position, RunId, ShardName, SiteId};
use tokio::sync::Mutex;

use crate::catalog::blocking;
use crate::chunk::decode;
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::range::{RangeLimits, RangeReader};
use crate::repository::Repository;

/// Indexes kept: those of several minutes of capture, which is what a run asks about, at some tens of KiB each.
const INDEXES_KEPT: usize = 512;
/// Data objects up to this size are read whole and kept a while: the marked frames of many publishes lie in one of
/// them, and each publish asks for its own.
const WHOLE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Data objects kept: publishes ask about what they did in the last seconds, a few segments.
const OBJECTS_KEPT: usize = 8;

/// A change of the log with what its frame says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChange {
    /// The table.
    pub table: String,
    /// Names of the columns that the rows of the change have, in order.
    pub columns: Arc<[String]>,
    /// The site, if it is known.
    pub site: Option<SiteId>,
    /// Muster's mark, if Muster made the change.
    pub mark: Option<Mark>,
    /// The change.
    pub change: Change,
}

/// Which changes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFilter<'a> {
    /// All.
    All,
    /// Those that carry the mark of this step of this run, under any epoch.
    Step {
        /// The run.
        run: &'a RunId,
        /// The step, as its key is written.
        step: &'a str,
    },
}

/// A stretch of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRange {
    /// The changes asked for, by ascending key.
    pub changes: Vec<LogChange>,
    /// What happened to whole tables, whose rows' changes are then not in the log.
    pub table_events: Vec<TableEvent>,
}

/// Reads the log of a shard's present incarnation.
#[derive(Debug)]
pub struct LogReader {
    repository: Repository,
    shard: ShardName,
    indexes: Mutex<Indexes>,
    /// By key, the latest used last.
    objects: Mutex<Vec<(String, Bytes)>>,
}

#[derive(Debug, Default)]
struct Indexes {
    incarnation: Option<Incarnation>,
    by_sequence: BTreeMap<u64, Arc<Segment>>,
}

impl LogReader {
    /// A reader of `shard`'s log.
    pub fn new(repository: &Repository, shard: &ShardName) -> Self {
        Self {
            repository: repository.clone(),
            shard: shard.clone(),
            indexes: Mutex::default(),
            objects: Mutex::default(),
        }
    }

    /// The changes with positions in `(after, upto]`; `None` while the log does not reach that far.
    ///
    /// # Errors
    /// See the module.
    pub async fn changes(
        &self,
        after: Position,
        upto: Position,
        filter: LogFilter<'_>,
    ) -> Result<Option<LogRange>, RepoError> {
        let Some(segments) = self.segments(after, upto).await? else { return Ok(None) };
        let mut range = LogRange::default();
        let mut reached = after;
        for segment in segments {
            if segment.after.position > reached {
                return Err(RepoError::damaged(
                    &keys::segment_index(&self.shard, &segment.incarnation, segment.sequence),
                    format!("changes {} to {} are missing before it", reached.0 + 1, segment.after.position),
                ));
            }
            reached = segment.boundary.position;
            range.table_events.extend(segment.table_events.iter().cloned());
            self.read(&segment, after, upto, filter, &mut range.changes).await?;
        }
        range.changes.sort_by_key(|logged| logged.change.stamp.key);
        Ok(Some(range))
    }

    /// The segments that cover `(after, upto]`, ascending.
    async fn segments(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<Option<Vec<Arc<Segment>>>, RepoError> {
        let mut indexes = self.indexes.lock().await;
        let covered = |indexes: &Indexes| {
            indexes.by_sequence.values().next_back().is_some_and(|last| last.boundary.position >= upto)
        };
        if !covered(&indexes) {
            self.extend(&mut indexes, after).await?;
            if !covered(&indexes) {
                return Ok(None);
            }
        }
        let Some(incarnation) = &indexes.incarnation.clone() else { return Ok(None) };
        while let Some((&first, segment)) = indexes.by_sequence.first_key_value()
            && segment.after.position > after
            && first > 1
        {
            let earlier = self.index(incarnation, first - 1).await?;
            indexes.by_sequence.insert(first - 1, earlier);
        }
        let overlaps =
            |segment: &&Arc<Segment>| segment.after.position < upto && segment.boundary.position > after;
        let found = indexes.by_sequence.values().filter(overlaps).cloned().collect();
        while indexes.by_sequence.len() > INDEXES_KEPT {
            indexes.by_sequence.pop_first();
        }
        Ok(Some(found))
    }

    /// Reads the indexes that are new; of a log not seen before, from its head back to `after`.
    async fn extend(&self, indexes: &mut Indexes, after: Position) -> Result<(), RepoError> {
        let Some(newest) = self.repository.incarnations(&self.shard).await?.pop() else { return Ok(()) };
        let incarnation = &newest.incarnation;
        if indexes.incarnation.as_ref() != Some(incarnation) {
            *indexes = Indexes { incarnation: Some(incarnation.clone()), by_sequence: BTreeMap::new() };
        }
        let known = indexes.by_sequence.keys().next_back().copied().unwrap_or(0);
        for sequence in (known + 1..=self.head(incarnation, known).await?).rev() {
            let segment = self.index(incarnation, sequence).await?;
            let begins_before = segment.after.position <= after;
            indexes.by_sequence.insert(sequence, segment);
            if known == 0 && begins_before {
                break;
            }
        }
        Ok(())
    }

    async fn head(&self, incarnation: &Incarnation, known: u64) -> Result<u64, RepoError> {
        let folder = keys::log(&self.shard, incarnation);
        let behind = keys::segment_index(&self.shard, incarnation, known);
        let entries = self.repository.objects().list(&folder, Some(&behind)).await?;
        let sequences = entries.iter().filter_map(|entry| keys::index_sequence(&folder, &entry.key));
        Ok(sequences.max().unwrap_or(known))
    }

    async fn index(&self, incarnation: &Incarnation, sequence: u64) -> Result<Arc<Segment>, RepoError> {
        let key = keys::segment_index(&self.shard, incarnation, sequence);
        let body = self.repository.objects().get(&key).await?;
        let body = body.ok_or_else(|| RepoError::not_found(&key))?;
        blocking(move || Ok(Arc::new(from_json_zstd(&key, &body)?))).await
    }

    async fn source(
        &self,
        data: &ObjectInfo,
        wanted: &[(Option<&SiteId>, &LogFrame)],
    ) -> Result<Source, RepoError> {
        let store = self.repository.objects();
        if data.bytes > WHOLE_BYTES_MAX {
            let chunks = wanted.iter().flat_map(|(_, frame)| &frame.chunks);
            let ranges = chunks.map(|chunk| (chunk.offset, chunk.bytes)).collect();
            let reader =
                RangeReader::new(Arc::clone(store), vec![(data.clone(), ranges)], RangeLimits::default());
            return Ok(Source::Ranges(reader));
        }
        // Held over the request, so that those who ask for the same object at once wait for one request.
        let mut objects = self.objects.lock().await;
        if let Some(place) = objects.iter().position(|(key, _)| *key == data.key) {
            let kept = objects.remove(place);
            objects.push(kept.clone());
            return Ok(Source::Whole(kept.1));
        }
        let body = store.get(&data.key).await?.ok_or_else(|| RepoError::not_found(&data.key))?;
        objects.push((data.key.clone(), body.clone()));
        if objects.len() > OBJECTS_KEPT {
            objects.remove(0);
        }
        Ok(Source::Whole(body))
    }

    async fn read(
        &self,
        segment: &Arc<Segment>,
        after: Position,
        upto: Position,
        filter: LogFilter<'_>,
        found: &mut Vec<LogChange>,
    ) -> Result<(), RepoError> {
        let wanted = wanted_frames(segment, after, upto, filter);
        let Some(data) = segment.data.clone().filter(|_| !wanted.is_empty()) else { return Ok(()) };
        let source = self.source(&data, &wanted).await?;
        for (site, frame) in wanted {
            let mut texts = Vec::with_capacity(frame.chunks.len());
            for chunk in &frame.chunks {
                texts.push((chunk.clone(), source.chunk(&data, chunk).await?));
            }
            let (segment, key) = (Arc::clone(segment), data.key.clone());
            let (site, frame) = (site.cloned(), frame.clone());
            let changes = blocking(move || parse(&segment, &key, site.as_ref(), &frame, &texts)).await?;
            let inside = |logged: &LogChange| {
                let position = logged.change.stamp.key.position;
                position > after && position <= upto
            };
            found.extend(changes.into_iter().filter(inside));
        }
        Ok(())
    }
}

/// Where the chunks of a data object come from.
enum Source {
    Whole(Bytes),
    Ranges(RangeReader),
}

impl Source {
    /// The bytes of a chunk; whoever decodes them checks their digest.
    async fn chunk(&self, data: &ObjectInfo, chunk: &Chunk) -> Result<Bytes, RepoError> {
        match self {
            Self::Ranges(reader) => reader.chunk(data, chunk).await,
            Self::Whole(bytes) => {
                let end = chunk.offset.saturating_add(chunk.bytes);
                if end > bytes.len() as u64 {
                    let what = format!("it ends at {}, within a chunk that ends at {end}", bytes.len());
                    return Err(RepoError::damaged(&data.key, what));
                }
                // Both are below the length of something in memory.
                Ok(bytes.slice(chunk.offset as usize..end as usize))
            }
        }
    }
}

/// Frames that may hold changes asked for, with their sites.
fn wanted_frames<'a>(
    segment: &'a Segment,
    after: Position,
    upto: Position,
    filter: LogFilter<'_>,
) -> Vec<(Option<&'a SiteId>, &'a LogFrame)> {
    let owned =
        segment.sites.iter().flat_map(|(site, frames)| frames.iter().map(move |frame| (Some(site), frame)));
    let all = owned.chain(segment.unowned.iter().map(|frame| (None, frame)));
    let wanted = |(_, frame): &(Option<&SiteId>, &LogFrame)| {
        let mark = frame.mark.and_then(|mark| segment.marks.get(mark as usize));
        let marked = match filter {
            LogFilter::All => true,
            LogFilter::Step { run, step } => mark.is_some_and(|mark| &mark.run == run && mark.step == step),
        };
        let within =
            frame.span.is_some_and(|(first, last)| first.key.position <= upto && last.key.position > after);
        frame.kind == FrameKind::Changes && marked && within
    };
    all.filter(wanted).collect()
}

fn parse(
    segment: &Segment,
    key: &str,
    site: Option<&SiteId>,
    frame: &LogFrame,
    texts: &[(Chunk, Bytes)],
) -> Result<Vec<LogChange>, RepoError> {
    let table = segment.tables.get(frame.table as usize).ok_or_else(|| {
        RepoError::damaged(key, format!("a frame is of table {}, which its index lacks", frame.table))
    })?;
    let mark = frame.mark.and_then(|mark| segment.marks.get(mark as usize)).cloned();
    let columns: Arc<[String]> = table.def.stored_columns().map(|column| column.name.clone()).collect();
    let mut reader = ChangeReader::new(columns.len());
    let mut found = Vec::new();
    for (chunk, bytes) in texts {
        let text = decode(key, chunk, bytes)?;
        for change in reader.changes(&text) {
            let change = change.map_err(|error| {
                RepoError::damaged_range(key, chunk.offset, chunk.bytes, &error.to_string())
            })?;
            let (table, columns) = (table.def.name.clone(), Arc::clone(&columns));
            found.push(LogChange { table, columns, site: site.cloned(), mark: mark.clone(), change });
        }
    }
    reader.finish().map_err(|error| RepoError::damaged(key, format!("the end of a frame: {error}")))?;
    Ok(found)
}
