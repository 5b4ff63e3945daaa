//! A scripted shard history: what happens row by row, and the index that capture would write of it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::synthetic::{self, Fleet, captured_table};
use muster_types::catalog::*;
use muster_types::incident::{BeforePosition, Incident, IncidentSite};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::segment::*;
use muster_types::snapshot::{Chunk, ObjectInfo, TableSlice};
use muster_types::table::CapturedTable;
use muster_types::topology::Topology;
use muster_types::*;

pub(crate) fn at(seconds: f64) -> Timestamp {
    synthetic::began_at().plus_micros((seconds * 1e6) as i64)
}

pub(crate) fn site(name: &str) -> SiteId {
    SiteId::new(name).unwrap()
}

pub(crate) fn kind(name: &str) -> Kind {
    name.parse().unwrap()
}

pub(crate) fn shard(name: &str) -> ShardName {
    name.parse().unwrap()
}

pub(crate) fn topology() -> Topology {
    synthetic::topology(Fleet { sites: 0, shards: 4, segments: 0 }).unwrap()
}

/// Row changes that a chunk holds, by its offset: positions, with their effect on the number of rows.
pub(crate) type Contents = BTreeMap<u64, Vec<(u64, i64)>>;

/// One incarnation of one shard as it is written.
pub(crate) struct Script {
    pub(crate) shard: ShardName,
    pub(crate) history: IncarnationHistory,
    pub(crate) traces: BTreeMap<SiteId, SiteTrace>,
    pub(crate) number: u32,
    pub(crate) tables: Vec<CapturedTable>,
    pub(crate) position: u64,
    pub(crate) contents: Contents,
    /// Every change there ever was: position, site, table, rows added.
    pub(crate) log: Vec<(u64, SiteId, String, i64)>,
    /// Rows now.
    pub(crate) rows: BTreeMap<(SiteId, String), i64>,
    pub(crate) clock_offset_micros: (i64, u64),
    pending: Vec<Pending>,
    pub(crate) last: Boundary,
    chunks: u64,
}

struct Pending {
    site: SiteId,
    table: String,
    key: ChangeKey,
    at: Timestamp,
    rows: i64,
    mark: Option<Mark>,
}

impl Script {
    pub(crate) fn new(name: &str) -> Self {
        Self::incarnation(name, 0, 0.0)
    }

    pub(crate) fn incarnation(name: &str, number: u32, _began: f64) -> Self {
        let history = IncarnationHistory {
            incarnation: Incarnation::new(format!("{:04}-00000000", number + 1)).unwrap(),
            snapshots: vec![],
            segments: vec![],
            gaps: vec![],
            snapshots_unread: vec![],
        };
        Self {
            shard: shard(name),
            history,
            traces: BTreeMap::new(),
            number,
            tables: synthetic::captured_tables().unwrap(),
            position: 0,
            contents: Contents::new(),
            log: vec![],
            rows: BTreeMap::new(),
            clock_offset_micros: (0, 100),
            pending: vec![],
            last: Boundary { position: Position(0), at: at(0.0) },
            // Chunks of all shards and incarnations have offsets of their own.
            chunks: (u64::from(number) + 1) << 32,
        }
    }

    fn table_number(&self, table: &str) -> u32 {
        self.tables.iter().position(|known| known.def.name == table).unwrap() as u32
    }

    pub(crate) fn change(&mut self, site_name: &str, table: &str, seconds: f64, rows: i64) -> &mut Self {
        self.change_marked(site_name, table, seconds, rows, None)
    }

    /// `rows` single-row inserts (or deletes, if negative), each with a position of its own.
    pub(crate) fn change_marked(
        &mut self,
        site_name: &str,
        table: &str,
        seconds: f64,
        rows: i64,
        mark: Option<&str>,
    ) -> &mut Self {
        for _ in 0..rows.abs() {
            self.position += 1;
            let key = ChangeKey { position: Position(self.position), ordinal: 0 };
            self.push(site(site_name), table, key, at(seconds), rows.signum(), mark);
        }
        self
    }

    /// Rows that leave one site for another.
    pub(crate) fn move_rows(
        &mut self,
        from: &str,
        to: &str,
        table: &str,
        seconds: f64,
        rows: i64,
    ) -> &mut Self {
        for _ in 0..rows {
            self.position += 1;
            let key = |ordinal| ChangeKey { position: Position(self.position), ordinal };
            let (left, came) = (key(0), key(1));
            self.push(site(from), table, left, at(seconds), -1, None);
            self.push(site(to), table, came, at(seconds), 1, None);
        }
        self
    }

    fn push(
        &mut self,
        site: SiteId,
        table: &str,
        key: ChangeKey,
        at: Timestamp,
        rows: i64,
        mark: Option<&str>,
    ) {
        let mark =
            mark.map(|step| Mark { run: "run-1".parse().unwrap(), step: step.to_owned(), epoch: Epoch(1) });
        self.log.push((key.position.0, site.clone(), table.to_owned(), rows));
        *self.rows.entry((site.clone(), table.to_owned())).or_default() += rows;
        self.pending.push(Pending { site, table: table.to_owned(), key, at, rows, mark });
    }

    pub(crate) fn poll(&mut self, seconds: f64) -> Boundary {
        self.poll_with(seconds, vec![])
    }

    /// Ends a segment here; `events` concern whole tables.
    pub(crate) fn poll_with(&mut self, seconds: f64, events: Vec<(&str, TableEventKind)>) -> Boundary {
        let boundary = Boundary { position: Position(self.position), at: at(seconds) };
        let number = self.history.segments.len() as u32;
        let pending = std::mem::take(&mut self.pending);
        let marks: BTreeSet<&Mark> = pending.iter().filter_map(|change| change.mark.as_ref()).collect();
        let marks: Vec<Mark> = marks.into_iter().cloned().collect();
        let mut groups: BTreeMap<(SiteId, String, Option<Mark>), Vec<&Pending>> = BTreeMap::new();
        for change in &pending {
            let place = (change.site.clone(), change.table.clone(), change.mark.clone());
            groups.entry(place).or_default().push(change);
        }
        for ((site, table, mark), changes) in groups {
            let mark = mark.map(|mark| marks.iter().position(|known| *known == mark).unwrap() as u32);
            let chunk =
                self.chunk(changes.iter().map(|change| (change.key.position.0, change.rows)).collect());
            let stamps = |deletes_only: bool| {
                let stamps: Vec<ChangeStamp> = changes
                    .iter()
                    .filter(|change| !deletes_only || change.rows < 0)
                    .map(|change| ChangeStamp { key: change.key, at: change.at })
                    .collect();
                Some((*stamps.first()?, *stamps.last()?))
            };
            let frame = LogFrame {
                table: self.table_number(&table),
                mark,
                kind: FrameKind::Changes,
                chunks: vec![chunk],
                inserts: changes.iter().filter(|change| change.rows > 0).count() as u64,
                updates: 0,
                deletes: changes.iter().filter(|change| change.rows < 0).count() as u64,
                span: stamps(false),
                deletions: stamps(true),
                rows_digest: None,
                place: None,
            };
            self.trace(&site).segments.entry(number).or_default().push(frame);
        }
        for (table, event) in &events {
            self.whole_table(table, *event, number);
        }
        let events = events.into_iter().map(|(table, event)| TableEvent {
            position: None,
            table: table.to_owned(),
            kind: self.tables[self.table_number_or_first(table)].kind.clone(),
            event,
            at: boundary.at,
            reason: "scripted".to_owned(),
        });
        let segment = SegmentInfo {
            sequence: u64::from(number) + 1,
            after: self.last,
            boundary,
            data: Some(self.object(&format!("log-{number}"))),
            table_events: events.collect(),
            commits: Vec::new(),
            tables: self.tables.clone().into(),
            marks,
            clock_offset_micros: self.clock_offset_micros,
        };
        self.history.segments.push(segment);
        self.last = boundary;
        boundary
    }

    fn table_number_or_first(&self, table: &str) -> usize {
        self.tables.iter().position(|known| known.def.name == table).unwrap_or(0)
    }

    fn whole_table(&mut self, table: &str, event: TableEventKind, segment: u32) {
        let of_table: Vec<(SiteId, i64)> = self
            .rows
            .iter()
            .filter(|((_, name), rows)| name == table && **rows > 0)
            .map(|((site, _), rows)| (site.clone(), *rows))
            .collect();
        match event {
            TableEventKind::Reread => {
                for (site, rows) in of_table {
                    let chunk = self.base_chunk(&site, table, rows);
                    let frame = LogFrame {
                        table: self.table_number(table),
                        mark: None,
                        kind: FrameKind::Rows,
                        chunks: vec![chunk],
                        inserts: rows as u64,
                        updates: 0,
                        deletes: 0,
                        span: None,
                        deletions: None,
                        rows_digest: Some(Digest([1; 32])),
                        place: None,
                    };
                    self.trace(&site).segments.entry(segment).or_default().push(frame);
                }
            }
            TableEventKind::Dropped | TableEventKind::Truncated => {
                for (site, rows) in of_table {
                    self.log.push((self.position, site.clone(), table.to_owned(), -rows));
                    self.rows.insert((site, table.to_owned()), 0);
                }
            }
            TableEventKind::Undeclared => {}
        }
    }

    /// A change that no trigger saw: only a whole reading of the table shows it.
    pub(crate) fn unseen(&mut self, site_name: &str, table: &str, rows: i64) -> &mut Self {
        self.log.push((self.position, site(site_name), table.to_owned(), rows));
        *self.rows.entry((site(site_name), table.to_owned())).or_default() += rows;
        self
    }

    pub(crate) fn snapshot(&mut self, seconds: f64) -> Boundary {
        let boundary = Boundary { position: Position(self.position), at: at(seconds) };
        let number = self.history.snapshots.len() as u32;
        let held: Vec<((SiteId, String), i64)> = self
            .rows
            .iter()
            .filter(|(_, rows)| **rows > 0)
            .map(|(place, rows)| (place.clone(), *rows))
            .collect();
        for ((site, table), rows) in held {
            let chunk = self.base_chunk(&site, &table, rows);
            let slice = TableSlice {
                table: self.table_number(&table),
                pack: 0,
                chunks: vec![chunk],
                rows_digest: Digest([2; 32]),
            };
            self.trace(&site).snapshots.entry(number).or_default().push(slice);
        }
        let info = SnapshotInfo {
            snapshot: SnapshotId::new(format!("{:020}-{number:08x}", self.position)).unwrap(),
            boundary,
            tables: self.tables.clone(),
            packs: vec![self.object(&format!("pack-{number}"))],
            beside: muster_types::snapshot::Beside::default(),
            folded_from: None,
        };
        self.history.snapshots.push(info);
        if self.history.segments.is_empty() {
            self.last = boundary;
            self.pending.clear();
        }
        boundary
    }

    fn base_chunk(&mut self, site: &SiteId, table: &str, rows: i64) -> Chunk {
        let of = |entry: &&(u64, SiteId, String, i64)| &entry.1 == site && entry.2 == table;
        let contents = self.log.iter().filter(of).map(|entry| (entry.0, entry.3)).collect();
        Chunk { rows: rows as u64, ..self.chunk(contents) }
    }

    fn chunk(&mut self, contents: Vec<(u64, i64)>) -> Chunk {
        self.chunks += 1;
        let rows = contents.len() as u64;
        self.contents.insert(self.chunks, contents);
        Chunk { offset: self.chunks, bytes: 100, raw_bytes: 1_000, rows, digest: Digest([0; 32]) }
    }

    fn object(&self, name: &str) -> ObjectInfo {
        let key = format!("{}/{}/{name}", self.shard, self.number);
        ObjectInfo { digest: Digest::of(key.as_bytes()), key, bytes: 1_000_000 }
    }

    fn trace(&mut self, site: &SiteId) -> &mut SiteTrace {
        let (shard, incarnation) = (self.shard.clone(), self.number);
        self.traces.entry(site.clone()).or_insert_with(|| SiteTrace {
            shard,
            incarnation,
            snapshots: BTreeMap::new(),
            segments: BTreeMap::new(),
            unread: BTreeSet::new(),
        })
    }

    /// Adds a table, or replaces the definition of one.
    pub(crate) fn define(&mut self, kind_name: &str, table: &str, column: &str) -> &mut Self {
        let mut defined = captured_table(kind(kind_name), table, "");
        defined.def.columns[2].name = column.to_owned();
        self.tables.retain(|known| known.def.name != table);
        self.tables.push(defined);
        self
    }
}

/// The catalog of scripts; incarnations of one shard in their order.
pub(crate) fn catalog(scripts: &[&Script]) -> Catalog {
    let mut catalog = Catalog {
        repository: "test".to_owned(),
        read_at: at(1e6),
        shards: BTreeMap::new(),
        sites: BTreeMap::new(),
        unowned: Vec::new(),
    };
    for script in scripts {
        catalog.shards.entry(script.shard.clone()).or_default().incarnations.push(script.history.clone());
        for (site, trace) in &script.traces {
            catalog.sites.entry(site.clone()).or_default().traces.push(trace.clone());
        }
    }
    catalog
}

/// A site as each test wants it: one row in every table, on a shard with a first snapshot.
pub(crate) fn populate(script: &mut Script, site_name: &str) {
    for table in script.tables.clone() {
        let rows = if table.def.name == "sites" { 1 } else { 10 };
        script.change(site_name, &table.def.name, 0.0, rows);
    }
}

pub(crate) fn asked(site_name: &str, seconds: f64) -> IncidentSite {
    IncidentSite {
        site: site(site_name),
        target: at(seconds),
        outage_at: None,
        before: BTreeMap::new(),
        note: None,
    }
}

pub(crate) fn before(script: &Script, position: u64) -> BeforePosition {
    BeforePosition {
        shard: script.shard.clone(),
        incarnation: script.history.incarnation.clone(),
        position: Position(position),
    }
}

pub(crate) fn request(sites: Vec<IncidentSite>) -> PlanRequest {
    let incident = Incident {
        format: 1,
        title: "test".to_owned(),
        declared_at: at(1_000.0),
        id_source: "test".to_owned(),
        sites,
    };
    PlanRequest {
        incident,
        proof: ProofLevel::Marked,
        overwrite: BTreeSet::new(),
        accept_block: BTreeSet::new(),
        accept_gap: BTreeSet::new(),
        placement: muster_types::request::Placement::default(),
    }
}
