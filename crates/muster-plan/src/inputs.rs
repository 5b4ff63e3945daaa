//! What to read for a site's rows at a recovery point.
//!
//! Per table: the base (the latest snapshot slice, or a later whole reading of the table, which replaces everything
//! known of it) and the frames of changes behind the base up to the point, in order. A table that was dropped or
//! truncated starts empty there. [`site_tables`] gives that as references into the catalog, for counting;
//! [`store_inputs`] turns one kind of it into [`TableInput`]s, for plans and for looking at rows.
//!
//! # Invariants
//! - Of a frame that reaches across its base, a truncation or the recovery point, the part between counts, cut by
//!   position. Its share of the counts is an estimate then.
//! - In a log without commits, a table whose frame reaches across the snapshot starts from an earlier one, if there is
//!   one, so that its counts are exact.
//! - Base, changes and definition of a table agree in the shape of its rows; one that changes without the table being
//!   read again is an error.
//!
//! # Errors
//! [`InputError`] names shard, table and what the log cannot tell.

mod assemble;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::catalog::{Catalog, SiteTrace};
use muster_types::plan::{ChangesInput, TableInput};
use muster_types::segment::{ChangeStamp, FrameKind, LogFrame, TableEvent, TableEventKind};
use muster_types::snapshot::{Chunk, ObjectInfo, TableSlice};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Incarnation, Kind, Position, ShardName, SiteId, SnapshotId, Timestamp};

use crate::index::{CatalogIndex, IncarnationIndex, TableRef, Uncaptured};

pub(crate) use assemble::{Objects, assemble, fill};

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
    /// Changes before and after a truncation whose position is unknown share a frame.
    #[error("changes to table {table} before and after its truncation at {at} stand in one frame")]
    SplitTruncation {
        /// The table.
        table: String,
        /// The truncation.
        at: Timestamp,
    },
    /// Rows of one shape, changes of another.
    #[error("the definition of table {table} changed before {boundary_at} and the table was not read again")]
    DefinitionChanged {
        /// The table.
        table: String,
        /// The point.
        boundary_at: Timestamp,
    },
    /// A table that was captured before was not when the point was reached.
    #[error(
        "table {table} was not captured behind {} (position {}), so that its rows at {boundary_at} are not known: {reason}",
        from.at, from.position
    )]
    Uncaptured {
        /// The table.
        table: String,
        /// The last place at which its rows are known.
        from: Boundary,
        /// The point.
        boundary_at: Timestamp,
        /// Why, as capture says it.
        reason: String,
    },
    /// The list of the site's slices could not be read.
    #[error("what the snapshot of {} holds of the site cannot be told: its list is missing or damaged", at)]
    UnreadSnapshot {
        /// When the snapshot was taken.
        at: Timestamp,
    },
    /// An index of the catalog points nowhere.
    #[error("the catalog is damaged: {0}")]
    Damaged(String),
}

impl InputError {
    pub(crate) fn uncaptured(
        index: &IncarnationIndex<'_>,
        table: &Uncaptured<'_>,
        boundary: Boundary,
    ) -> Self {
        Self::Uncaptured {
            table: index.names[table.table as usize].to_owned(),
            from: table.from,
            boundary_at: boundary.at,
            reason: table.reason.to_owned(),
        }
    }

    /// The way out.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Uncaptured { table, from, .. } => format!(
                "choose a target at or before {}; for later ones let {table} be captured again (`muster check` names the \
                 obstacle), or, if it is not wanted any more, take it out of the topology and take a snapshot",
                from.at
            ),
            Self::UnreadSnapshot { .. } => {
                "bring the object back that the warning names, and plan again; or choose a target at or \
                 after the next snapshot of the shard"
                    .to_owned()
            }
            _ => "choose a target at or after the next snapshot of the shard".to_owned(),
        }
    }
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

/// A frame of changes, and which of them count: those behind `after` and not behind `upto`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FramePart<'a> {
    /// The segment's number.
    pub segment: u32,
    /// The frame.
    pub frame: &'a LogFrame,
    /// See [`ChangesInput::after`].
    pub after: Option<Position>,
    /// See [`ChangesInput::upto`].
    pub upto: Option<Position>,
}

impl<'a> FramePart<'a> {
    /// What of `frame` lies behind `floor` and not behind `ceiling`; none if nothing does.
    pub(crate) fn new(segment: u32, frame: &'a LogFrame, floor: Position, ceiling: Position) -> Option<Self> {
        let mut part = Self { segment, frame, after: None, upto: None };
        let Some((first, last)) = frame.span else { return Some(part) };
        if last.key.position <= floor || first.key.position > ceiling {
            return None;
        }
        part.after = Some(floor).filter(|floor| first.key.position <= *floor);
        part.upto = Some(ceiling).filter(|ceiling| last.key.position > *ceiling);
        Some(part)
    }

    /// What to read of it, from object number `object`.
    fn input(&self, object: u32) -> ChangesInput {
        let within = self.frame.place.as_ref().and_then(|place| place.within);
        let (start, end) = (within.map(|within| within.after), within.map(|within| within.upto));
        ChangesInput {
            object,
            chunks: self.frame.chunks.clone(),
            after: self.after.max(start),
            upto: match (self.upto, end) {
                (Some(upto), Some(end)) => Some(upto.min(end)),
                (upto, end) => upto.or(end),
            },
        }
    }

    /// Rows inserted, and whether that is exact.
    pub(crate) fn inserts(&self) -> (u64, bool) {
        self.share(self.frame.inserts, self.frame.span)
    }

    /// Rows deleted, and whether that is exact.
    pub(crate) fn deletes(&self) -> (u64, bool) {
        self.share(self.frame.deletes, self.frame.deletions)
    }

    /// The share of `count` changes, spread over `span`.
    fn share(&self, count: u64, span: Option<(ChangeStamp, ChangeStamp)>) -> (u64, bool) {
        let Some((first, last)) = span.map(|(first, last)| (first.key.position, last.key.position)) else {
            return (count, true);
        };
        let from = self.after.unwrap_or_default().max(first);
        let to = self.upto.unwrap_or(last).min(last);
        let whole = self.after.is_none_or(|after| after < first) && to == last;
        if count == 0 || whole {
            return (count, true);
        }
        if to < first || self.after.is_some_and(|after| after >= last) {
            return (0, true);
        }
        let share = u128::from(count) * u128::from(to.0.saturating_sub(from.0))
            / u128::from((last.0 - first.0).max(1));
        (u64::try_from(share).unwrap_or(count), false)
    }
}

/// One table of one site at a recovery point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableState<'a> {
    /// Where the rows start from.
    pub base: Base<'a>,
    /// Changes behind it.
    pub changes: Vec<FramePart<'a>>,
    /// The shape that all of them have; none without base and changes.
    version: Option<u32>,
    /// Rows as an earlier base has them to be, where counting from this one gives an estimate.
    counted: Option<u64>,
}

impl TableState<'_> {
    /// Rows at the point, by the counts of the index. Where a frame is cut, an estimate, and never none: only reading
    /// can tell.
    pub fn rows(&self) -> u64 {
        let (rows, exact) = self.count();
        if exact { rows } else { rows.max(1) }
    }

    /// Base and changes have this shape.
    pub(crate) fn is_of(&self, version: u32) -> bool {
        self.version.is_none_or(|found| found == version)
    }

    fn count(&self) -> (u64, bool) {
        if let Some(counted) = self.counted {
            return (counted, true);
        }
        let base: u64 = self.base.chunks().iter().map(|chunk| chunk.rows).sum();
        let (mut rows, mut deletes, mut exact) = (base, 0, true);
        for part in &self.changes {
            let (inserted, exactly_inserted) = part.inserts();
            let (deleted, exactly_deleted) = part.deletes();
            rows += inserted;
            deletes += deleted;
            exact &= exactly_inserted && exactly_deleted;
        }
        (rows.saturating_sub(deletes), exact)
    }

    /// A frame reaches across `position`, which is that of its base.
    fn is_split_at(&self, position: Position) -> bool {
        self.changes.iter().any(|part| part.after == Some(position))
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
    if trace.unread.contains(&(snapshot as u32)) {
        return Err(InputError::UnreadSnapshot { at: index.history.snapshots[snapshot].boundary.at });
    }
    let mut states = Walk { index, trace, boundary, snapshot, only: None }.run()?;
    let base_of = |snapshot: usize| index.history.snapshots[snapshot].boundary.position;
    let split = |state: &TableState<'a>| state.is_split_at(base_of(snapshot)) && !state.count().1;
    for (&table, state) in &mut states {
        let Ok(state) = state else { continue };
        for earlier in (0..snapshot).rev().take_while(|_| split(state)) {
            if trace.unread.contains(&(earlier as u32)) {
                break;
            }
            let walk = Walk { index, trace, boundary, snapshot: earlier, only: Some(table) };
            let Ok(found) = walk.run()?.remove(&table).unwrap_or_else(|| Ok(TableState::default())) else {
                break;
            };
            if found.is_split_at(base_of(earlier)) {
                continue;
            }
            if index.has_commits {
                state.counted = Some(found.count()).filter(|(_, exact)| *exact).map(|(rows, _)| rows);
            } else {
                *state = found;
            }
            break;
        }
    }
    Ok(states)
}

/// One pass from a snapshot to a recovery point.
struct Walk<'i, 'a> {
    index: &'i IncarnationIndex<'a>,
    trace: &'a SiteTrace,
    boundary: Boundary,
    snapshot: usize,
    only: Option<u32>,
}

/// What is known so far.
#[derive(Default)]
struct Known<'a> {
    states: SiteTables<'a>,
    /// Changes up to here are part of every base.
    base: Position,
    /// By table that went as a whole later: changes up to here do not count.
    floors: BTreeMap<u32, Position>,
}

impl<'a> Walk<'_, 'a> {
    fn wanted(&self, table: u32) -> bool {
        self.only.is_none_or(|only| only == table)
    }

    fn run(&self) -> Result<SiteTables<'a>, InputError> {
        let snapshot = self.index.history.snapshots.get(self.snapshot);
        let base =
            snapshot.map(|snapshot| snapshot.boundary).ok_or_else(|| damaged("snapshot", self.snapshot))?;
        let mut known = Known { base: base.position, ..Known::default() };
        for slice in self.trace.snapshots.get(&(self.snapshot as u32)).into_iter().flatten() {
            let table = lookup(&self.index.snapshot_tables, self.snapshot, slice.table)?;
            if self.wanted(table.table) {
                let base = Base::Slice(self.snapshot as u32, slice);
                let state = TableState { base, version: Some(table.version), ..TableState::default() };
                known.states.insert(table.table, Ok(state));
            }
        }
        let first = self.index.first_segment_behind(base);
        let whole = self.index.first_segment_behind(self.boundary).max(first);
        let end = self.index.split_at(self.boundary).map_or(whole, |split| whole.max(split + 1));
        let mut resets = self.index.resets_in(first..end).iter().peekable();
        for (&segment, frames) in self.trace.segments.range(first as u32..end as u32) {
            while let Some(reset) = resets.next_if(|reset| reset.0 < segment) {
                self.reset(&mut known, reset);
            }
            let mut here = Vec::new();
            while let Some(reset) = resets.next_if(|reset| reset.0 == segment) {
                if self.reset(&mut known, reset) {
                    here.push(*reset);
                }
            }
            self.segment(&mut known, segment, frames, &here)?;
        }
        for reset in resets {
            self.reset(&mut known, reset);
        }
        Ok(known.states)
    }

    /// Whether the event lies between the base and the point; what was known of the table is void then.
    fn reset(&self, known: &mut Known<'a>, reset: &(u32, u32, &TableEvent)) -> bool {
        let (segment, table, event) = *reset;
        // Whole readings stand at the end of their segment; so does what has no place of its own.
        let end = self.index.history.segments[segment as usize].boundary;
        let placed = event.position.filter(|_| event.event != TableEventKind::Reread);
        let counts = match placed {
            // The event stands right before the commit that truncates, where a base or a cut may stand, too.
            Some(position) if event.event == TableEventKind::Truncated => {
                known.base <= position && position < self.boundary.position
            }
            Some(position) => known.base < position && position <= self.boundary.position,
            None => end.position <= self.boundary.position,
        };
        if !counts || !self.wanted(table) {
            return false;
        }
        known.states.remove(&table);
        let floor = match event.event {
            TableEventKind::Truncated => placed,
            _ => Some(placed.unwrap_or(end.position)),
        };
        if let Some(floor) = floor {
            known.floors.insert(table, floor);
        }
        true
    }

    fn segment(
        &self,
        known: &mut Known<'a>,
        segment: u32,
        frames: &'a [LogFrame],
        resets: &[(u32, u32, &TableEvent)],
    ) -> Result<(), InputError> {
        let end = self.index.history.segments[segment as usize].boundary;
        for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Rows) {
            let table = lookup(&self.index.segment_tables, segment as usize, frame.table)?;
            if self.wanted(table.table) && end.position <= self.boundary.position {
                let base = Base::Reread(segment, frame);
                let state = TableState { base, version: Some(table.version), ..TableState::default() };
                known.states.insert(table.table, Ok(state));
            }
        }
        // Frames of one table differ in their mark; the fold merges them by position, the order here is by their start.
        let mut changes: Vec<&LogFrame> =
            frames.iter().filter(|frame| frame.kind == FrameKind::Changes).collect();
        changes.sort_by_key(|frame| frame.span.map(|(first, _)| first.key));
        for frame in changes {
            let table = lookup(&self.index.segment_tables, segment as usize, frame.table)?;
            if self.wanted(table.table) {
                self.changes(known, segment, frame, table, resets);
            }
        }
        Ok(())
    }

    fn changes(
        &self,
        known: &mut Known<'a>,
        segment: u32,
        frame: &'a LogFrame,
        table: TableRef,
        resets: &[(u32, u32, &TableEvent)],
    ) {
        let floor = known.floors.get(&table.table).copied().unwrap_or_default().max(known.base);
        let Some(part) = FramePart::new(segment, frame, floor, self.boundary.position) else { return };
        let state = known.states.entry(table.table).or_insert_with(|| Ok(TableState::default()));
        let Ok(found) = state else { return };
        let name = || self.index.names[table.table as usize].to_owned();
        if let Some(at) = unplaced_truncation(table.table, resets) {
            match frame.span {
                Some((_, last)) if last.at <= at => return,
                Some((first, _)) if first.at <= at => {
                    *state = Err(InputError::SplitTruncation { table: name(), at });
                    return;
                }
                _ => {}
            }
        }
        if found.version.is_some_and(|version| version != table.version) {
            *state = Err(InputError::DefinitionChanged { table: name(), boundary_at: self.boundary.at });
            return;
        }
        found.version = Some(table.version);
        found.changes.push(part);
    }
}

/// When a table was truncated, if that is its last event and its place is not known.
fn unplaced_truncation(table: u32, resets: &[(u32, u32, &TableEvent)]) -> Option<Timestamp> {
    let last = resets.iter().rev().find(|reset| reset.1 == table).map(|reset| reset.2)?;
    (last.event == TableEventKind::Truncated && last.position.is_none()).then_some(last.at)
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
    /// Rows by the counts of the index; an estimate where a frame is cut.
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
    let mut inputs = assemble(history, &states, (site, kind), boundary, &mut objects)?;
    inputs.objects = objects.list;
    Ok(inputs)
}
