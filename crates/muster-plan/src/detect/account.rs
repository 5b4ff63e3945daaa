//! What became of each store of a site over a window, by the counts of the index.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::{SiteHistory, SiteTrace};
use muster_types::segment::{ChangeStamp, FrameKind, LogFrame, Mark, TableEvent, TableEventKind};
use muster_types::topology::Topology;
use muster_types::{Incarnation, Kind, Position, ShardName, SiteId, Timestamp};

use super::MarkedLoss;
use crate::index::{CatalogIndex, IncarnationIndex};
use crate::inputs::{FramePart, TableState, site_tables};

/// Behind every change.
const EVERYTHING: Position = Position(u64::MAX);

/// Rows that came to a site by moving there: such an insert has the position of the delete in the site that the row
/// left, and a later ordinal.
pub(super) struct Moves<'a> {
    /// By shard, incarnation, segment, table number within the segment and position of the first or last arrival:
    /// rows.
    arrivals: BTreeMap<(&'a ShardName, u32, u32, u32, Position), u64>,
}

impl<'a> Moves<'a> {
    pub(super) fn new(index: &CatalogIndex<'a>) -> Self {
        let mut arrivals = BTreeMap::new();
        for trace in index.catalog.sites.values().flat_map(|site| &site.traces) {
            for (&segment, frames) in &trace.segments {
                for frame in frames {
                    for position in arrivals_of(frame) {
                        let place = (&trace.shard, trace.incarnation, segment, frame.table, position);
                        *arrivals.entry(place).or_default() += frame.inserts;
                    }
                }
            }
        }
        Self { arrivals }
    }

    /// Of a frame's deletions, those that went to another site.
    fn departures(&self, trace: &'a SiteTrace, segment: u32, frame: &LogFrame) -> u64 {
        let Some((first, last)) = frame.deletions else { return 0 };
        let at = |position: Position| {
            let place = (&trace.shard, trace.incarnation, segment, frame.table, position);
            let all = self.arrivals.get(&place).copied().unwrap_or(0);
            // What the site itself was given in the same commit did not leave it.
            let own = trace.segments.get(&segment).into_iter().flatten();
            let own = own.filter(|own| own.table == frame.table && arrivals_of(own).contains(&position));
            all.saturating_sub(own.map(|own| own.inserts).sum())
        };
        let (first, last) = (first.key.position, last.key.position);
        at(first).max(at(last)).min(frame.deletes)
    }
}

/// Where the first and the last change of a frame stand, if they may be arrivals.
fn arrivals_of(frame: &LogFrame) -> BTreeSet<Position> {
    let ends = frame.span.into_iter().flat_map(|(first, last)| [first, last]);
    ends.filter(|stamp| stamp.key.ordinal > 0).map(|stamp| stamp.key.position).collect()
}

/// What one segment did to a store.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    pub(super) segment: u32,
    /// Rows that Muster did not add or remove, net; moves left out.
    pub(super) net_loss: i64,
    /// The same of the directory's table alone.
    pub(super) directory_loss: i64,
    /// Rows that others than Muster added: part of the net.
    gained: i64,
    /// Rows that Muster added less those that it removed.
    pub(super) marked_gain: i64,
    /// First and last deletion that Muster did not make.
    pub(super) deletions: Option<(ChangeStamp, ChangeStamp)>,
    /// A whole table went, or was read again.
    pub(super) whole_table: Option<WholeTable>,
    /// What it took had come in the same poll.
    pub(super) brief: bool,
}

/// The first loss of a whole table in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WholeTable {
    /// When it was known.
    pub(super) at: Timestamp,
    /// Where it stands in the log, if that is known.
    pub(super) position: Option<Position>,
}

/// One store in one incarnation of its shard.
pub(super) struct StoreAccount<'a> {
    pub(super) kind: Kind,
    pub(super) shard: &'a ShardName,
    pub(super) incarnation: &'a Incarnation,
    pub(super) index: &'a IncarnationIndex<'a>,
    pub(super) holds_directory: bool,
    pub(super) rows_before: u64,
    /// By ascending segment; only those that touch the store within the window.
    pub(super) steps: Vec<Step>,
    directory_before: i64,
    /// No earlier incarnation of the shard is looked at, too.
    pub(super) first: bool,
    /// No later one is.
    last: bool,
}

impl StoreAccount<'_> {
    pub(super) fn rows_after(&self) -> u64 {
        let change: i64 = self.steps.iter().map(|step| step.marked_gain - step.net_loss).sum();
        (self.rows_before as i64 + change).max(0) as u64
    }

    pub(super) fn net_loss(&self) -> i64 {
        self.steps.iter().map(|step| step.net_loss).sum()
    }

    /// It had no row before the window and has none now, but others than Muster took some in between.
    pub(super) fn came_and_went(&self) -> bool {
        self.rows_before == 0 && self.rows_after() == 0 && self.steps.iter().any(|step| step.net_loss > 0)
    }
}

/// All stores of one site.
pub(super) struct SiteAccount<'a> {
    pub(super) stores: Vec<StoreAccount<'a>>,
    marked: Vec<(&'a ShardName, Kind, &'a Mark, u64, ChangeStamp, ChangeStamp)>,
    directory_marked: i64,
    /// Tables that were dropped or truncated, with the rows that went so.
    pub(super) whole_tables: Vec<(&'a ShardName, &'a TableEvent, u64)>,
}

impl<'a> SiteAccount<'a> {
    pub(super) fn new(
        topology: &Topology,
        index: &'a CatalogIndex<'a>,
        moves: &Moves<'a>,
        site: &SiteId,
        history: &'a SiteHistory,
        from: Timestamp,
        to: Timestamp,
    ) -> Self {
        let mut account =
            Self { stores: Vec::new(), marked: Vec::new(), directory_marked: 0, whole_tables: Vec::new() };
        for trace in &history.traces {
            let Some(shard) = index.shard(&trace.shard) else { continue };
            let number = trace.incarnation as usize;
            let Some(incarnation) = shard.incarnations.get(number) else { continue };
            // An incarnation counts from its last recovery point before the window, or from its first one in it.
            let just_before = from.plus_micros(-1);
            let before = incarnation.points.last_at_or_before(just_before);
            // Whole segments are counted exactly.
            let before = before.map(|point| incarnation.last_whole(point).unwrap_or(point));
            let Some(start) = before.or(incarnation.points.first()) else { continue };
            let replaced = |one: &IncarnationIndex<'_>| one.points.last_at_or_before(just_before).is_some();
            if start.at > to || shard.incarnations[number + 1..].iter().any(replaced) {
                continue;
            }
            let later = |one: &IncarnationIndex<'_>| one.points.first().is_some_and(|first| first.at <= to);
            let last = !shard.incarnations[number + 1..].iter().any(later);
            let first = before.is_some() || number == 0;
            let walk = Walk { site, topology, index: incarnation, moves, trace, from, to };
            walk.run(start, (first, last), &mut account);
        }
        account
    }

    pub(super) fn rows_before(&self) -> u64 {
        self.stores.iter().filter(|store| store.first).map(|store| store.rows_before).sum()
    }

    pub(super) fn rows_after(&self) -> u64 {
        self.stores.iter().filter(|store| store.last).map(StoreAccount::rows_after).sum()
    }

    pub(super) fn net_loss(&self) -> i64 {
        self.stores.iter().map(StoreAccount::net_loss).sum()
    }

    /// The directory row was there before, unmarked changes took it, and it is not back.
    pub(super) fn directory_lost(&self) -> bool {
        let before: i64 =
            self.stores.iter().filter(|store| store.first).map(|store| store.directory_before).sum();
        let steps = self.stores.iter().flat_map(|store| &store.steps);
        let lost: i64 = steps.map(|step| step.directory_loss).sum();
        before > 0 && lost > 0 && before - lost + self.directory_marked <= 0
    }

    /// Muster's own removals.
    pub(super) fn marked(&self, site: &SiteId) -> Vec<MarkedLoss> {
        let mut losses: BTreeMap<(&ShardName, &Kind, &Mark), MarkedLoss> = BTreeMap::new();
        for (shard, kind, mark, rows, first, last) in &self.marked {
            let loss = losses.entry((shard, kind, mark)).or_insert_with(|| MarkedLoss {
                site: site.clone(),
                shard: (*shard).clone(),
                kind: kind.clone(),
                mark: (*mark).clone(),
                rows: 0,
                first_at: first.at,
                last_at: last.at,
            });
            loss.rows += rows;
            loss.first_at = loss.first_at.min(first.at);
            loss.last_at = loss.last_at.max(last.at);
        }
        losses.into_values().collect()
    }
}

/// Rows of one table of the site as the walk goes.
struct TableCount {
    kind: Kind,
    rows: i64,
}

struct Walk<'w, 'a> {
    site: &'w SiteId,
    topology: &'w Topology,
    index: &'a IncarnationIndex<'a>,
    moves: &'w Moves<'a>,
    trace: &'a SiteTrace,
    from: Timestamp,
    to: Timestamp,
}

impl<'a> Walk<'_, 'a> {
    fn run(&self, start: muster_types::Boundary, (first, last): (bool, bool), account: &mut SiteAccount<'a>) {
        let mut counts = self.counts_at(start);
        let segments = &self.index.history.segments;
        let begin = self.index.first_segment_behind(start);
        let end = segments.partition_point(|segment| segment.after.at <= self.to).max(begin);
        let resets = self.index.resets_in(begin..end);
        let touched: BTreeSet<u32> = self
            .trace
            .segments
            .range(begin as u32..end as u32)
            .map(|(segment, _)| *segment)
            .chain(resets.iter().map(|reset| reset.0))
            .collect();
        let mut early: BTreeMap<u32, i64> = BTreeMap::new();
        let mut steps: BTreeMap<Kind, Vec<Step>> = BTreeMap::new();
        let rows_at_start: Vec<(u32, Kind, i64)> =
            counts.iter().map(|(table, count)| (*table, count.kind.clone(), count.rows)).collect();
        for segment in touched {
            self.segment((segment, start.position), &mut counts, &mut early, &mut steps, account);
        }
        let mut kinds: BTreeSet<Kind> = rows_at_start.iter().map(|(_, kind, _)| kind.clone()).collect();
        kinds.extend(steps.keys().cloned());
        for kind in kinds {
            let of_kind = rows_at_start.iter().filter(|(_, other, _)| *other == kind);
            let grown = |table: u32| early.get(&table).copied().unwrap_or(0);
            let rows: i64 = of_kind.clone().map(|(table, _, rows)| rows + grown(*table)).sum();
            let directory = of_kind.filter(|(table, ..)| self.is_directory(*table));
            account.stores.push(StoreAccount {
                holds_directory: kind == self.topology.directory.kind,
                shard: &self.trace.shard,
                incarnation: &self.index.history.incarnation,
                index: self.index,
                rows_before: rows.max(0) as u64,
                directory_before: directory.map(|(table, _, rows)| rows + grown(*table)).sum(),
                steps: steps.remove(&kind).unwrap_or_default(),
                kind,
                first,
                last,
            });
        }
    }

    fn is_directory(&self, table: u32) -> bool {
        self.index.names.get(table as usize).is_some_and(|name| *name == self.topology.directory.table)
    }

    fn counts_at(&self, start: muster_types::Boundary) -> BTreeMap<u32, TableCount> {
        let mut counts = BTreeMap::new();
        let Ok(states) = site_tables(self.index, self.trace, start) else { return counts };
        let Some(schema) = self.index.schema_at(start) else { return counts };
        for (kind, tables) in schema.of_site(self.site) {
            for table in &tables.refs {
                let state = states.get(&table.table).and_then(|state| state.as_ref().ok());
                let rows = state.map_or(0, TableState::rows) as i64;
                counts.insert(table.table, TableCount { kind: kind.clone(), rows });
            }
        }
        counts
    }

    fn segment(
        &self,
        (number, start): (u32, Position),
        counts: &mut BTreeMap<u32, TableCount>,
        early: &mut BTreeMap<u32, i64>,
        steps: &mut BTreeMap<Kind, Vec<Step>>,
        account: &mut SiteAccount<'a>,
    ) {
        let mut here: BTreeMap<Kind, Step> = BTreeMap::new();
        let frames = self.trace.segments.get(&number).map_or(&[][..], Vec::as_slice);
        let info = &self.index.history.segments[number as usize];
        for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Changes) {
            let (Some(table), Some(definition)) =
                (self.table_of(number, frame), info.tables.get(frame.table as usize))
            else {
                continue;
            };
            let kind = &definition.kind;
            let Some(part) = FramePart::new(number, frame, start, EVERYTHING) else { continue };
            let (inserts, deletes) = (part.inserts().0 as i64, part.deletes().0 as i64);
            let count = counts.entry(table).or_insert(TableCount { kind: kind.clone(), rows: 0 });
            if frame.span.is_some_and(|(_, last)| last.at < self.from) {
                count.rows += inserts - deletes;
                *early.entry(table).or_default() += inserts - deletes;
                continue;
            }
            if frame.span.is_some_and(|(first, _)| first.at > self.to) {
                continue;
            }
            count.rows += inserts - deletes;
            let step = here.entry(kind.clone()).or_default();
            match frame.mark.and_then(|mark| info.marks.get(mark as usize)) {
                None => {
                    let left = deletes - self.moves.departures(self.trace, number, frame) as i64;
                    step.lose(left - inserts, self.is_directory(table), frame.deletions.filter(|_| left > 0));
                    step.gained += inserts;
                }
                Some(mark) => {
                    step.marked_gain += inserts - deletes;
                    if self.is_directory(table) {
                        account.directory_marked += inserts - deletes;
                    }
                    if let Some((first, last)) = frame.deletions {
                        let shard = &self.trace.shard;
                        account.marked.push((shard, kind.clone(), mark, frame.deletes, first, last));
                    }
                }
            }
        }
        self.whole_tables((number, start), frames, (counts, early), (&mut here, account));
        for (kind, step) in here {
            let step = Step { segment: number, ..step };
            let held: i64 = counts.values().filter(|count| count.kind == kind).map(|count| count.rows).sum();
            let brief = self.index.has_commits && held == 0;
            steps.entry(kind).or_default().extend(if brief { step.apart() } else { vec![step] });
        }
    }

    /// Events that took all rows of a table: what is left are the rows behind them.
    fn whole_tables(
        &self,
        (number, start): (u32, Position),
        frames: &[LogFrame],
        (counts, early): (&mut BTreeMap<u32, TableCount>, &mut BTreeMap<u32, i64>),
        (here, account): (&mut BTreeMap<Kind, Step>, &mut SiteAccount<'a>),
    ) {
        let segment = number as usize;
        for reset in self.index.resets_in(segment..segment + 1) {
            // A truncation stands right before its commit.
            let truncates = reset.2.event == TableEventKind::Truncated;
            let done = |position| if truncates { position < start } else { position <= start };
            // What has a place of its own has an exact time, too.
            let timed = reset.2.position.is_some() && reset.2.event != TableEventKind::Reread;
            if reset.2.position.is_some_and(done) || (timed && reset.2.at > self.to) {
                continue;
            }
            let of_table = frames.iter().filter(|frame| self.table_of(number, frame) == Some(reset.1));
            let rows: i64 = of_table.map(|frame| rows_behind(number, frame, reset.2)).sum();
            let Some(count) = counts.get_mut(&reset.1) else { continue };
            let lost = std::mem::replace(&mut count.rows, rows.max(0)) - rows.max(0);
            if timed && reset.2.at < self.from {
                *early.entry(reset.1).or_default() -= lost;
            } else if lost != 0 {
                if reset.2.event != TableEventKind::Reread && lost > 0 {
                    account.whole_tables.push((&self.trace.shard, reset.2, lost.unsigned_abs()));
                }
                let step = here.entry(count.kind.clone()).or_default();
                step.lose(lost, self.is_directory(reset.1), None);
                let whole = WholeTable { at: reset.2.at, position: reset.2.position };
                step.whole_table = Some(step.whole_table.map_or(whole, |known| known.min(whole)));
            }
        }
    }

    /// Number of the table of a frame of segment `number`.
    fn table_of(&self, number: u32, frame: &LogFrame) -> Option<u32> {
        self.index.segment_tables[number as usize].get(frame.table as usize).map(|table| table.table)
    }
}

/// Rows that a frame brings into its table behind an event that took all of them.
fn rows_behind(segment: u32, frame: &LogFrame, event: &TableEvent) -> i64 {
    match (frame.kind, event.position) {
        (FrameKind::Rows, _) => frame.inserts as i64,
        (FrameKind::Changes, Some(position)) if event.event != TableEventKind::Reread => {
            let part = FramePart::new(segment, frame, position, EVERYTHING);
            part.map_or(0, |part| part.inserts().0 as i64 - part.deletes().0 as i64)
        }
        (FrameKind::Changes, _) => 0,
    }
}

impl Step {
    /// Rows that others than Muster took, whatever came beside them.
    pub(super) fn took(&self) -> i64 {
        self.net_loss + self.gained
    }

    /// Of a step that left its store without a row and had it so before: what came, and then what went, which the net
    /// hides. Between the two lie commits that can be restored.
    fn apart(self) -> Vec<Self> {
        if self.gained <= 0 || self.net_loss != 0 {
            return vec![self];
        }
        let (rows, directory) = (self.gained, self.directory_loss);
        let came =
            Self { segment: self.segment, net_loss: -rows, marked_gain: self.marked_gain, ..Self::default() };
        let went = Self {
            net_loss: rows,
            directory_loss: directory,
            gained: 0,
            marked_gain: 0,
            brief: true,
            ..self
        };
        vec![came, went]
    }

    fn lose(&mut self, rows: i64, directory: bool, deletions: Option<(ChangeStamp, ChangeStamp)>) {
        self.net_loss += rows;
        if directory {
            self.directory_loss += rows;
        }
        self.deletions = match (self.deletions, deletions) {
            (Some(known), Some(new)) => Some((known.0.min(new.0), known.1.max(new.1))),
            (known, new) => known.or(new),
        };
    }
}
