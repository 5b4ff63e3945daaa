//! Lookups over a catalog, built once, so that planning many sites never scans a shard's history again.
//!
//! [`CatalogIndex`] holds a [`ShardIndex`] per shard and each of those an [`IncarnationIndex`] per unbroken history:
//! its recovery points in order, which of them can be restored (a snapshot below, no hole between), the tables with
//! their definitions at every point, and the events that reset a whole table.
//!
//! # Invariants
//! - Everything is ordered by [`Boundary`], position first: time only breaks ties of equal positions.
//! - Tables are numbered per incarnation. A version is a shape of rows: an index, a default or a constraint that comes
//!   or goes changes the definition and leaves the version.
//!
//! # Not here
//! Anything of a single site: see [`crate::inputs`].

use std::collections::BTreeMap;

use muster_types::catalog::{Catalog, IncarnationHistory, ShardHistory};
use muster_types::segment::{Gap, TableEvent, TableEventKind};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Incarnation, Kind, ShardName, Timestamp};

use crate::points::{self, Points};
use crate::schema::Schema;

/// A table of one incarnation, in one of its shapes: what was captured of one shape is read alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRef {
    /// Number of the table's name.
    pub table: u32,
    /// Number of the shape.
    pub version: u32,
}

/// A table in one of its definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) at: TableRef,
    /// Number of the definition.
    definition: u32,
}

/// Rows of both definitions are the same text, belong to the same sites and have the same keys.
fn same_shape(one: &CapturedTable, other: &CapturedTable) -> bool {
    fn columns(table: &CapturedTable) -> impl Iterator<Item = (&String, &String)> {
        table.def.stored_columns().map(|column| (&column.name, &column.declared_type))
    }
    one.kind == other.kind
        && one.owner == other.owner
        && one.def.name == other.def.name
        && one.def.key == other.def.key
        && columns(one).eq(columns(other))
}

/// A stretch of history in which a table that was captured before is not.
#[derive(Debug)]
pub struct Uncaptured<'a> {
    /// Number of the table's name.
    pub table: u32,
    /// The kind that its rows are part of.
    pub kind: &'a Kind,
    /// The last place at which its rows are known.
    pub from: Boundary,
    /// The first place at which they are known again.
    pub until: Option<Boundary>,
    /// Why, as capture says it.
    pub reason: &'a str,
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

/// Lookups over one unbroken history.
#[derive(Debug)]
pub struct IncarnationIndex<'a> {
    /// What it indexes.
    pub history: &'a IncarnationHistory,
    /// Its recovery points.
    pub points: Points,
    /// Its log tells transactions apart, at least in parts.
    pub has_commits: bool,
    /// By snapshot: its tables.
    pub snapshot_tables: Vec<Vec<TableRef>>,
    /// By segment: its tables.
    pub segment_tables: Vec<Vec<TableRef>>,
    /// Names by number.
    pub names: Vec<&'a str>,
    /// Whole-table events that reset a table, by segment: (segment, table, event).
    pub resets: Vec<(u32, u32, &'a TableEvent)>,
    uncaptured: Vec<Uncaptured<'a>>,
    schemas: Vec<(Boundary, Schema)>,
}

impl<'a> IncarnationIndex<'a> {
    fn new(history: &'a IncarnationHistory) -> Self {
        let mut tables = TableNumbers::default();
        tables.walk(history);
        Self {
            history,
            points: Points::new(history),
            has_commits: history.has_commits(),
            snapshot_tables: tables.snapshots,
            segment_tables: tables.segments,
            names: tables.names,
            resets: tables.resets,
            uncaptured: tables.uncaptured,
            schemas: tables.schemas,
        }
    }

    /// The log reaches `at`, so that the cut for it is final: no commit to come can move it.
    pub fn covers(&self, at: Timestamp) -> bool {
        // A poll of a shard without commits of its own says that no later write happened at or before its stamp; a
        // commit of the same microsecond may still follow one.
        self.points.latest.is_some_and(|latest| if self.has_commits { latest > at } else { latest >= at })
    }

    /// Every transaction between `point` and the next recovery point `next` would be a recovery point: there are none.
    pub fn is_next_commit(&self, point: Boundary, next: Boundary) -> bool {
        let segment = self.history.segment_at(next.position).map(|number| &self.history.segments[number]);
        segment.is_some_and(|segment| {
            segment.after.position <= point.position && !segment.recovery_commits().is_empty()
        })
    }

    /// What a recovery point is, in a word or two.
    pub fn word_for(&self, point: Boundary) -> &'static str {
        if self.history.commit_at(point.position) { "commit" } else { "recovery point" }
    }

    /// The last restorable recovery point at or before `point` that no segment reaches across.
    pub fn last_whole(&self, point: Boundary) -> Option<Boundary> {
        match self.split_at(point) {
            Some(segment) => self.points.last_upto(self.history.segments[segment].after),
            None => Some(point),
        }
    }

    /// The number of the segment that reaches across `point`, if one does: a part of it counts.
    pub fn split_at(&self, point: Boundary) -> Option<usize> {
        let number = self.history.segment_at(point.position)?;
        (point.position < self.history.segments[number].boundary.position).then_some(number)
    }

    /// The number of the last snapshot at or before `boundary`.
    pub fn snapshot_below(&self, boundary: Boundary) -> Option<usize> {
        let is_base = |snapshot: Boundary| points::is_base(self.has_commits, snapshot, boundary);
        let count = self.history.snapshots.partition_point(|snapshot| is_base(snapshot.boundary));
        count.checked_sub(1)
    }

    /// The number of the first segment that ends behind `boundary`, if only by its stamp.
    pub fn first_segment_behind(&self, boundary: Boundary) -> usize {
        self.history.segments.partition_point(|segment| segment.boundary <= boundary)
    }

    /// The tables as they were at `boundary`.
    pub fn schema_at(&self, boundary: Boundary) -> Option<&Schema> {
        let count = self.schemas.partition_point(|(from, _)| *from <= boundary);
        count.checked_sub(1).map(|last| &self.schemas[last].1)
    }

    /// Tables of `kind` whose rows at `boundary` are not known, since they were not captured then.
    pub fn uncaptured_at<'s>(
        &'s self,
        kind: &'s Kind,
        boundary: Boundary,
    ) -> impl Iterator<Item = &'s Uncaptured<'a>> + 's {
        let begun = move |table: &Uncaptured<'a>| match self.has_commits {
            // Times of points are effective ones there.
            true => table.from.position < boundary.position,
            false => table.from < boundary,
        };
        let of_kind = self.uncaptured.iter().filter(move |table| table.kind == kind);
        of_kind.filter(move |table| begun(table) && table.until.is_none_or(|until| boundary < until))
    }

    /// Resets in segments `range`, ascending.
    pub fn resets_in(&self, range: std::ops::Range<usize>) -> &[(u32, u32, &'a TableEvent)] {
        let start = self.resets.partition_point(|(segment, ..)| (*segment as usize) < range.start);
        let end = self.resets.partition_point(|(segment, ..)| (*segment as usize) < range.end);
        &self.resets[start..end.max(start)]
    }
}

/// Numbers the tables and their definitions in the order of history.
#[derive(Default)]
struct TableNumbers<'a> {
    names: Vec<&'a str>,
    by_name: BTreeMap<&'a str, u32>,
    /// By table: its definitions so far, each once, with their versions.
    definitions: Vec<Vec<(&'a CapturedTable, u32)>>,
    /// The list of the last segment, to know it again where the next one shares it.
    last_list: Option<(&'a [CapturedTable], Vec<Numbered>)>,
    /// Tables there are now.
    current: BTreeMap<u32, Numbered>,
    snapshots: Vec<Vec<TableRef>>,
    segments: Vec<Vec<TableRef>>,
    resets: Vec<(u32, u32, &'a TableEvent)>,
    uncaptured: Vec<Uncaptured<'a>>,
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
            self.definitions.push(Vec::new());
        }
        number
    }

    fn table(&mut self, table: &'a CapturedTable) -> Numbered {
        let number = self.number(&table.def.name);
        let known = &mut self.definitions[number as usize];
        let definition = known.iter().rposition(|(candidate, _)| *candidate == table).unwrap_or_else(|| {
            let alike = known.iter().find(|(candidate, _)| same_shape(candidate, table));
            let next = known.iter().map(|(_, version)| version + 1).max().unwrap_or(0);
            let version = alike.map_or(next, |(_, version)| *version);
            known.push((table, version));
            known.len() - 1
        });
        let at = TableRef { table: number, version: known[definition].1 };
        Numbered { at, definition: definition as u32 }
    }

    fn snapshot(&mut self, snapshot: &'a muster_types::catalog::SnapshotInfo) {
        let tables: Vec<Numbered> = snapshot.tables.iter().map(|table| self.table(table)).collect();
        self.snapshots.push(refs(&tables));
        tables.iter().for_each(|table| self.captured_again(table.at.table, snapshot.boundary));
        self.now(snapshot.boundary, tables.iter().map(|table| (table.at.table, *table)).collect());
    }

    fn segment(&mut self, number: usize, segment: &'a muster_types::catalog::SegmentInfo) {
        let shared = self.last_list.take().filter(|(list, _)| std::ptr::eq(*list, &*segment.tables));
        let listed = match shared {
            Some((_, listed)) => listed,
            None => segment.tables.iter().map(|table| self.table(table)).collect(),
        };
        self.segments.push(refs(&listed));
        // Without an event, tables that are known as they are tell nothing new.
        if !self.schemas.is_empty()
            && segment.table_events.is_empty()
            && listed.iter().all(|table| self.is_current(*table))
        {
            self.last_list = Some((&segment.tables, listed));
            return;
        }
        let mut tables = self.current.clone();
        for event in &segment.table_events {
            if event.event == TableEventKind::Undeclared {
                self.not_captured(event, segment.after);
                continue;
            }
            let table = self.number(&event.table);
            self.resets.push((number as u32, table, event));
            match event.event {
                TableEventKind::Dropped => {
                    tables.remove(&table);
                    self.captured_again(table, segment.boundary);
                }
                TableEventKind::Reread => self.captured_again(table, segment.boundary),
                TableEventKind::Truncated | TableEventKind::Undeclared => {}
            }
        }
        let gone = |table: u32| {
            let mut events =
                segment.table_events.iter().rev().filter(|event| event.table == self.names[table as usize]);
            events.next().is_some_and(|last| last.event == TableEventKind::Dropped)
        };
        let there = listed.iter().filter(|table| !gone(table.at.table));
        tables.extend(there.map(|table| (table.at.table, *table)));
        self.last_list = Some((&segment.tables, listed));
        self.now(segment.boundary, tables);
    }

    /// What happened to a captured table behind `from` is not known any more.
    fn not_captured(&mut self, event: &'a TableEvent, from: Boundary) {
        let Some(known) = self.by_name.get(event.table.as_str()).and_then(|table| self.current.get(table))
        else {
            return;
        };
        let Numbered { at: TableRef { table, .. }, definition } = *known;
        if self.uncaptured.iter().any(|known| known.table == table && known.until.is_none()) {
            return;
        }
        let kind = &self.definitions[table as usize][definition as usize].0.kind;
        self.uncaptured.push(Uncaptured { table, kind, from, until: None, reason: &event.reason });
    }

    /// The table's rows at `boundary` are known, or that it is gone.
    fn captured_again(&mut self, table: u32, boundary: Boundary) {
        let of_table = self.uncaptured.iter_mut().filter(|known| known.table == table);
        of_table.filter(|known| known.until.is_none()).for_each(|known| known.until = Some(boundary));
    }

    fn is_current(&self, table: Numbered) -> bool {
        self.current.get(&table.at.table) == Some(&table)
    }

    /// From `boundary` on there are these tables.
    fn now(&mut self, boundary: Boundary, tables: BTreeMap<u32, Numbered>) {
        if tables == self.current && !self.schemas.is_empty() {
            return;
        }
        self.current = tables;
        let definition = |numbered: &Numbered| {
            let (definition, _) = self.definitions[numbered.at.table as usize][numbered.definition as usize];
            (*numbered, definition)
        };
        let before = self.schemas.last().map(|(_, schema)| schema);
        let number = self.schemas.len() as u32;
        let schema = Schema::new(number, self.current.values().map(definition), before);
        self.schemas.push((boundary, schema));
    }
}

fn refs(tables: &[Numbered]) -> Vec<TableRef> {
    tables.iter().map(|table| table.at).collect()
}
