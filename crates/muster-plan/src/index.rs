//! Lookups over a catalog, built once, so that planning many sites never scans a shard's history again.
//!
//! [`CatalogIndex`] holds a [`ShardIndex`] per shard and each of those an [`IncarnationIndex`] per unbroken history:
//! its recovery points in order, which of them can be restored (a snapshot below, no hole between), the tables with
//! their definitions at every point, and the events that reset a whole table.
//!
//! # Invariants
//! - Everything is ordered by [`Boundary`], position first: time only breaks ties of equal positions.
//! - Tables are numbered per incarnation; a definition that changed has a version of its own.
//!
//! # Not here
//! Anything of a single site: see [`crate::inputs`].

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::catalog::{Catalog, IncarnationHistory, ShardHistory};
use muster_types::segment::{Gap, TableEvent, TableEventKind};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Incarnation, Kind, Position, ShardName, Timestamp};

use crate::order::parents_first;

/// A table of one incarnation, in one of its definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRef {
    /// Number of the table's name.
    pub table: u32,
    /// Number of the definition.
    pub version: u32,
}

/// The tables of a shard as they were from one recovery point on.
#[derive(Debug, Default)]
pub struct Schema {
    /// Number in the incarnation, from 0.
    pub number: u32,
    /// By kind, parents first.
    pub kinds: BTreeMap<Kind, Arc<Vec<CapturedTable>>>,
    /// For each table in `kinds`, its number and version, in the same order.
    pub refs: BTreeMap<Kind, Vec<TableRef>>,
}

/// Lookups over a whole catalog.
#[derive(Debug)]
pub struct CatalogIndex<'a> {
    /// What it indexes.
    pub catalog: &'a Catalog,
    shards: BTreeMap<&'a ShardName, ShardIndex<'a>>,
}

impl<'a> CatalogIndex<'a> {
    /// Indexes `catalog`: costs the number of snapshots, segments and their tables, not the number of sites.
    pub fn new(catalog: &'a Catalog) -> Self {
        let shards = catalog.shards.iter().map(|(name, history)| (name, ShardIndex::new(history))).collect();
        Self { catalog, shards }
    }

    /// One shard's index.
    pub fn shard(&self, shard: &ShardName) -> Option<&ShardIndex<'a>> {
        self.shards.get(shard)
    }
}

/// Lookups over the histories of one shard.
#[derive(Debug)]
pub struct ShardIndex<'a> {
    /// Oldest first, as in the catalog.
    pub incarnations: Vec<IncarnationIndex<'a>>,
}

impl<'a> ShardIndex<'a> {
    /// Indexes a shard's histories.
    pub fn new(history: &'a ShardHistory) -> Self {
        Self { incarnations: history.incarnations.iter().map(IncarnationIndex::new).collect() }
    }

    /// The index of an incarnation by name.
    pub fn number(&self, incarnation: &Incarnation) -> Option<usize> {
        self.incarnations.iter().position(|candidate| &candidate.history.incarnation == incarnation)
    }

    /// Every recorded gap, over all incarnations.
    pub fn gaps(&self) -> impl Iterator<Item = &'a Gap> + '_ {
        self.incarnations.iter().flat_map(|incarnation| incarnation.history.gaps.iter())
    }
}

/// A stretch `(after, upto]` of positions whose changes are not in the log.
#[derive(Clone, Copy, Debug)]
struct Hole {
    after: Position,
    upto: Position,
}

/// Lookups over one unbroken history.
#[derive(Debug)]
pub struct IncarnationIndex<'a> {
    /// What it indexes.
    pub history: &'a IncarnationHistory,
    /// Every recovery point, ascending.
    pub boundaries: Vec<Boundary>,
    /// Those of `boundaries` that can be restored, ascending.
    pub usable: Vec<Boundary>,
    /// `earliest_from[i]`: the earliest stamp among `usable[i..]`; ascending, for a binary search by time.
    earliest_from: Vec<Timestamp>,
    /// The latest stamp of all recovery points.
    latest: Option<Timestamp>,
    /// By snapshot: its tables.
    pub snapshot_tables: Vec<Vec<TableRef>>,
    /// By segment: its tables.
    pub segment_tables: Vec<Vec<TableRef>>,
    /// Names by number.
    pub names: Vec<&'a str>,
    /// Whole-table events that reset a table, by segment: (segment, table, event).
    pub resets: Vec<(u32, u32, &'a TableEvent)>,
    schemas: Vec<(Boundary, Schema)>,
}

impl<'a> IncarnationIndex<'a> {
    fn new(history: &'a IncarnationHistory) -> Self {
        let boundaries = history.boundaries();
        let usable = usable(history, &boundaries);
        let mut earliest_from: Vec<_> = usable.iter().map(|boundary| boundary.at).collect();
        for i in (1..earliest_from.len()).rev() {
            earliest_from[i - 1] = earliest_from[i - 1].min(earliest_from[i]);
        }
        let mut tables = TableNumbers::default();
        tables.walk(history);
        let latest = boundaries.iter().map(|boundary| boundary.at).max();
        Self {
            history,
            latest,
            boundaries,
            usable,
            earliest_from,
            snapshot_tables: tables.snapshots,
            segment_tables: tables.segments,
            names: tables.names,
            resets: tables.resets,
            schemas: tables.schemas,
        }
    }

    /// The last restorable recovery point stamped at or before `at`.
    pub fn last_at_or_before(&self, at: Timestamp) -> Option<Boundary> {
        let count = self.earliest_from.partition_point(|earliest| *earliest <= at);
        count.checked_sub(1).map(|last| self.usable[last])
    }

    /// The last restorable recovery point below `position`.
    pub fn last_below(&self, position: Position) -> Option<Boundary> {
        let count = self.usable.partition_point(|boundary| boundary.position < position);
        count.checked_sub(1).map(|last| self.usable[last])
    }

    /// The log reaches `at`.
    pub fn covers(&self, at: Timestamp) -> bool {
        self.latest.is_some_and(|latest| latest >= at)
    }

    /// The recovery point that follows `boundary` in the log, restorable or not.
    pub fn next_after(&self, boundary: Boundary) -> Option<Boundary> {
        self.boundaries.get(self.boundaries.partition_point(|candidate| *candidate <= boundary)).copied()
    }

    /// The number of the last snapshot at or before `boundary`.
    pub fn snapshot_below(&self, boundary: Boundary) -> Option<usize> {
        let count = self.history.snapshots.partition_point(|snapshot| snapshot.boundary <= boundary);
        count.checked_sub(1)
    }

    /// The number of the first segment that ends behind `boundary`.
    pub fn first_segment_behind(&self, boundary: Boundary) -> usize {
        self.history.segments.partition_point(|segment| segment.boundary <= boundary)
    }

    /// The tables as they were at `boundary`.
    pub fn schema_at(&self, boundary: Boundary) -> Option<&Schema> {
        let count = self.schemas.partition_point(|(from, _)| *from <= boundary);
        count.checked_sub(1).map(|last| &self.schemas[last].1)
    }

    /// Resets in segments `range`, ascending.
    pub fn resets_in(&self, range: std::ops::Range<usize>) -> &[(u32, u32, &'a TableEvent)] {
        let start = self.resets.partition_point(|(segment, ..)| (*segment as usize) < range.start);
        let end = self.resets.partition_point(|(segment, ..)| (*segment as usize) < range.end);
        &self.resets[start..end.max(start)]
    }
}

/// A recovery point can be restored if a snapshot lies at or before it and no hole between the two.
fn usable(history: &IncarnationHistory, boundaries: &[Boundary]) -> Vec<Boundary> {
    let holes = holes(history, boundaries);
    let mut usable = Vec::with_capacity(boundaries.len());
    let mut next_snapshot = 0;
    let mut base: Option<Boundary> = None;
    for boundary in boundaries {
        while history.snapshots.get(next_snapshot).is_some_and(|snapshot| snapshot.boundary <= *boundary) {
            base = Some(history.snapshots[next_snapshot].boundary);
            next_snapshot += 1;
        }
        let Some(base) = base else { continue };
        // A snapshot inside a hole is a base of its own: nothing lies between it and itself.
        let crossed =
            holes.iter().any(|hole| hole.after.max(base.position) < hole.upto.min(boundary.position));
        if !crossed {
            usable.push(*boundary);
        }
    }
    usable
}

/// Recorded gaps, and places where one segment does not continue from its predecessor.
fn holes(history: &IncarnationHistory, boundaries: &[Boundary]) -> Vec<Hole> {
    let here = |boundary: &Boundary| boundaries.binary_search(boundary).is_ok();
    let mut holes = Vec::new();
    // A gap may start or end at a recovery point of another incarnation, whose positions mean nothing here.
    for gap in history.gaps.iter().filter(|gap| here(&gap.after)) {
        let end = gap.before.filter(here).map_or(Position(u64::MAX), |before| before.position);
        holes.push(Hole { after: gap.after.position, upto: end });
    }
    let mut reached = Position(0);
    for segment in &history.segments {
        holes.push(Hole { after: reached, upto: segment.after.position });
        reached = reached.max(segment.boundary.position);
    }
    holes.retain(|hole| hole.after < hole.upto);
    holes
}

/// Numbers the tables and their definitions in the order of history.
#[derive(Default)]
struct TableNumbers<'a> {
    names: Vec<&'a str>,
    by_name: BTreeMap<&'a str, u32>,
    /// By table: its definitions so far, each once.
    versions: Vec<Vec<&'a CapturedTable>>,
    /// The list of the last segment, to know it again where the next one shares it.
    last_list: Option<(&'a [CapturedTable], Vec<TableRef>)>,
    /// Tables there are now: the version of each.
    current: BTreeMap<u32, u32>,
    snapshots: Vec<Vec<TableRef>>,
    segments: Vec<Vec<TableRef>>,
    resets: Vec<(u32, u32, &'a TableEvent)>,
    schemas: Vec<(Boundary, Schema)>,
}

impl<'a> TableNumbers<'a> {
    fn walk(&mut self, history: &'a IncarnationHistory) {
        let mut snapshots = history.snapshots.iter().peekable();
        let mut segments = history.segments.iter().enumerate().peekable();
        loop {
            let snapshot_at = snapshots.peek().map(|snapshot| snapshot.boundary);
            let segment_at = segments.peek().map(|(_, segment)| segment.boundary);
            // At one and the same recovery point the segment comes first: the snapshot holds what it led to.
            let take_segment = match (snapshot_at, segment_at) {
                (None, None) => break,
                (Some(snapshot), Some(segment)) => segment <= snapshot,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            if take_segment {
                let Some((number, segment)) = segments.next() else { break };
                self.segment(number, segment);
            } else if let Some(snapshot) = snapshots.next() {
                self.snapshot(snapshot);
            }
        }
    }

    fn number(&mut self, name: &'a str) -> u32 {
        let next = self.names.len() as u32;
        let number = *self.by_name.entry(name).or_insert(next);
        if number == next {
            self.names.push(name);
            self.versions.push(Vec::new());
        }
        number
    }

    fn table(&mut self, table: &'a CapturedTable) -> TableRef {
        let number = self.number(&table.def.name);
        let known = &mut self.versions[number as usize];
        let version = known.iter().rposition(|candidate| *candidate == table).unwrap_or_else(|| {
            known.push(table);
            known.len() - 1
        });
        TableRef { table: number, version: version as u32 }
    }

    fn snapshot(&mut self, snapshot: &'a muster_types::catalog::SnapshotInfo) {
        let refs: Vec<TableRef> = snapshot.tables.iter().map(|table| self.table(table)).collect();
        let tables = refs.iter().map(|table| (table.table, table.version)).collect();
        self.snapshots.push(refs);
        self.now(snapshot.boundary, tables);
    }

    fn segment(&mut self, number: usize, segment: &'a muster_types::catalog::SegmentInfo) {
        let shared = self.last_list.take().filter(|(list, _)| std::ptr::eq(*list, &*segment.tables));
        let again = shared.is_some();
        let refs = match shared {
            Some((_, refs)) => refs,
            None => segment.tables.iter().map(|table| self.table(table)).collect(),
        };
        self.last_list = Some((&segment.tables, refs.clone()));
        // What the segment before knew already, without an event since, is how things are.
        if again && segment.table_events.is_empty() && refs.iter().all(|table| self.is_current(*table)) {
            self.segments.push(refs);
            return;
        }
        let mut tables = self.current.clone();
        for event in &segment.table_events {
            if event.event == TableEventKind::Undeclared {
                continue;
            }
            let table = self.number(&event.table);
            self.resets.push((number as u32, table, event));
            if event.event == TableEventKind::Dropped {
                tables.remove(&table);
            }
        }
        let gone = |table: u32| {
            let mut events =
                segment.table_events.iter().rev().filter(|event| event.table == self.names[table as usize]);
            events.next().is_some_and(|last| last.event == TableEventKind::Dropped)
        };
        tables
            .extend(refs.iter().filter(|table| !gone(table.table)).map(|table| (table.table, table.version)));
        self.segments.push(refs);
        self.now(segment.boundary, tables);
    }

    fn is_current(&self, table: TableRef) -> bool {
        self.current.get(&table.table) == Some(&table.version)
    }

    /// From `boundary` on there are these tables.
    fn now(&mut self, boundary: Boundary, tables: BTreeMap<u32, u32>) {
        if tables == self.current && !self.schemas.is_empty() {
            return;
        }
        self.current = tables;
        let mut by_kind: BTreeMap<Kind, Vec<(TableRef, &'a CapturedTable)>> = BTreeMap::new();
        for (&table, &version) in &self.current {
            let definition = self.versions[table as usize][version as usize];
            let entry = (TableRef { table, version }, definition);
            by_kind.entry(definition.kind.clone()).or_default().push(entry);
        }
        let mut schema = Schema { number: self.schemas.len() as u32, ..Schema::default() };
        for (kind, tables) in by_kind {
            let tables = parents_first(tables);
            let refs = tables.iter().map(|(table, _)| *table).collect();
            let definitions = tables.into_iter().map(|(_, definition)| definition.clone()).collect();
            schema.kinds.insert(kind.clone(), Arc::new(definitions));
            schema.refs.insert(kind, refs);
        }
        self.schemas.push((boundary, schema));
    }
}
