//! What is merged: segments, and compacted segments of the level below, alike.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use muster_types::compacted::{CompactedRoot, Run, RunPart};
use muster_types::segment::{Commit, FrameKind, LogFrame, Mark, Segment, TableEvent};
use muster_types::snapshot::{Chunk, ObjectInfo, PageRef};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, SiteId};
use tokio::runtime::Handle;

use super::named;
use crate::catalog::Sites;
use crate::catalog::compacted::{self, Compacted};
use crate::chunk;
use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::forget::Forgotten;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// Bytes read at once: sources are read from front to back, and sixteen windows are held.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// One segment that a source covers, without its frames.
pub(super) struct Link {
    pub(super) after: Boundary,
    pub(super) boundary: Boundary,
    pub(super) clock_offset_micros: (i64, u64),
    /// Indexes into the source's tables.
    pub(super) list: Vec<u32>,
    /// Indexes into the source's marks.
    pub(super) marks: Vec<u32>,
    pub(super) table_events: Vec<TableEvent>,
    pub(super) commits: Vec<Commit>,
}

/// Lines of one (table, mark) of one site, as they lie in a source.
pub(super) struct Strip {
    /// Number of the source.
    pub(super) source: usize,
    /// Index into the source's tables, later into the target's.
    pub(super) table: u32,
    /// Index into the source's marks, later into the target's.
    pub(super) mark: Option<u32>,
    pub(super) kind: FrameKind,
    pub(super) object: Arc<ObjectInfo>,
    pub(super) chunks: Vec<Chunk>,
    /// Ascending, each with the position that it ends at. Segments count from the source's first, later from the target's.
    pub(super) parts: Vec<(RunPart, Position)>,
}

/// A segment or a compacted segment.
pub(super) struct Source {
    pub(super) repository: Repository,
    pub(super) key: String,
    /// Digest of the stored index or root.
    pub(super) digest: Digest,
    pub(super) first: u64,
    pub(super) predecessor: Option<Digest>,
    pub(super) head: Digest,
    pub(super) tables: Vec<CapturedTable>,
    pub(super) marks: Vec<Mark>,
    pub(super) links: Vec<Link>,
    /// Those that were not read yet.
    pages: VecDeque<PageRef>,
    unowned_page: Option<ObjectInfo>,
    unowned: Vec<Strip>,
    sites: BTreeMap<SiteId, Vec<Strip>>,
    /// Sites whose rows are overwritten, or are going to be.
    forgotten: BTreeSet<SiteId>,
    packs: Vec<Arc<ObjectInfo>>,
    window: Option<(String, u64, Bytes)>,
}

/// A segment as a source.
pub(super) async fn segment(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    sequence: u64,
    forgotten: &Forgotten,
) -> Result<Source, RepoError> {
    let key = keys::segment_index(shard, incarnation, sequence);
    let body = repository.objects().get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
    let digest = Digest::of(&body);
    let name = key.clone();
    let segment: Segment = blocking(move || from_json_zstd(&name, &body)).await?;
    if segment.sequence != sequence {
        return Err(RepoError::damaged(&key, format!("it says that it is segment {}", segment.sequence)));
    }
    let object = Arc::new(segment.data.unwrap_or_else(|| ObjectInfo {
        key: key.clone(),
        bytes: 0,
        digest: Digest::of(b""),
    }));
    let end = segment.boundary.position;
    let strips = |frames: Vec<LogFrame>| -> Vec<Strip> {
        (0u32..).zip(frames).map(|(number, frame)| strip(number, frame, &object, end)).collect()
    };
    let forgotten = forgotten.sites_upto(shard, incarnation, sequence);
    let sites = segment.sites.into_iter().filter(|(site, _)| !forgotten.contains(site));
    let sites = sites.map(|(site, frames)| (site, strips(frames))).collect();
    let unowned = strips(segment.unowned);
    let count = |length: usize| 0..u32::try_from(length).unwrap_or(u32::MAX);
    let link = Link {
        after: segment.after,
        boundary: segment.boundary,
        clock_offset_micros: segment.clock_offset_micros,
        list: count(segment.tables.len()).collect(),
        marks: count(segment.marks.len()).collect(),
        table_events: segment.table_events,
        commits: segment.commits,
    };
    Ok(Source {
        repository: repository.clone(),
        key,
        digest,
        first: sequence,
        predecessor: segment.predecessor,
        head: digest,
        tables: segment.tables,
        marks: segment.marks,
        links: vec![link],
        pages: VecDeque::new(),
        unowned_page: None,
        unowned,
        sites,
        forgotten,
        packs: Vec::new(),
        window: None,
    })
}

fn strip(number: u32, frame: LogFrame, object: &Arc<ObjectInfo>, end: Position) -> Strip {
    let part = RunPart {
        segment: 0,
        frame: number,
        chunks: (0, 0),
        inserts: frame.inserts,
        updates: frame.updates,
        deletes: frame.deletes,
        span: frame.span,
        deletions: frame.deletions,
        rows_digest: frame.rows_digest,
    };
    Strip {
        source: 0,
        table: frame.table,
        mark: frame.mark,
        kind: frame.kind,
        object: Arc::clone(object),
        chunks: frame.chunks,
        parts: vec![(part, end)],
    }
}

/// A compacted segment as a source.
pub(super) fn compacted(repository: &Repository, found: Compacted, forgotten: &Forgotten) -> Source {
    let Compacted { key, digest, root, .. } = found;
    let forgotten = forgotten.sites_upto(&root.shard, &root.incarnation, root.last);
    let links = links(&root);
    Source {
        repository: repository.clone(),
        key,
        digest,
        first: root.first,
        predecessor: root.predecessor,
        head: root.head,
        links,
        pages: root.pages.into(),
        unowned_page: root.unowned,
        unowned: Vec::new(),
        sites: BTreeMap::new(),
        forgotten,
        packs: root.packs.into_iter().map(Arc::new).collect(),
        tables: root.tables,
        marks: root.marks,
        window: None,
    }
}

fn links(root: &CompactedRoot) -> Vec<Link> {
    let covered = &root.segments;
    let bounds = covered.bounds().zip(&covered.clock_offset_micros).zip(&covered.lists);
    (0u32..)
        .zip(bounds)
        .map(|(number, (((after, boundary), clock), list))| Link {
            after,
            boundary,
            clock_offset_micros: *clock,
            list: root.lists.get(*list as usize).cloned().unwrap_or_default(),
            marks: covered.marks.get(&number).cloned().unwrap_or_default(),
            table_events: covered.table_events.get(&number).cloned().unwrap_or_default(),
            commits: covered.commits.get(&number).cloned().unwrap_or_default(),
        })
        .collect()
}

/// Every source follows the one before it.
pub(super) fn check_links(sources: &[Source]) -> Result<(), RepoError> {
    for (before, next) in sources.iter().zip(sources.iter().skip(1)) {
        if next.predecessor != Some(before.head) || before.first + before.links.len() as u64 != next.first {
            return Err(broken(&before.key, Some(before.head), next.predecessor));
        }
    }
    Ok(())
}

/// A link of the chain that does not hold.
pub(super) fn broken(key: &str, ends: Option<Digest>, predecessor: Option<Digest>) -> RepoError {
    let what =
        format!("the chain ends at {} there, and its successor names {}", named(ends), named(predecessor));
    RepoError::damaged(key, what)
}

impl Source {
    /// The next site that it has anything of.
    pub(super) fn next_site(&mut self, runtime: &Handle) -> Result<Option<&SiteId>, RepoError> {
        while self.sites.is_empty() {
            let Some(page) = self.pages.pop_front() else { return Ok(None) };
            let all = Arc::new(Sites::All);
            let read = runtime.block_on(compacted::read_page(&self.repository, page.object, all))?;
            let read = read.into_iter().filter(|(site, _)| !self.forgotten.contains(site));
            let strips = read.map(|(site, runs)| Ok((site, self.strips(runs)?)));
            self.sites = strips.collect::<Result<_, RepoError>>()?;
        }
        Ok(self.sites.first_key_value().map(|(site, _)| site))
    }

    /// What it has of `site`, if that is its next.
    pub(super) fn take(&mut self, site: &SiteId) -> Vec<Strip> {
        match self.sites.first_entry() {
            Some(entry) if entry.key() == site => entry.remove(),
            _ => Vec::new(),
        }
    }

    /// What it has without a site.
    pub(super) fn take_unowned(&mut self, runtime: &Handle) -> Result<Vec<Strip>, RepoError> {
        if let Some(object) = self.unowned_page.take() {
            let runs = runtime.block_on(compacted::read_unowned(&self.repository, object))?;
            self.unowned = self.strips(runs)?;
        }
        Ok(std::mem::take(&mut self.unowned))
    }

    fn strips(&self, runs: Vec<Run>) -> Result<Vec<Strip>, RepoError> {
        let lacks = || RepoError::damaged(&self.key, "a run names what it lacks");
        let strip = |run: Run| {
            let ends = run.parts.into_iter().map(|part| {
                let end = self.links.get(part.segment as usize)?.boundary.position;
                Some((part, end))
            });
            Some(Strip {
                source: 0,
                table: run.table,
                mark: run.mark,
                kind: run.kind,
                object: Arc::clone(self.packs.get(run.pack as usize)?),
                chunks: run.chunks,
                parts: ends.collect::<Option<_>>()?,
            })
        };
        runs.into_iter().map(|run| strip(run).ok_or_else(lacks)).collect()
    }

    /// The text of a chunk, checked.
    pub(super) fn text(
        &mut self,
        runtime: &Handle,
        object: &ObjectInfo,
        chunk: &Chunk,
    ) -> Result<Vec<u8>, RepoError> {
        let end = chunk.offset.saturating_add(chunk.bytes);
        let held = self.window.as_ref().is_some_and(|(key, offset, bytes)| {
            *key == object.key && *offset <= chunk.offset && end <= offset + bytes.len() as u64
        });
        if !held {
            let wanted = chunk.bytes.max(WINDOW_BYTES.min(object.bytes.saturating_sub(chunk.offset)));
            let objects = self.repository.objects();
            let bytes = runtime.block_on(objects.get_range(&object.key, chunk.offset, wanted))?;
            self.window = Some((object.key.clone(), chunk.offset, bytes));
        }
        let Some((_, offset, bytes)) = &self.window else {
            return Err(RepoError::misuse("a window without bytes"));
        };
        // Both are below the length of something in memory.
        let (from, to) = ((chunk.offset - offset) as usize, (end - offset) as usize);
        let part = bytes.get(from..to).map(|part| bytes.slice_ref(part));
        let part = part.ok_or_else(|| RepoError::damaged(&object.key, "it ends within a chunk"))?;
        chunk::decode(&object.key, chunk, &part)
    }
}
