//! Spooling the changes of one segment.
//!
//! # Invariants
//! - Memory is bounded by one chunk and by the index: one frame entry for each group of changes.
//! - Within a frame, keys of changes ascend strictly. Frames of one (site, table, mark) may overlap: readers merge the
//!   changes of a segment by key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use muster_rows::{Change, Op, Row, RowsDigest, encode_change, encode_row};
use muster_types::SiteId;
use muster_types::segment::{ChangeStamp, Commit, FrameKind, LogFrame, Mark, TableEvent};
use muster_types::table::CapturedTable;

use crate::chunk::{ChunkWriter, SpoolFile};
use crate::error::RepoError;

/// A segment's data file and what its index says of it.
#[derive(Debug)]
pub struct SpooledSegment {
    pub(crate) data: Option<SpoolFile>,
    /// Tables that frames refer to.
    pub tables: Vec<CapturedTable>,
    /// Marks that frames refer to.
    pub marks: Vec<Mark>,
    /// Frames by site.
    pub sites: BTreeMap<SiteId, Vec<LogFrame>>,
    /// Frames without a site.
    pub unowned: Vec<LogFrame>,
    /// Whole-table events.
    pub table_events: Vec<TableEvent>,
    /// Commits that are recovery points of their own, ascending.
    pub commits: Vec<Commit>,
}

impl SpooledSegment {
    /// A segment without changes: a watermark.
    pub fn empty() -> Self {
        Self {
            data: None,
            tables: Vec::new(),
            marks: Vec::new(),
            sites: BTreeMap::new(),
            unowned: Vec::new(),
            table_events: Vec::new(),
            commits: Vec::new(),
        }
    }

    /// Whether it holds neither frames nor events.
    pub fn is_empty(&self) -> bool {
        self.data.is_none() && self.table_events.is_empty()
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = &LogFrame> {
        self.sites.values().flatten().chain(&self.unowned)
    }
}

struct FrameKey {
    site: Option<SiteId>,
    table: usize,
    mark: Option<u32>,
    kind: FrameKind,
}

struct Open {
    key: FrameKey,
    frame: LogFrame,
    digest: RowsDigest,
}

/// Takes what a poll found, in groups of one (site, table, mark), and spools it into a file.
pub struct SegmentSpool {
    path: std::path::PathBuf,
    writer: Option<ChunkWriter>,
    open: Option<Open>,
    segment: SpooledSegment,
    /// (site, table) that already have a frame of rows.
    reread: BTreeSet<(Option<SiteId>, usize)>,
    line: Vec<u8>,
    changes: u64,
}

impl SegmentSpool {
    /// Spools into the file `path`, which is created when there is something to write. The file must stay until the
    /// segment is appended; removing it is the caller's.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            writer: None,
            open: None,
            segment: SpooledSegment::empty(),
            reread: BTreeSet::new(),
            line: Vec::new(),
            changes: 0,
        }
    }

    /// A table; changes refer to it by the returned number, the count of calls before.
    pub fn table(&mut self, table: &CapturedTable) -> usize {
        self.segment.tables.push(table.clone());
        self.segment.tables.len() - 1
    }

    /// Changes so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// One change. Changes of one (site, table, mark) come together, by ascending key; one that does not come behind
    /// the last begins another group, of changes that were kept back longer.
    ///
    /// # Errors
    /// One key twice in a row, an unknown table, a full or failing disk.
    pub fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: &Change,
    ) -> Result<(), RepoError> {
        let mark = mark.map(|mark| self.mark_number(mark)).transpose()?;
        self.ensure_open(site, table, mark, FrameKind::Changes)?;
        let key = change.stamp.key;
        let last = self.open.as_ref().and_then(|open| open.frame.span).map(|(_, last)| last.key);
        if last == Some(key) {
            return Err(RepoError::misuse(format!("change {key:?} of a frame comes twice")));
        }
        if last.is_some_and(|last| last > key) {
            self.end_frame()?;
            self.ensure_open(site, table, mark, FrameKind::Changes)?;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        encode_change(change, &mut line);
        let (open, writer) = self.opened()?;
        count(&mut open.frame, change);
        open.frame.chunks.extend(writer.line(&line)?);
        self.line = line;
        self.changes += 1;
        Ok(())
    }

    /// One row of a table that is read again whole. Rows of one (site, table) come together, behind all changes.
    ///
    /// # Errors
    /// Rows out of order, an unknown table, a full or failing disk.
    pub fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), RepoError> {
        self.ensure_open(site, table, None, FrameKind::Rows)?;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        encode_row(row, &mut line);
        let name = self.segment.tables[table].def.name.clone();
        let (open, writer) = self.opened()?;
        open.digest.add(&name, row);
        open.frame.inserts += 1;
        open.frame.chunks.extend(writer.line(&line)?);
        self.line = line;
        Ok(())
    }

    /// Something that concerns a whole table.
    pub fn table_event(&mut self, event: TableEvent) {
        self.segment.table_events.push(event);
    }

    /// A commit that is a recovery point of its own; positions ascend.
    pub fn commit(&mut self, commit: Commit) {
        self.segment.commits.push(commit);
    }

    /// Ends the file. Blocks; call it where changes were written.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn finish(mut self) -> Result<SpooledSegment, RepoError> {
        self.end_frame()?;
        if let Some(writer) = self.writer.take() {
            self.segment.data = Some(writer.finish()?);
        }
        Ok(self.segment)
    }

    fn mark_number(&mut self, mark: &Mark) -> Result<u32, RepoError> {
        let marks = &mut self.segment.marks;
        // Runs of a poll are few, and the latest mark is the likeliest.
        let number = marks.iter().rposition(|known| known == mark).unwrap_or_else(|| {
            marks.push(mark.clone());
            marks.len() - 1
        });
        u32::try_from(number).map_err(|_| RepoError::misuse("more than 2^32 marks in a segment"))
    }

    fn ensure_open(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<u32>,
        kind: FrameKind,
    ) -> Result<(), RepoError> {
        let same = |open: &Open| {
            let key = &open.key;
            key.site.as_ref() == site && key.table == table && key.mark == mark && key.kind == kind
        };
        if self.open.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.end_frame()?;
        let number = u32::try_from(table).ok().filter(|_| table < self.segment.tables.len());
        let number = number.ok_or_else(|| {
            RepoError::misuse(format!("a change of table number {table}, which is unknown"))
        })?;
        if kind == FrameKind::Rows && !self.reread.insert((site.cloned(), table)) {
            return Err(RepoError::misuse(format!("rows of {site:?}, table {table}, come in two parts")));
        }
        if self.writer.is_none() {
            self.writer = Some(ChunkWriter::create(self.path.clone())?);
        }
        let frame = LogFrame {
            table: number,
            mark,
            kind,
            chunks: Vec::new(),
            inserts: 0,
            updates: 0,
            deletes: 0,
            span: None,
            deletions: None,
            rows_digest: None,
            place: None,
        };
        let key = FrameKey { site: site.cloned(), table, mark, kind };
        self.open = Some(Open { key, frame, digest: RowsDigest::new() });
        Ok(())
    }

    fn opened(&mut self) -> Result<(&mut Open, &mut ChunkWriter), RepoError> {
        match (&mut self.open, &mut self.writer) {
            (Some(open), Some(writer)) => Ok((open, writer)),
            _ => Err(RepoError::misuse("a line without a frame")),
        }
    }

    fn end_frame(&mut self) -> Result<(), RepoError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if let Some(writer) = &mut self.writer {
            open.frame.chunks.extend(writer.end()?);
        }
        if open.key.kind == FrameKind::Rows {
            open.frame.rows_digest = Some(open.digest.finish());
        }
        match open.key.site {
            Some(site) => self.segment.sites.entry(site).or_default().push(open.frame),
            None => self.segment.unowned.push(open.frame),
        }
        Ok(())
    }
}

fn count(frame: &mut LogFrame, change: &Change) {
    let stamp = change.stamp;
    extend(&mut frame.span, stamp);
    match change.op {
        Op::Insert { .. } => frame.inserts += 1,
        Op::Update { .. } => frame.updates += 1,
        Op::Delete { .. } => {
            frame.deletes += 1;
            extend(&mut frame.deletions, stamp);
        }
        // How many rows it removed is not known here; that it removed some is what matters.
        Op::Truncate => extend(&mut frame.deletions, stamp),
    }
}

fn extend(span: &mut Option<(ChangeStamp, ChangeStamp)>, stamp: ChangeStamp) {
    let first = span.map_or(stamp, |(first, _)| first);
    *span = Some((first, stamp));
}
