//! What to read for a site's rows at a recovery point.
//!
//! Per table: the base (the latest snapshot slice, or a later whole reading of the table, which replaces everything
//! known of it) and the frames of changes behind the base up to the point, in order. A table that was dropped or
//! truncated starts empty there. [`site_tables`] gives that as references into the catalog, for counting;
//! [`store_inputs`] turns one kind of it into [`TableInput`]s, for plans and for looking at rows.
//!
//! # Invariants
//! - A frame is either wholly behind its base or left out: where a snapshot lies inside a frame, that table starts
//!   from an earlier snapshot instead.
//! - Base, changes and definition of a table agree; a definition that changes without the table being read again is
//!   an error.
//!
//! # Errors
//! [`InputError`] names shard, table and what the log cannot tell.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::catalog::{Catalog, SiteTrace};
use muster_types::plan::{BaseInput, ChangesInput, TableInput};
use muster_types::segment::{FrameKind, LogFrame, TableEvent, TableEventKind};
use muster_types::snapshot::{Chunk, ObjectInfo, TableSlice};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Incarnation, Kind, ShardName, SiteId, SnapshotId};

use crate::index::{CatalogIndex, IncarnationIndex, TableRef};

/// Why a table's rows at a recovery point cannot be told from the repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Not in the catalog.
    #[error("the catalog holds no incarnation {incarnation} of shard {shard}")]
    UnknownHistory {
        /// The shard.
        shard: ShardName,
        /// The incarnation.
        incarnation: String,
    },
    /// No snapshot below the point.
    #[error("no snapshot lies at or before position {} ({})", boundary.position, boundary.at)]
    MissingSnapshot {
        /// The point.
        boundary: Boundary,
    },
    /// The only snapshot below the point was taken inside a frame of changes.
    #[error("the snapshot at position {} lies inside a frame of changes to table {table}, and no earlier one is left", snapshot.position)]
    SplitFrame {
        /// The table.
        table: String,
        /// The snapshot.
        snapshot: Boundary,
    },
    /// Changes before and after a truncation share a frame.
    #[error("changes to table {table} before and after its truncation at {at} stand in one frame")]
    SplitTruncation {
        /// The table.
        table: String,
        /// The truncation.
        at: muster_types::Timestamp,
    },
    /// Rows of one definition, changes of another.
    #[error("the definition of table {table} changed before {boundary_at} and the table was not read again")]
    DefinitionChanged {
        /// The table.
        table: String,
        /// The point.
        boundary_at: muster_types::Timestamp,
    },
    /// An index of the catalog points nowhere.
    #[error("the catalog is damaged: {0}")]
    Damaged(String),
}

/// Where a table's rows start from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Base<'a> {
    /// No rows.
    #[default]
    Empty,
    /// A slice of snapshot number `.0`.
    Slice(u32, &'a TableSlice),
    /// A whole reading in segment number `.0`.
    Reread(u32, &'a LogFrame),
}

impl Base<'_> {
    fn chunks(&self) -> &[Chunk] {
        match self {
            Self::Empty => &[],
            Self::Slice(_, slice) => &slice.chunks,
            Self::Reread(_, frame) => &frame.chunks,
        }
    }
}

/// One table of one site at a recovery point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableState<'a> {
    /// Where the rows start from.
    pub base: Base<'a>,
    /// Frames of changes behind it, by segment number.
    pub changes: Vec<(u32, &'a LogFrame)>,
    /// The definition that all of them have; none without base and changes.
    version: Option<u32>,
}

impl TableState<'_> {
    /// Rows at the point, by the counts of the index.
    pub fn rows(&self) -> u64 {
        let base: u64 = self.base.chunks().iter().map(|chunk| chunk.rows).sum();
        let inserts: u64 = self.changes.iter().map(|(_, frame)| frame.inserts).sum();
        let deletes: u64 = self.changes.iter().map(|(_, frame)| frame.deletes).sum();
        (base + inserts).saturating_sub(deletes)
    }

    /// Every chunk to read.
    fn all_chunks(&self) -> impl Iterator<Item = &Chunk> {
        let changes = self.changes.iter().flat_map(|(_, frame)| &frame.chunks);
        self.base.chunks().iter().chain(changes)
    }
}

/// All tables of one site in one incarnation at a recovery point, by table number; untouched ones are absent.
pub type SiteTables<'a> = BTreeMap<u32, Result<TableState<'a>, InputError>>;

/// The state of every table of the site at `boundary`.
///
/// # Errors
/// [`InputError::MissingSnapshot`] and [`InputError::Damaged`]; what concerns one table stands in its entry.
pub fn site_tables<'a>(
    index: &IncarnationIndex<'a>,
    trace: &'a SiteTrace,
    boundary: Boundary,
) -> Result<SiteTables<'a>, InputError> {
    let snapshot = index.snapshot_below(boundary).ok_or(InputError::MissingSnapshot { boundary })?;
    let mut states = Walk { index, trace, boundary, snapshot, only: None }.run()?;
    let split: Vec<u32> =
        states.iter().filter(|(_, state)| is_split(state)).map(|(table, _)| *table).collect();
    for table in split {
        for earlier in (0..snapshot).rev() {
            let walk = Walk { index, trace, boundary, snapshot: earlier, only: Some(table) };
            let state = walk.run()?.remove(&table).unwrap_or_else(|| Ok(TableState::default()));
            let done = !is_split(&state);
            states.insert(table, state);
            if done {
                break;
            }
        }
    }
    Ok(states)
}

fn is_split(state: &Result<TableState<'_>, InputError>) -> bool {
    matches!(state, Err(InputError::SplitFrame { .. }))
}

/// One pass from a snapshot to a recovery point.
struct Walk<'i, 'a> {
    index: &'i IncarnationIndex<'a>,
    trace: &'a SiteTrace,
    boundary: Boundary,
    snapshot: usize,
    only: Option<u32>,
}

impl<'a> Walk<'_, 'a> {
    fn wanted(&self, table: u32) -> bool {
        self.only.is_none_or(|only| only == table)
    }

    fn run(&self) -> Result<SiteTables<'a>, InputError> {
        let snapshot = self.index.history.snapshots.get(self.snapshot);
        let base =
            snapshot.map(|snapshot| snapshot.boundary).ok_or_else(|| damaged("snapshot", self.snapshot))?;
        let mut states = SiteTables::new();
        for slice in self.trace.snapshots.get(&(self.snapshot as u32)).into_iter().flatten() {
            let table = lookup(&self.index.snapshot_tables, self.snapshot, slice.table)?;
            if self.wanted(table.table) {
                let base = Base::Slice(self.snapshot as u32, slice);
                let state = TableState { base, changes: Vec::new(), version: Some(table.version) };
                states.insert(table.table, Ok(state));
            }
        }
        let first = self.index.first_segment_behind(base);
        let end = self.index.first_segment_behind(self.boundary).max(first);
        let resets = self.index.resets_in(first..end);
        let mut next_reset = 0;
        let frames = self.trace.segments.range(first as u32..end as u32);
        for (&segment, frames) in frames {
            while resets.get(next_reset).is_some_and(|reset| reset.0 < segment) {
                self.reset(&mut states, &resets[next_reset]);
                next_reset += 1;
            }
            let here = resets[next_reset..].iter().take_while(|reset| reset.0 == segment).count();
            let resets_here = &resets[next_reset..next_reset + here];
            next_reset += here;
            self.segment(&mut states, segment, frames, resets_here, base)?;
        }
        for reset in &resets[next_reset..] {
            self.reset(&mut states, reset);
        }
        Ok(states)
    }

    fn reset(&self, states: &mut SiteTables<'a>, reset: &(u32, u32, &TableEvent)) {
        if self.wanted(reset.1) {
            states.remove(&reset.1);
        }
    }

    fn segment(
        &self,
        states: &mut SiteTables<'a>,
        segment: u32,
        frames: &'a [LogFrame],
        resets: &[(u32, u32, &TableEvent)],
        base: Boundary,
    ) -> Result<(), InputError> {
        for reset in resets {
            self.reset(states, reset);
        }
        for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Rows) {
            let table = lookup(&self.index.segment_tables, segment as usize, frame.table)?;
            if self.wanted(table.table) {
                let base = Base::Reread(segment, frame);
                let state = TableState { base, changes: Vec::new(), version: Some(table.version) };
                states.insert(table.table, Ok(state));
            }
        }
        // Frames of one table differ in their mark; the fold merges them by position, the order here is by their start.
        let mut changes: Vec<&LogFrame> =
            frames.iter().filter(|frame| frame.kind == FrameKind::Changes).collect();
        changes.sort_by_key(|frame| frame.span.map(|(first, _)| first.key));
        for frame in changes {
            let table = lookup(&self.index.segment_tables, segment as usize, frame.table)?;
            if self.wanted(table.table) {
                self.changes(states, segment, frame, table, resets, base);
            }
        }
        Ok(())
    }

    fn changes(
        &self,
        states: &mut SiteTables<'a>,
        segment: u32,
        frame: &'a LogFrame,
        table: TableRef,
        resets: &[(u32, u32, &TableEvent)],
        base: Boundary,
    ) {
        let state = states.entry(table.table).or_insert_with(|| Ok(TableState::default()));
        let Ok(known) = state else { return };
        if matches!(known.base, Base::Reread(read, _) if read == segment) {
            return;
        }
        let name = || self.index.names[table.table as usize].to_owned();
        match self.place(frame, table.table, resets, base) {
            Place::Before => {}
            Place::SplitBySnapshot => *state = Err(InputError::SplitFrame { table: name(), snapshot: base }),
            Place::SplitByTruncation(at) => *state = Err(InputError::SplitTruncation { table: name(), at }),
            Place::Behind if known.version.is_some_and(|version| version != table.version) => {
                *state = Err(InputError::DefinitionChanged { table: name(), boundary_at: self.boundary.at });
            }
            Place::Behind => {
                known.version = Some(table.version);
                known.changes.push((segment, frame));
            }
        }
    }

    /// Where a frame of changes lies, seen from its base.
    fn place(
        &self,
        frame: &LogFrame,
        table: u32,
        resets: &[(u32, u32, &TableEvent)],
        base: Boundary,
    ) -> Place {
        let Some((first, last)) = frame.span else { return Place::Behind };
        if last.key.position <= base.position {
            return Place::Before;
        }
        let reset = resets.iter().rev().find(|reset| reset.1 == table).map(|reset| reset.2);
        match reset.map(|event| (event.event, event.at)) {
            // The whole reading, or the end of the table, stands at the segment's boundary, behind every change in it.
            Some((TableEventKind::Reread | TableEventKind::Dropped, _)) => Place::Before,
            Some((TableEventKind::Truncated, at)) if last.at <= at => Place::Before,
            Some((TableEventKind::Truncated, at)) if first.at <= at => Place::SplitByTruncation(at),
            _ if first.key.position <= base.position => Place::SplitBySnapshot,
            _ => Place::Behind,
        }
    }
}

/// See [`Walk::place`].
enum Place {
    Before,
    Behind,
    SplitBySnapshot,
    SplitByTruncation(muster_types::Timestamp),
}

fn damaged(what: &str, number: usize) -> InputError {
    InputError::Damaged(format!("there is no {what} {number}"))
}

fn lookup(tables: &[Vec<TableRef>], holder: usize, table: u32) -> Result<TableRef, InputError> {
    let found = tables.get(holder).and_then(|tables| tables.get(table as usize));
    found.copied().ok_or_else(|| damaged("table", table as usize))
}

/// Everything that is read for one store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreInputs {
    /// Definitions at the recovery point, parents first; all tables of the kind, also those without rows.
    pub tables: Arc<Vec<CapturedTable>>,
    /// One per entry of `tables`, referring to it and to `objects` by index.
    pub inputs: Vec<TableInput>,
    /// Objects to read.
    pub objects: Vec<ObjectInfo>,
    /// The oldest snapshot used.
    pub snapshot: Option<SnapshotId>,
    /// Rows by the counts of the index.
    pub rows: u64,
    /// Compressed bytes to read.
    pub bytes: u64,
    /// The same as text.
    pub raw_bytes: u64,
}

/// What to read for `site`'s rows of `kind` at a recovery point of a shard.
///
/// # Errors
/// [`InputError`].
pub fn store_inputs(
    catalog: &Catalog,
    site: &SiteId,
    kind: &Kind,
    shard: &ShardName,
    incarnation: &Incarnation,
    boundary: Boundary,
) -> Result<StoreInputs, InputError> {
    store_inputs_indexed(&CatalogIndex::new(catalog), site, kind, shard, incarnation, boundary)
}

/// As [`store_inputs`], over an index made once for many stores.
///
/// # Errors
/// [`InputError`].
pub fn store_inputs_indexed(
    index: &CatalogIndex<'_>,
    site: &SiteId,
    kind: &Kind,
    shard: &ShardName,
    incarnation: &Incarnation,
    boundary: Boundary,
) -> Result<StoreInputs, InputError> {
    let unknown =
        || InputError::UnknownHistory { shard: shard.clone(), incarnation: incarnation.to_string() };
    let histories = index.shard(shard).ok_or_else(unknown)?;
    let number = histories.number(incarnation).ok_or_else(unknown)?;
    let history = &histories.incarnations[number];
    let traces = index.catalog.sites.get(site).map_or(&[][..], |site| &site.traces);
    let trace = traces.iter().find(|trace| &trace.shard == shard && trace.incarnation as usize == number);
    let states = match trace {
        Some(trace) => site_tables(history, trace, boundary)?,
        None => SiteTables::new(),
    };
    let mut objects = Objects::default();
    let mut inputs = assemble(history, &states, kind, boundary, &mut objects)?;
    inputs.objects = objects.list;
    Ok(inputs)
}

/// Objects of a plan, each once.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_key: BTreeMap<String, u32>,
    pub(crate) list: Vec<ObjectInfo>,
}

impl Objects {
    fn number(&mut self, object: &ObjectInfo) -> u32 {
        if let Some(number) = self.by_key.get(object.key.as_str()) {
            return *number;
        }
        let number = self.list.len() as u32;
        self.by_key.insert(object.key.clone(), number);
        self.list.push(object.clone());
        number
    }
}

/// The inputs of one kind from the states of a site's tables; `objects` of the result stays empty, `inputs` refer
/// to the given list.
pub(crate) fn assemble(
    index: &IncarnationIndex<'_>,
    states: &SiteTables<'_>,
    kind: &Kind,
    boundary: Boundary,
    objects: &mut Objects,
) -> Result<StoreInputs, InputError> {
    let mut store = StoreInputs::default();
    let Some(schema) = index.schema_at(boundary) else { return Ok(store) };
    let (Some(tables), Some(refs)) = (schema.kinds.get(kind), schema.refs.get(kind)) else {
        return Ok(store);
    };
    store.tables = Arc::clone(tables);
    let mut oldest: Option<u32> = None;
    for (number, table) in refs.iter().enumerate() {
        let mut input = TableInput { table: number as u32, base: None, changes: Vec::new() };
        if let Some(state) = states.get(&table.table) {
            let state = state.as_ref().map_err(Clone::clone)?;
            if state.version.is_some_and(|version| version != table.version) {
                let table = index.names[table.table as usize].to_owned();
                return Err(InputError::DefinitionChanged { table, boundary_at: boundary.at });
            }
            fill(index, state, &mut input, objects)?;
            store.rows += state.rows();
            store.bytes += state.all_chunks().map(|chunk| chunk.bytes).sum::<u64>();
            store.raw_bytes += state.all_chunks().map(|chunk| chunk.raw_bytes).sum::<u64>();
            if let Base::Slice(snapshot, _) = state.base {
                oldest = Some(oldest.map_or(snapshot, |oldest| oldest.min(snapshot)));
            }
        }
        store.inputs.push(input);
    }
    store.snapshot = oldest.map(|number| index.history.snapshots[number as usize].snapshot.clone());
    Ok(store)
}

fn fill(
    index: &IncarnationIndex<'_>,
    state: &TableState<'_>,
    input: &mut TableInput,
    objects: &mut Objects,
) -> Result<(), InputError> {
    input.base = match state.base {
        Base::Empty => None,
        Base::Slice(snapshot, slice) => {
            let packs = &index.history.snapshots[snapshot as usize].packs;
            let pack = packs.get(slice.pack as usize).ok_or_else(|| damaged("pack", slice.pack as usize))?;
            let object = objects.number(pack);
            Some(BaseInput { object, chunks: slice.chunks.clone(), rows_digest: slice.rows_digest })
        }
        Base::Reread(segment, frame) => {
            let object = objects.number(segment_data(index, segment)?);
            let missing =
                || InputError::Damaged(format!("a whole reading in segment {segment} has no digest"));
            let rows_digest = frame.rows_digest.ok_or_else(missing)?;
            Some(BaseInput { object, chunks: frame.chunks.clone(), rows_digest })
        }
    };
    for (segment, frame) in &state.changes {
        let object = objects.number(segment_data(index, *segment)?);
        input.changes.push(ChangesInput { object, chunks: frame.chunks.clone() });
    }
    Ok(())
}

fn segment_data<'a>(index: &IncarnationIndex<'a>, segment: u32) -> Result<&'a ObjectInfo, InputError> {
    let found = index.history.segments.get(segment as usize);
    let missing = || InputError::Damaged(format!("segment {segment} has frames and no data object"));
    found.and_then(|segment| segment.data.as_ref()).ok_or_else(missing)
}
