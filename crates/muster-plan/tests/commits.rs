//! Logs whose commits are recovery points, against a naive model that remembers every transaction.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::points::LateCommits;
use muster_plan::{RecoveryPoint, Target, recovery_point, store_inputs, synthetic};
use muster_types::catalog::*;
use muster_types::incident::BeforePosition;
use muster_types::plan::TableInput;
use muster_types::segment::*;
use muster_types::snapshot::{Chunk, ObjectInfo, TableSlice};
use muster_types::table::CapturedTable;
use muster_types::*;
use proptest::prelude::*;
use support::{at, kind, shard, site};

const SITES: [&str; 2] = ["a", "b"];
const TABLES: [&str; 2] = ["users", "projects"];
const KINDS: [&str; 2] = ["identity", "product:jira-software"];

/// Rows by (site, table).
type Rows = BTreeMap<(usize, usize), BTreeSet<u32>>;

/// What happens next, a second after the last.
#[derive(Clone, Debug)]
enum Act {
    /// Inserts (true) and deletes by (site, table), in one transaction, its time off by so many seconds.
    Commit {
        changes: Vec<(usize, usize, bool)>,
        off: i64,
        marked: bool,
    },
    /// At the next place of the log, or further on.
    Truncate {
        table: usize,
        off: i64,
        next: bool,
    },
    Poll,
    Reread(usize),
    Snapshot {
        off: i64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let change = (0..2usize, 0..2usize, prop::bool::weighted(0.7));
    prop_oneof![
        8 => (prop::collection::vec(change, 1..5), -6..6i64, prop::bool::weighted(0.2))
            .prop_map(|(changes, off, marked)| Act::Commit { changes, off, marked }),
        1 => (0..2usize, -6..6i64, any::<bool>())
            .prop_map(|(table, off, next)| Act::Truncate { table, off, next }),
        2 => Just(Act::Poll),
        1 => (0..2usize).prop_map(Act::Reread),
        2 => (0..6i64).prop_map(|off| Act::Snapshot { off }),
    ]
}

/// One line of a frame.
#[derive(Clone, Copy, Debug)]
struct Line {
    stamp: ChangeStamp,
    /// The row comes, or goes.
    comes: bool,
    row: u32,
}

/// A place of the log as the model sees it.
#[derive(Clone, Debug)]
struct Place {
    boundary: Boundary,
    commit: bool,
    /// A snapshot, which is no point of its own where commits stand around it.
    snapshot: bool,
    /// One can recover to it.
    point: bool,
    rows: Rows,
}

/// Slices by snapshot and frames by segment.
type Trace = (BTreeMap<u32, Vec<TableSlice>>, BTreeMap<u32, Vec<LogFrame>>);

#[derive(Default)]
struct World {
    seconds: i64,
    position: u64,
    rows: Rows,
    next_row: u32,
    places: Vec<Place>,
    /// Places of the segment that is open.
    open: usize,
    lines: BTreeMap<(usize, usize, bool), Vec<Line>>,
    events: Vec<TableEvent>,
    commits: Vec<Commit>,
    last: Option<Boundary>,
    chunks: BTreeMap<u64, Vec<Line>>,
    bases: BTreeMap<u64, BTreeSet<u32>>,
    snapshots: Vec<SnapshotInfo>,
    segments: Vec<SegmentInfo>,
    traces: [Trace; 2],
}

fn tables() -> Vec<CapturedTable> {
    synthetic::captured_tables().unwrap()
}

fn table_number(table: usize) -> u32 {
    tables().iter().position(|known| known.def.name == TABLES[table]).unwrap() as u32
}

impl World {
    fn play(acts: &[Act]) -> Self {
        let mut world = Self { position: 1_000, ..Self::default() };
        world.snapshot(0);
        world.last = Some(world.snapshots[0].boundary);
        world.places[0].point = true;
        world.open = 1;
        for act in acts {
            world.seconds += 1;
            match act {
                Act::Commit { changes, off, marked } => world.commit(changes, *off, *marked),
                Act::Truncate { table, off, next } => world.truncate(*table, *off, *next),
                Act::Poll => world.poll(None),
                Act::Reread(table) => world.poll(Some(*table)),
                Act::Snapshot { off } => world.snapshot(*off),
            }
        }
        world.seconds += 20;
        world.poll(None);
        world
    }

    fn now(&self, off: i64) -> Timestamp {
        at((self.seconds + off).max(0) as f64)
    }

    /// Positions are sparse, as places in a write-ahead log are.
    fn begin(&mut self) -> Position {
        self.position += 7 + u64::from(self.next_row % 5) * 40;
        Position(self.position)
    }

    fn place(&mut self, boundary: Boundary, commit: bool, snapshot: bool) {
        let rows = self.rows.clone();
        self.places.push(Place { boundary, commit, snapshot, point: false, rows });
    }

    fn commit(&mut self, changes: &[(usize, usize, bool)], off: i64, marked: bool) {
        let (position, at) = (self.begin(), self.now(off));
        let mut ordinal = 0;
        for &(site, table, comes) in changes {
            let rows = self.rows.entry((site, table)).or_default();
            let row = if comes { Some(self.next_row) } else { rows.first().copied() };
            let Some(row) = row else { continue };
            self.next_row += 1;
            if comes {
                rows.insert(row)
            } else {
                rows.remove(&row)
            };
            let stamp = ChangeStamp { key: ChangeKey { position, ordinal }, at };
            ordinal += 1;
            self.lines.entry((site, table, marked)).or_default().push(Line { stamp, comes, row });
        }
        if ordinal > 0 {
            self.commits.push(Commit { position, at });
            self.place(Boundary { position, at }, true, false);
        }
    }

    fn truncate(&mut self, table: usize, off: i64, next: bool) {
        let position = if next { Position(self.position + 1) } else { self.begin() };
        self.position = position.0;
        let at = self.now(off);
        (0..SITES.len()).for_each(|site| drop(self.rows.remove(&(site, table))));
        let before = Position(position.0 - 1);
        self.events.push(event(table, TableEventKind::Truncated, at, Some(before)));
        self.commits.push(Commit { position, at });
        self.place(Boundary { position, at }, true, false);
    }

    fn chunk(&mut self, rows: usize) -> Chunk {
        let offset = (self.chunks.len() + self.bases.len()) as u64 + 1;
        Chunk { offset, bytes: 10, raw_bytes: 100, rows: rows as u64, digest: Digest([0; 32]) }
    }

    fn base(&mut self, site: usize, table: usize) -> Option<Chunk> {
        let held = self.rows.get(&(site, table)).filter(|held| !held.is_empty())?.clone();
        let chunk = self.chunk(held.len());
        self.bases.insert(chunk.offset, held);
        Some(chunk)
    }

    fn snapshot(&mut self, off: i64) {
        // All commits below a consistent point, whose own place is between two of them.
        self.position += 3;
        let boundary = Boundary { position: Position(self.position), at: self.now(off) };
        let number = self.snapshots.len() as u32;
        for (site, table) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let Some(chunk) = self.base(site, table) else { continue };
            let (table, rows_digest) = (table_number(table), Digest([2; 32]));
            let slice = TableSlice { table, pack: 0, chunks: vec![chunk], rows_digest };
            self.traces[site].0.entry(number).or_default().push(slice);
        }
        self.snapshots.push(SnapshotInfo {
            snapshot: SnapshotId::new(format!("{:020}-{number:08x}", self.position)).unwrap(),
            boundary,
            tables: tables(),
            packs: vec![object(&format!("pack-{number}"))],
            beside: muster_types::snapshot::Beside::default(),
            folded_from: None,
        });
        self.place(boundary, false, true);
    }

    /// Ends the segment with a heartbeat; `reread` is read again whole there.
    fn poll(&mut self, reread: Option<usize>) {
        let number = self.segments.len() as u32;
        let after = self.last.unwrap();
        let position = self.begin();
        let boundary = Boundary { position, at: self.now(0).max(after.at) };
        self.commits.push(Commit { position, at: self.now(0) });
        if let Some(table) = reread {
            // What no log showed.
            self.rows.entry((0, table)).or_default().insert(self.next_row);
            self.next_row += 1;
            self.lines.retain(|(_, other, _), _| *other != table);
            self.events.push(event(table, TableEventKind::Reread, boundary.at, None));
            self.commits.clear();
        }
        self.place(boundary, false, false);
        for place in &mut self.places[self.open..] {
            place.point = match (place.snapshot, place.commit) {
                (true, _) => reread.is_some(),
                (_, true) => reread.is_none(),
                _ => true,
            };
        }
        self.open = self.places.len();
        for ((site, table, marked), lines) in std::mem::take(&mut self.lines) {
            let frame = self.frame(table, marked, lines);
            self.traces[site].1.entry(number).or_default().push(frame);
        }
        for site in 0..SITES.len() {
            let Some(table) = reread else { break };
            let Some(chunk) = self.base(site, table) else { continue };
            let frame = LogFrame {
                table: table_number(table),
                mark: None,
                kind: FrameKind::Rows,
                inserts: chunk.rows,
                chunks: vec![chunk],
                updates: 0,
                deletes: 0,
                span: None,
                deletions: None,
                rows_digest: Some(Digest([1; 32])),
                place: None,
            };
            self.traces[site].1.entry(number).or_default().push(frame);
        }
        let mark = Mark { run: "run-1".parse().unwrap(), step: "publish/x".to_owned(), epoch: Epoch(1) };
        self.segments.push(SegmentInfo {
            sequence: u64::from(number) + 1,
            after,
            boundary,
            data: Some(object(&format!("log-{number}"))),
            table_events: std::mem::take(&mut self.events),
            commits: std::mem::take(&mut self.commits),
            tables: tables().into(),
            marks: vec![mark],
            clock_offset_micros: (0, 100),
        });
        self.last = Some(boundary);
    }

    fn frame(&mut self, table: usize, marked: bool, lines: Vec<Line>) -> LogFrame {
        let chunk = self.chunk(lines.len());
        let ends = |lines: Vec<&Line>| Some((lines.first()?.stamp, lines.last()?.stamp));
        let count = |comes: bool| lines.iter().filter(|line| line.comes == comes).count() as u64;
        let frame = LogFrame {
            table: table_number(table),
            mark: marked.then_some(0),
            kind: FrameKind::Changes,
            inserts: count(true),
            updates: 0,
            deletes: count(false),
            span: ends(lines.iter().collect()),
            deletions: ends(lines.iter().filter(|line| !line.comes).collect()),
            rows_digest: None,
            chunks: vec![chunk.clone()],
            place: None,
        };
        self.chunks.insert(chunk.offset, lines);
        frame
    }

    fn incarnation() -> Incarnation {
        Incarnation::new("0001-00000000").unwrap()
    }

    fn catalog(&self) -> Catalog {
        let history = IncarnationHistory {
            incarnation: Self::incarnation(),
            snapshots: self.snapshots.clone(),
            segments: self.segments.clone(),
            gaps: vec![],
            snapshots_unread: vec![],
        };
        let trace = |number: usize| SiteTrace {
            shard: shard("shard-0"),
            incarnation: 0,
            snapshots: self.traces[number].0.clone(),
            segments: self.traces[number].1.clone(),
            unread: BTreeSet::new(),
        };
        let site_history =
            |number: usize| SiteHistory { traces: vec![trace(number)], ..SiteHistory::default() };
        Catalog {
            repository: "test".to_owned(),
            read_at: at(1e6),
            shards: [(shard("shard-0"), ShardHistory { incarnations: vec![history] })].into(),
            sites: (0..SITES.len()).map(|number| (site(SITES[number]), site_history(number))).collect(),
            unowned: Vec::new(),
        }
    }

    fn recover(&self, target: Target<'_>) -> RecoveryPoint {
        recovery_point(&self.catalog().shards[&shard("shard-0")], target).unwrap()
    }

    /// The longest prefix of the log without a time behind `target`: its last point.
    fn cut(&self, target: Timestamp) -> &Place {
        let points = self.places.iter().filter(|place| place.point);
        points.take_while(|place| place.boundary.at <= target).last().unwrap()
    }

    fn late(&self, cut: Position, target: Timestamp) -> Option<LateCommits> {
        let mut late: Vec<Position> = self
            .segments
            .iter()
            .flat_map(|segment| &segment.commits)
            .filter(|commit| commit.position > cut && commit.at <= target)
            .map(|commit| commit.position)
            .collect();
        late.sort();
        Some(LateCommits { commits: late.len() as u64, first: *late.first()? })
    }

    fn fold(&self, input: &TableInput) -> BTreeSet<u32> {
        let base = input.base.iter().flat_map(|base| &base.chunks);
        let mut rows: BTreeSet<u32> = base.flat_map(|chunk| self.bases[&chunk.offset].clone()).collect();
        let mut lines: Vec<Line> = Vec::new();
        for changes in &input.changes {
            let all = changes.chunks.iter().flat_map(|chunk| self.chunks[&chunk.offset].clone());
            lines.extend(all.filter(|line| changes.holds(line.stamp.key.position)));
        }
        lines.sort_by_key(|line| line.stamp.key);
        for line in lines {
            let fits = if line.comes { rows.insert(line.row) } else { rows.remove(&line.row) };
            assert!(fits, "{line:?} does not fit to {rows:?}");
        }
        rows
    }

    /// Every site's rows of both tables at `point` are those of the model.
    fn check_rows(&self, catalog: &Catalog, point: Boundary, rows: &Rows) {
        for (number, name) in SITES.iter().enumerate() {
            for (table, kind_name) in KINDS.iter().enumerate() {
                let (shard, incarnation) = (shard("shard-0"), Self::incarnation());
                let found = store_inputs(catalog, &site(name), &kind(kind_name), &shard, &incarnation, point)
                    .unwrap();
                let place = found.tables.iter().position(|known| known.def.name == TABLES[table]).unwrap();
                let expected = rows.get(&(number, table)).cloned().unwrap_or_default();
                assert_eq!(
                    self.fold(&found.inputs[place]),
                    expected,
                    "{name}, {} at {point:?}",
                    TABLES[table]
                );
                assert!(found.rows > 0 || expected.is_empty(), "counted as empty: {expected:?}");
            }
        }
    }
}

fn event(table: usize, event: TableEventKind, at: Timestamp, position: Option<Position>) -> TableEvent {
    let (table, kind) = (TABLES[table].to_owned(), kind(KINDS[table]));
    TableEvent { table, kind, event, at, position, reason: "scripted".to_owned() }
}

fn object(name: &str) -> ObjectInfo {
    ObjectInfo { key: name.to_owned(), bytes: 1_000, digest: Digest::of(name.as_bytes()) }
}

proptest! {
    #[test]
    fn the_longest_prefix_without_a_later_commit(
        acts in prop::collection::vec(act(), 0..40), tenths in 60..500i64,
    ) {
        let world = World::play(&acts);
        let target = at(tenths as f64 / 10.0);
        let point = world.recover(Target::At(target));
        let cut = world.cut(target);
        prop_assert_eq!(point.boundary.position, cut.boundary.position);
        prop_assert_eq!(point.late, world.late(cut.boundary.position, target));
        let last = world.places.iter().filter(|place| place.point).map(|place| place.boundary.at).max();
        prop_assert_eq!(point.covered, last > Some(target));
        world.check_rows(&world.catalog(), point.boundary, &cut.rows);
    }

    #[test]
    fn the_last_commit_below_a_position(acts in prop::collection::vec(act(), 0..40), share in 0.0..1.2f64) {
        let world = World::play(&acts);
        let position = Position(1_004 + ((world.position - 1_003) as f64 * share) as u64);
        let before =
            BeforePosition { shard: shard("shard-0"), incarnation: World::incarnation(), position };
        let point = world.recover(Target::Before(&before));
        let points = world.places.iter().filter(|place| place.point);
        let cut = points.rev().find(|place| place.boundary.position < position).unwrap();
        prop_assert_eq!(point.boundary.position, cut.boundary.position);
        // Nothing lies between if no transaction does, that is known of.
        let end = world.segments.iter().find(|segment| segment.boundary.position >= position);
        let known = end.is_some_and(|segment| !segment.commits.is_empty());
        let dense = cut.boundary.position.0 + 1 == position.0;
        prop_assert_eq!(point.exact, known || dense, "{:?}", point);
        world.check_rows(&world.catalog(), point.boundary, &cut.rows);
    }

    #[test]
    fn rows_at_every_point(acts in prop::collection::vec(act(), 0..30)) {
        let world = World::play(&acts);
        let catalog = world.catalog();
        for place in world.places.iter().filter(|place| place.point) {
            world.check_rows(&catalog, place.boundary, &place.rows);
        }
    }
}

fn commit(off: i64) -> Act {
    Act::Commit { changes: vec![(0, 0, true), (1, 1, true)], off, marked: false }
}

#[test]
fn a_late_commit_is_counted_and_named() {
    // The second commit takes its time four seconds before the first does, and comes behind it.
    let world = World::play(&[commit(3), commit(-1), commit(4)]);
    let commits = &world.segments[0].commits;
    assert_eq!((commits[0].at, commits[1].at), (at(4.0), at(1.0)));
    let point = world.recover(Target::At(at(2.0)));
    assert_eq!(point.boundary.position, world.snapshots[0].boundary.position);
    assert_eq!(point.late, Some(LateCommits { commits: 1, first: commits[1].position }));
    let point = world.recover(Target::At(at(4.0)));
    assert_eq!((point.boundary.position, point.late), (commits[1].position, None));
    assert!(point.because.contains("commit stands at the target"), "{}", point.because);
    assert!(point.exact && point.covered);
}

#[test]
fn a_time_is_covered_once_something_later_is_in_the_log() {
    let mut world = World::play(&[commit(0), Act::Poll]);
    world.segments.truncate(1);
    let end = world.segments[0].boundary.at;
    let point = world.recover(Target::At(end));
    assert!(!point.covered && !point.exact, "a commit of the same microsecond may follow: {point:?}");
    assert!(world.recover(Target::At(end.plus_micros(-1))).covered);
}

#[test]
fn a_truncation_right_behind_a_base_or_a_cut() {
    let truncate = Act::Truncate { table: 0, off: 0, next: true };
    for base in [Act::Snapshot { off: 0 }, Act::Reread(0), Act::Poll, commit(0)] {
        let world = World::play(&[commit(0), base.clone(), truncate.clone(), commit(0)]);
        let place =
            world.places.iter().position(|place| place.boundary.position == truncation(&world)).unwrap();
        assert!(world.places[place].point, "{base:?}");
        assert_ne!(world.places[place].rows, world.places[place - 1].rows, "it removes rows behind {base:?}");
        for place in world.places.iter().filter(|place| place.point) {
            world.check_rows(&world.catalog(), place.boundary, &place.rows);
        }
    }
}

/// The position of the commit that truncates.
fn truncation(world: &World) -> Position {
    let events = world.segments.iter().flat_map(|segment| &segment.table_events);
    let found = events.rev().find(|event| event.event == TableEventKind::Truncated).unwrap();
    Position(found.position.unwrap().0 + 1)
}
