//! Merging sources into one compacted segment.

use std::path::PathBuf;

use bytes::Bytes;
use muster_types::compacted::{CompactedPage, CompactedRoot, Covered, Run, RunPart};
use muster_types::format::FORMAT;
use muster_types::segment::{FrameKind, Mark};
use muster_types::snapshot::{ObjectInfo, PageRef};
use muster_types::table::CapturedTable;
use muster_types::{Digest, Incarnation, Position, ShardName, SiteId};
use tokio::runtime::Handle;

use super::Merged;
use super::source::{Source, Strip};
use crate::chunk::ChunkWriter;
use crate::document::to_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::repository::Repository;

/// Size at which the next stretch goes into the next pack.
const PACK_BYTES: u64 = 256 * 1024 * 1024;

/// Compressed bytes of one (site, table) at which its runs end and others begin, which may lie in another pack.
const STRETCH_BYTES: u64 = 64 * 1024 * 1024;

/// Sites on a page, as in snapshots.
const PAGE_SITES: usize = 512;

/// Parts at which a page ends behind its site: a page of them is about 200 KiB, and 2 MiB as text.
const PAGE_PARTS: usize = 16 * 1024;

/// Bytes read back at once.
const READ_BACK_BYTES: u64 = 8 * 1024 * 1024;

/// Where the result goes.
pub(super) struct Target {
    pub(super) repository: Repository,
    pub(super) runtime: Handle,
    pub(super) shard: ShardName,
    pub(super) incarnation: Incarnation,
    pub(super) level: u32,
    pub(super) dir: PathBuf,
}

/// Merges `sources`, on a thread that may block.
pub(super) fn merge(target: Target, mut sources: Vec<Source>) -> Result<Merged, RepoError> {
    let mut merger = Merger::new(target, &sources)?;
    let mut strips = Vec::new();
    for (number, source) in sources.iter_mut().enumerate() {
        let found = source.take_unowned(&merger.target.runtime)?;
        strips.extend(merger.renumbered(number, found)?);
    }
    let unowned = merger.runs(strips, &mut sources)?;
    merger.unowned(unowned)?;
    while let Some(site) = next_site(&mut sources, &merger.target.runtime)? {
        let mut strips = Vec::new();
        for (number, source) in sources.iter_mut().enumerate() {
            strips.extend(merger.renumbered(number, source.take(&site))?);
        }
        let runs = merger.runs(strips, &mut sources)?;
        merger.site(site, runs)?;
    }
    merger.finish(&sources)
}

fn next_site(sources: &mut [Source], runtime: &Handle) -> Result<Option<SiteId>, RepoError> {
    let mut least: Option<SiteId> = None;
    for source in sources {
        if let Some(site) = source.next_site(runtime)?
            && least.as_ref().is_none_or(|least| site < least)
        {
            least = Some(site.clone());
        }
    }
    Ok(least)
}

/// Numbers of a source in terms of the target.
struct Numbers {
    tables: Vec<u32>,
    marks: Vec<u32>,
    /// Segments before its first.
    segments: u32,
}

struct Merger {
    target: Target,
    first: u64,
    attempt: u32,
    tables: Vec<CapturedTable>,
    lists: Vec<Vec<u32>>,
    marks: Vec<Mark>,
    numbers: Vec<Numbers>,
    covered: Covered,
    pack: Option<ChunkWriter>,
    packs: Vec<ObjectInfo>,
    page: CompactedPage,
    page_parts: usize,
    pages: Vec<PageRef>,
    unowned: Option<ObjectInfo>,
    bytes: u64,
}

impl Merger {
    fn new(target: Target, sources: &[Source]) -> Result<Self, RepoError> {
        let mut merger = Self {
            target,
            first: sources.first().map_or(1, |source| source.first),
            attempt: rand::random(),
            tables: Vec::new(),
            lists: Vec::new(),
            marks: Vec::new(),
            numbers: Vec::new(),
            covered: Covered::default(),
            pack: None,
            packs: Vec::new(),
            page: empty_page(),
            page_parts: 0,
            pages: Vec::new(),
            unowned: None,
            bytes: 0,
        };
        for source in sources {
            merger.cover(source)?;
        }
        Ok(merger)
    }

    /// Takes over what the segments of a source say as a whole.
    fn cover(&mut self, source: &Source) -> Result<(), RepoError> {
        let tables: Vec<u32> = source.tables.iter().map(|table| number(&mut self.tables, table)).collect();
        let marks: Vec<u32> = source.marks.iter().map(|mark| number(&mut self.marks, mark)).collect();
        let segments = self.covered.positions.len() as u32;
        let lacks = || RepoError::damaged(&source.key, "a segment of it names what it lacks");
        let map = |numbers: &[u32], known: &[u32]| -> Result<Vec<u32>, RepoError> {
            let mapped = numbers.iter().map(|number| known.get(*number as usize).copied());
            mapped.collect::<Option<Vec<_>>>().ok_or_else(lacks)
        };
        for link in &source.links {
            let at = self.covered.positions.len() as u32;
            let list = number(&mut self.lists, &map(&link.list, &tables)?);
            self.covered.push(link.after, link.boundary, link.clock_offset_micros, list);
            if !link.marks.is_empty() {
                self.covered.marks.insert(at, map(&link.marks, &marks)?);
            }
            if !link.table_events.is_empty() {
                self.covered.table_events.insert(at, link.table_events.clone());
            }
            if !link.commits.is_empty() {
                self.covered.commits.insert(at, link.commits.clone());
            }
        }
        self.numbers.push(Numbers { tables, marks, segments });
        Ok(())
    }

    /// Strips of source `number` in terms of the target.
    fn renumbered(&self, source: usize, strips: Vec<Strip>) -> Result<Vec<Strip>, RepoError> {
        let numbers = &self.numbers[source];
        let lacks = || RepoError::misuse("a strip of a table or mark that its source lacks");
        let renumber = |mut strip: Strip| {
            strip.source = source;
            strip.table = *numbers.tables.get(strip.table as usize).ok_or_else(lacks)?;
            strip.mark = match strip.mark {
                Some(mark) => Some(*numbers.marks.get(mark as usize).ok_or_else(lacks)?),
                None => None,
            };
            strip.parts.iter_mut().for_each(|(part, _)| part.segment += numbers.segments);
            Ok(strip)
        };
        strips.into_iter().map(renumber).collect()
    }

    /// Writes what one site has, table by table.
    fn runs(&mut self, mut strips: Vec<Strip>, sources: &mut [Source]) -> Result<Vec<Run>, RepoError> {
        strips.retain(|strip| !strip.parts.is_empty());
        strips.sort_by_key(|strip| (strip.table, first_segment(strip), strip.parts[0].0.frame));
        let mut runs = Vec::new();
        for stretch in stretches(strips) {
            if self.pack.as_ref().is_some_and(|pack| pack.bytes() >= PACK_BYTES) {
                self.end_pack()?;
            }
            for lane in lanes(stretch) {
                runs.push(self.run(lane, sources)?);
            }
        }
        Ok(runs)
    }

    fn run(&mut self, lane: Vec<Strip>, sources: &mut [Source]) -> Result<Run, RepoError> {
        let pack = u32::try_from(self.packs.len()).map_err(|_| RepoError::misuse("more than 2^32 packs"))?;
        if self.pack.is_none() {
            self.pack = Some(ChunkWriter::create(self.target.dir.join(keys::pack_name(self.packs.len())))?);
        }
        let Some(writer) = &mut self.pack else { return Err(RepoError::misuse("a run without a pack")) };
        let Some(head) = lane.first() else { return Err(RepoError::misuse("a run without strips")) };
        let mut run = Run {
            table: head.table,
            mark: head.mark,
            kind: head.kind,
            pack,
            chunks: Vec::new(),
            parts: Vec::new(),
        };
        for strip in lane {
            let mut copy =
                Copy { writer: &mut *writer, run: &mut run, strip: &strip, part: 0, started: false };
            for chunk in &strip.chunks {
                let text = sources[strip.source].text(&self.target.runtime, &strip.object, chunk)?;
                copy.text(&text)?;
            }
            copy.finish()?;
        }
        run.chunks.extend(writer.end()?);
        Ok(run)
    }

    fn unowned(&mut self, runs: Vec<Run>) -> Result<(), RepoError> {
        if !runs.is_empty() {
            let page = CompactedPage { unowned: runs, ..empty_page() };
            self.unowned = Some(self.document("unowned", &page)?);
        }
        Ok(())
    }

    fn site(&mut self, site: SiteId, runs: Vec<Run>) -> Result<(), RepoError> {
        if self.page.sites.len() >= PAGE_SITES || self.page_parts >= PAGE_PARTS {
            self.end_page()?;
        }
        self.page_parts += runs.iter().map(|run| run.parts.len()).sum::<usize>();
        self.page.sites.insert(site, runs);
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), RepoError> {
        let page = std::mem::replace(&mut self.page, empty_page());
        self.page_parts = 0;
        let (Some(first), Some(last)) = (page.sites.first_key_value(), page.sites.last_key_value()) else {
            return Ok(());
        };
        let (first, last, sites) = (first.0.clone(), last.0.clone(), page.sites.len() as u64);
        let object = self.document(&format!("page-{:04}", self.pages.len()), &page)?;
        self.pages.push(PageRef { first, last, sites, object });
        Ok(())
    }

    fn key(&self, name: &str, suffix: &str) -> String {
        let Target { shard, incarnation, level, .. } = &self.target;
        let folder = keys::compacted_data(shard, incarnation, (*level, self.first, self.attempt));
        format!("{folder}{name}{suffix}")
    }

    /// Writes a page and reads it back.
    fn document(&mut self, name: &str, page: &CompactedPage) -> Result<ObjectInfo, RepoError> {
        let body = to_json_zstd(page)?;
        let digest = Digest::of(&body);
        let object = ObjectInfo { key: self.key(name, ".json.zst"), bytes: body.len() as u64, digest };
        let objects = self.target.repository.objects();
        self.target.runtime.block_on(objects.put(&object.key, body))?;
        self.read_back(&object)?;
        self.bytes += object.bytes;
        Ok(object)
    }

    fn end_pack(&mut self) -> Result<(), RepoError> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let file = pack.finish()?;
        let name = format!("pack-{:04}", self.packs.len());
        let object = file.object(self.key(&name, ".zst"));
        let objects = self.target.repository.objects();
        self.target.runtime.block_on(objects.put_file(&object.key, file.path()))?;
        std::fs::remove_file(file.path()).map_err(|error| RepoError::local(file.path(), "remove", &error))?;
        self.read_back(&object)?;
        self.bytes += object.bytes;
        self.packs.push(object);
        Ok(())
    }

    /// What it replaces may be removed later: the object store must hold what was sent.
    fn read_back(&self, object: &ObjectInfo) -> Result<(), RepoError> {
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < object.bytes {
            let count = READ_BACK_BYTES.min(object.bytes - offset);
            let objects = self.target.repository.objects();
            let bytes: Bytes = self.target.runtime.block_on(objects.get_range(&object.key, offset, count))?;
            hasher.update(&bytes);
            offset += count;
        }
        if *hasher.finalize().as_bytes() == object.digest.0 {
            return Ok(());
        }
        Err(RepoError::damaged(&object.key, "what was read back right after writing it is something else"))
    }

    fn finish(mut self, sources: &[Source]) -> Result<Merged, RepoError> {
        self.end_pack()?;
        self.end_page()?;
        let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
            return Err(RepoError::misuse("a merge of nothing"));
        };
        let range = (self.first, self.first + self.covered.positions.len() as u64 - 1);
        let Target { repository, runtime, shard, incarnation, level, .. } = self.target;
        let key = keys::compacted_root(&shard, &incarnation, level, range);
        let root = CompactedRoot {
            format: FORMAT,
            shard,
            incarnation,
            level,
            first: range.0,
            last: range.1,
            predecessor: first.predecessor,
            head: last.head,
            sources: sources.iter().map(|source| source.digest).collect(),
            tables: self.tables,
            lists: self.lists,
            marks: self.marks,
            segments: self.covered,
            packs: self.packs,
            pages: self.pages,
            unowned: self.unowned,
        };
        // Another compactor's root covers the same and is as good.
        runtime.block_on(repository.objects().create(&key, to_json_zstd(&root)?))?;
        Ok(Merged { level, first: range.0, last: range.1, bytes: self.bytes })
    }
}

fn empty_page() -> CompactedPage {
    CompactedPage { format: FORMAT, sites: std::collections::BTreeMap::new(), unowned: Vec::new() }
}

/// The number of `wanted` among `known`, which gets it if it lacks it. The last ones are the likeliest.
fn number<T: Clone + PartialEq>(known: &mut Vec<T>, wanted: &T) -> u32 {
    let found = known.iter().rposition(|candidate| candidate == wanted);
    let number = found.unwrap_or_else(|| {
        known.push(wanted.clone());
        known.len() - 1
    });
    // Tables, lists and marks of a group: thousands at most.
    number as u32
}

fn first_segment(strip: &Strip) -> u32 {
    strip.parts.first().map_or(0, |(part, _)| part.segment)
}

fn last_segment(strip: &Strip) -> u32 {
    strip.parts.last().map_or(0, |(part, _)| part.segment)
}

/// Cuts sorted strips between tables, and between segments where a table has much: all runs of a table that lie in
/// one pack then lie behind those of the packs before, whatever their marks.
fn stretches(strips: Vec<Strip>) -> Vec<Vec<Strip>> {
    let mut stretches: Vec<Vec<Strip>> = Vec::new();
    let (mut bytes, mut reached) = (0, 0);
    for strip in strips {
        let open = stretches.last_mut().filter(|stretch| {
            let same = stretch.first().is_some_and(|first| first.table == strip.table);
            same && (bytes < STRETCH_BYTES || first_segment(&strip) <= reached)
        });
        let own: u64 = strip.chunks.iter().map(|chunk| chunk.bytes).sum();
        match open {
            Some(stretch) => {
                (bytes, reached) = (bytes + own, reached.max(last_segment(&strip)));
                stretch.push(strip);
            }
            None => {
                (bytes, reached) = (own, last_segment(&strip));
                stretches.push(vec![strip]);
            }
        }
    }
    stretches
}

/// Lays strips of one table into runs: of one mark and kind, each segment once, so that keys ascend.
fn lanes(strips: Vec<Strip>) -> Vec<Vec<Strip>> {
    let mut lanes: Vec<Vec<Strip>> = Vec::new();
    for strip in strips {
        let fits = |lane: &&mut Vec<Strip>| {
            lane.last().is_some_and(|last| {
                let alike = last.mark == strip.mark && last.kind == strip.kind;
                alike && strip.kind == FrameKind::Changes && last_segment(last) < first_segment(&strip)
            })
        };
        match lanes.iter_mut().find(fits) {
            Some(lane) => lane.push(strip),
            None => lanes.push(vec![strip]),
        }
    }
    lanes
}

/// Copies one strip's lines to the end of a run.
struct Copy<'a> {
    writer: &'a mut ChunkWriter,
    run: &'a mut Run,
    strip: &'a Strip,
    /// The part that the next line belongs to, unless it lies behind its end.
    part: usize,
    /// A line of that part was copied.
    started: bool,
}

impl Copy<'_> {
    fn text(&mut self, text: &[u8]) -> Result<(), RepoError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (unit, others) = self.unit(rest)?;
            rest = others;
            if self.strip.kind == FrameKind::Changes {
                let position = position(unit).ok_or_else(|| self.unreadable())?;
                while self.strip.parts.get(self.part).is_some_and(|(_, end)| position > *end) {
                    self.end_part()?;
                }
            }
            self.run.chunks.extend(self.writer.line(unit)?);
            // The chunk under way comes behind those that have ended.
            let chunk = self.run.chunks.len() as u32;
            let Some((part, _)) = self.strip.parts.get(self.part) else { return Err(self.unreadable()) };
            if !self.started {
                self.run.parts.push(RunPart { chunks: (chunk, chunk), ..part.clone() });
                self.started = true;
            }
            if let Some(part) = self.run.parts.last_mut() {
                part.chunks.1 = chunk;
            }
        }
        Ok(())
    }

    /// The first line; of an update both, which a reader wants in one chunk.
    fn unit<'t>(&self, text: &'t [u8]) -> Result<(&'t [u8], &'t [u8]), RepoError> {
        let line = |text: &[u8]| text.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
        let first = line(text).ok_or_else(|| self.unreadable())?;
        let op = text[..first].split(|byte| *byte == b'\t').nth(3);
        if self.strip.kind == FrameKind::Changes && op == Some(b"B") {
            let second = line(&text[first..]).ok_or_else(|| self.unreadable())?;
            return Ok(text.split_at(first + second));
        }
        Ok(text.split_at(first))
    }

    fn end_part(&mut self) -> Result<(), RepoError> {
        if !self.started {
            return Err(self.unreadable());
        }
        self.part += 1;
        self.started = false;
        Ok(())
    }

    fn finish(mut self) -> Result<(), RepoError> {
        self.end_part()?;
        if self.part == self.strip.parts.len() { Ok(()) } else { Err(self.unreadable()) }
    }

    fn unreadable(&self) -> RepoError {
        RepoError::damaged(&self.strip.object.key, "its lines are not those that its index says")
    }
}

fn position(line: &[u8]) -> Option<Position> {
    let end = line.iter().position(|byte| *byte == b'\t')?;
    std::str::from_utf8(&line[..end]).ok()?.parse().ok().map(Position)
}
