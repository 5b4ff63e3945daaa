//! The change log of a shard read back by position: what happened between two places of its present history.
//!
//! For proofs about a run: the change log is read where it is new, from its head backwards, and indexes that were read
//! are kept for the next question.
//!
//! # Invariants
//! - [`LogReader::stretch`] answers whole or not at all: `None` until the log reaches the end of the range.
//! - Every index read is the one that its successor names by digest.
//! - Memory: the changes of one chunk (1 MiB of text), the index of one segment, and what is kept.
//!
//! # Errors
//! A stretch of the range that is missing from the log; damaged objects; what the object store answers.

mod indexes;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use muster_rows::{Change, ChangeReader};
use muster_types::segment::{FrameKind, LogFrame, Mark, Segment, TableEvent, TableEventKind};
use muster_types::snapshot::{Chunk, ObjectInfo};
use muster_types::{Position, RunId, ShardName, SiteId};
use tokio::sync::Mutex;

use crate::chunk::decode;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::range::{RangeLimits, RangeReader};
use crate::repository::Repository;
use indexes::Indexes;

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

    /// The changes with positions in `(after, upto]`, to be read one after the other; `None` while the log does not
    /// reach that far.
    ///
    /// # Errors
    /// See the module.
    pub async fn stretch<'a>(
        &'a self,
        after: Position,
        upto: Position,
        filter: LogFilter<'a>,
    ) -> Result<Option<Stretch<'a>>, RepoError> {
        let mut indexes = self.indexes.lock().await;
        let covering = indexes.covering(&self.repository, &self.shard, after, upto).await?;
        Ok(covering.map(|segments| Stretch {
            log: self,
            after,
            upto,
            filter,
            segments,
            reached: after,
            open: None,
            table_events: Vec::new(),
        }))
    }

    /// Up to where the log is known to reach, without looking at the repository; `None` before the first look.
    pub async fn reached(&self) -> Option<Position> {
        self.indexes.lock().await.reached()
    }

    /// All of a stretch at once, by ascending key; `None` while the log does not reach that far.
    ///
    /// # Errors
    /// See the module.
    pub async fn changes(
        &self,
        after: Position,
        upto: Position,
        filter: LogFilter<'_>,
    ) -> Result<Option<LogRange>, RepoError> {
        let Some(mut stretch) = self.stretch(after, upto, filter).await? else { return Ok(None) };
        let mut range = LogRange::default();
        while let Some(changes) = stretch.next().await? {
            range.changes.extend(changes);
        }
        range.table_events = stretch.table_events;
        range.changes.sort_by_key(|logged| logged.change.stamp.key);
        Ok(Some(range))
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
}

/// A stretch of the log that is being read.
pub struct Stretch<'a> {
    log: &'a LogReader,
    after: Position,
    upto: Position,
    filter: LogFilter<'a>,
    /// Those still to read.
    segments: RangeInclusive<u64>,
    reached: Position,
    open: Option<OpenSegment>,
    table_events: Vec<TableEvent>,
}

/// A segment whose frames are being read.
struct OpenSegment {
    segment: Arc<Segment>,
    source: Source,
    data: ObjectInfo,
    frames: VecDeque<(Option<SiteId>, LogFrame)>,
    frame: Option<OpenFrame>,
}

/// A frame whose chunks are being read.
struct OpenFrame {
    site: Option<SiteId>,
    frame: LogFrame,
    next_chunk: usize,
    reader: ChangeReader,
}

impl Stretch<'_> {
    /// The next changes: those of one chunk. Segment follows segment; within one, frame follows frame, whose changes
    /// interleave by position.
    ///
    /// # Errors
    /// See the module.
    pub async fn next(&mut self) -> Result<Option<Vec<LogChange>>, RepoError> {
        loop {
            if self.open.is_none() && !self.open_next().await? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { continue };
            let Some(changes) = open.next().await? else {
                self.open = None;
                continue;
            };
            let (after, upto) = (self.after, self.upto);
            let inside = |logged: &LogChange| {
                let position = logged.change.stamp.key.position;
                position > after && position <= upto
            };
            return Ok(Some(changes.into_iter().filter(inside).collect()));
        }
    }

    /// What happened to whole tables in what was read so far; their rows' changes are not in the log then.
    pub fn table_events(&self) -> &[TableEvent] {
        &self.table_events
    }

    /// Opens the next segment that holds something; `false` when there is none.
    async fn open_next(&mut self) -> Result<bool, RepoError> {
        for sequence in self.segments.by_ref() {
            let log = self.log;
            let segment = log.indexes.lock().await.get(&log.repository, &log.shard, sequence).await?;
            if segment.after.position > self.reached {
                let (first, last) = (self.reached.0 + 1, segment.after.position);
                return Err(RepoError::damaged(
                    &keys::segment_index(&log.shard, &segment.incarnation, sequence),
                    format!("changes {first} to {last} are missing before it"),
                ));
            }
            self.reached = segment.boundary.position;
            let inside = |event: &&TableEvent| match event.position {
                // It stands right before the commit that truncates.
                Some(position) if event.event == TableEventKind::Truncated => {
                    position >= self.after && position < self.upto
                }
                // The changes that the log lacks for it stand anywhere in the segment.
                Some(_) if event.event == TableEventKind::Reread => true,
                Some(position) => position > self.after && position <= self.upto,
                None => true,
            };
            self.table_events.extend(segment.table_events.iter().filter(inside).cloned());
            let wanted = wanted_frames(&segment, self.after, self.upto, self.filter);
            let Some(data) = segment.data.clone().filter(|_| !wanted.is_empty()) else { continue };
            let source = log.source(&data, &wanted).await?;
            let frames = wanted.into_iter().map(|(site, frame)| (site.cloned(), frame.clone())).collect();
            self.open = Some(OpenSegment { source, data, frames, frame: None, segment });
            return Ok(true);
        }
        Ok(false)
    }
}

impl OpenSegment {
    async fn next(&mut self) -> Result<Option<Vec<LogChange>>, RepoError> {
        loop {
            let Some(mut open) = self.frame.take().or_else(|| self.next_frame()) else { return Ok(None) };
            let Some(chunk) = open.frame.chunks.get(open.next_chunk).cloned() else {
                let ended = open.reader.finish();
                ended.map_err(|error| {
                    RepoError::damaged(&self.data.key, format!("the end of a frame: {error}"))
                })?;
                continue;
            };
            open.next_chunk += 1;
            let bytes = self.source.chunk(&self.data, &chunk).await?;
            let (segment, key) = (Arc::clone(&self.segment), self.data.key.clone());
            let parsed = blocking(move || {
                let changes = open.parse(&segment, &key, &chunk, &bytes)?;
                Ok((open, changes))
            });
            let (open, changes) = parsed.await?;
            self.frame = Some(open);
            return Ok(Some(changes));
        }
    }

    fn next_frame(&mut self) -> Option<OpenFrame> {
        let (site, frame) = self.frames.pop_front()?;
        let table = self.segment.tables.get(frame.table as usize);
        let columns = table.map_or(0, |table| table.def.stored_columns().count());
        Some(OpenFrame { site, frame, next_chunk: 0, reader: ChangeReader::new(columns) })
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

impl OpenFrame {
    fn parse(
        &mut self,
        segment: &Segment,
        key: &str,
        chunk: &Chunk,
        bytes: &Bytes,
    ) -> Result<Vec<LogChange>, RepoError> {
        let number = self.frame.table;
        let table = segment.tables.get(number as usize).ok_or_else(|| {
            RepoError::damaged(key, format!("a frame is of table {number}, which its index lacks"))
        })?;
        let mark = self.frame.mark.and_then(|mark| segment.marks.get(mark as usize));
        let columns: Arc<[String]> = table.def.stored_columns().map(|column| column.name.clone()).collect();
        let text = decode(key, chunk, bytes)?;
        let mut found = Vec::new();
        for change in self.reader.changes(&text) {
            let change = change.map_err(|error| {
                RepoError::damaged_range(key, chunk.offset, chunk.bytes, &error.to_string())
            })?;
            found.push(LogChange {
                table: table.def.name.clone(),
                columns: Arc::clone(&columns),
                site: self.site.clone(),
                mark: mark.cloned(),
                change,
            });
        }
        Ok(found)
    }
}
