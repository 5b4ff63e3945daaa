//! A shard under capture with a naive replay beside it: what the snapshot and the changes add up to must equal, at
//! every boundary, what plain joins read from the shard.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that meets an error fails"
)]

#[path = "../owned/mod.rs"]
mod owned;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use muster_rows::{Change, Op, Row, RowBuilder};
use muster_stores::capture::{CaptureError, CaptureSource, ChangeSink, Polled, SnapshotSink};
use muster_stores::sqlite::capture::SqliteSource;
use muster_stores::sqlite::schema::{quote, read_table};
use muster_stores::sqlite::value::read_row;
use muster_types::segment::{Commit, Mark, TableEvent, TableEventKind};
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use muster_types::{Boundary, ChangeKey, Digest, Incarnation, Position, SiteId, Timestamp};
use rusqlite::Connection;
use tempfile::TempDir;

pub use owned::{Own, config};

/// (site, table) → key → row.
pub type Rows = BTreeMap<(Option<SiteId>, String), BTreeMap<String, Row>>;

/// Replays what capture delivers, strictly: an insert must be new, a deleted or updated row must be as the change says.
#[derive(Default)]
pub struct Replay {
    pub rows: Rows,
    pub events: Vec<TableEvent>,
    tables: Vec<CapturedTable>,
    changes: BTreeMap<(Option<SiteId>, usize), BTreeMap<ChangeKey, Op>>,
    groups: BTreeSet<(Option<SiteId>, usize, Option<Mark>)>,
    group: Option<(Option<SiteId>, usize, Option<Mark>)>,
    last_key: Option<ChangeKey>,
    last_slice: Option<(Option<SiteId>, usize)>,
    rereading: bool,
    pub log: Vec<(Option<SiteId>, String, Change)>,
}

fn key_of(table: &CapturedTable, row: &Row) -> String {
    assert_eq!(row.len(), table.def.stored_columns().count(), "{} {row:?}", table.def.name);
    table.def.key_indexes().iter().map(|index| format!("{:?}|", row.get(*index).unwrap())).collect()
}

impl Replay {
    fn begin(&mut self) {
        self.tables.clear();
        self.groups.clear();
        self.group = None;
        self.last_slice = None;
        self.rereading = false;
        self.log.clear();
    }

    fn slice(&mut self, site: Option<&SiteId>, table: usize, row: &Row) {
        let slice = (site.cloned(), table);
        assert!(
            self.last_slice.as_ref().is_none_or(|last| *last <= slice),
            "{:?} after {slice:?}",
            self.last_slice
        );
        let known = &self.tables[table];
        let key = key_of(known, row);
        let of = self.rows.entry((site.cloned(), known.def.name.clone())).or_default();
        assert!(of.insert(key.clone(), row.clone()).is_none(), "row {key} of {} comes twice", known.def.name);
        self.last_slice = Some(slice);
    }

    fn apply(&mut self) {
        for ((site, table), changes) in std::mem::take(&mut self.changes) {
            let table = &self.tables[table];
            let rows = self.rows.entry((site.clone(), table.def.name.clone())).or_default();
            for (at, op) in changes {
                let what = || format!("{site:?} {} at {at:?}: {op:?}", table.def.name);
                let (old, new) = match &op {
                    Op::Insert { new } => (None, Some(new)),
                    Op::Update { old, new } => (Some(old), Some(new)),
                    Op::Delete { old } => (Some(old), None),
                    Op::Truncate => panic!("SQLite has no truncate"),
                };
                if let Some(old) = old {
                    let gone = rows.remove(&key_of(table, old));
                    assert_eq!(gone.as_ref(), Some(old), "{}", what());
                }
                if let Some(new) = new {
                    let before = rows.insert(key_of(table, new), new.clone());
                    assert_eq!(before, None, "{}", what());
                }
            }
        }
        self.rows.retain(|_, rows| !rows.is_empty());
    }
}

impl SnapshotSink for Replay {
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError> {
        self.begin();
        self.rows.clear();
        self.tables = tables.to_vec();
        Ok(())
    }

    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.slice(site, table, row);
        Ok(())
    }
}

impl ChangeSink for Replay {
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError> {
        assert!(!self.tables.iter().any(|known| known.def.name == table.def.name), "table twice");
        self.tables.push(table.clone());
        Ok(())
    }

    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: Change,
    ) -> Result<(), CaptureError> {
        assert!(!self.rereading, "a change after reread rows");
        let group = (site.cloned(), table, mark.cloned());
        if self.group.as_ref() != Some(&group) {
            assert!(self.groups.insert(group.clone()), "{group:?} does not come together");
            self.group = Some(group);
            self.last_key = None;
        }
        assert!(self.last_key < Some(change.stamp.key), "keys do not ascend");
        self.last_key = Some(change.stamp.key);
        self.log.push((site.cloned(), self.tables[table].def.name.clone(), change.clone()));
        let of = self.changes.entry((site.cloned(), table)).or_default();
        assert!(of.insert(change.stamp.key, change.op).is_none(), "a change twice");
        Ok(())
    }

    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.rereading = true;
        self.slice(site, table, row);
        Ok(())
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        if matches!(event.event, TableEventKind::Reread | TableEventKind::Dropped) {
            self.rows.retain(|(_, table), _| *table != event.table);
        }
        self.events.push(event);
        Ok(())
    }

    fn commit(&mut self, _commit: Commit) -> Result<(), CaptureError> {
        Ok(())
    }
}

/// A file under capture.
pub struct Shard {
    pub folder: TempDir,
    pub path: PathBuf,
    pub conn: Connection,
    pub declared: BTreeMap<String, TableConfig>,
    pub source: SqliteSource,
    pub replay: Replay,
    pub boundary: Boundary,
    head: u64,
}

pub fn writer(path: &std::path::Path, recursive: bool) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch(&format!(
        "PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF; PRAGMA recursive_triggers = {recursive};"
    ))
    .unwrap();
    conn
}

impl Shard {
    /// A shard with this schema and data, with capture installed, begun and its snapshot replayed.
    pub fn new(sql: &str, tables: &[(&str, Own)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.db");
        let conn = writer(&path, false);
        conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        conn.execute_batch(sql).unwrap();
        let declared: BTreeMap<String, TableConfig> =
            tables.iter().map(|(name, own)| ((*name).to_owned(), config(own))).collect();
        let source = SqliteSource::new(&path, declared.clone());
        let boundary = Boundary { position: Position(0), at: Timestamp::EPOCH };
        let mut shard =
            Self { folder, path, conn, declared, source, replay: Replay::default(), boundary, head: 0 };
        shard.source.init().unwrap();
        shard.begin("0001-test");
        shard
    }

    /// Begins an incarnation with a snapshot.
    pub fn begin(&mut self, incarnation: &str) {
        self.source.begin_incarnation(&Incarnation::new(incarnation).unwrap()).unwrap();
        self.boundary = self.source.snapshot(self.boundary, &mut self.replay).unwrap();
        self.compare();
    }

    /// Runs SQL as the application does.
    pub fn run(&mut self, sql: &str) -> &mut Self {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
        self
    }

    /// Polls and compares, without acknowledging.
    pub fn poll(&mut self) -> Polled {
        self.replay.begin();
        let polled = self.source.poll(self.boundary, false, &mut self.replay).unwrap();
        self.replay.apply();
        assert!(polled.boundary.at >= self.boundary.at && polled.boundary.position >= self.boundary.position);
        self.boundary = polled.boundary;
        self.compare();
        polled
    }

    /// Polls without replaying, for states that the plain joins cannot judge.
    pub fn poll_unchecked(&mut self) -> Vec<String> {
        self.replay.begin();
        self.boundary = self.source.poll(self.boundary, false, &mut self.replay).unwrap().boundary;
        self.replay.changes.clear();
        self.log()
    }

    pub fn acknowledge(&mut self) {
        self.head += 1;
        self.source.acknowledge(self.boundary.position, (self.head, Digest::of(b"head"))).unwrap();
    }

    /// Polls, compares, acknowledges, and polls once more.
    pub fn check(&mut self) -> &mut Self {
        self.poll();
        self.acknowledge();
        assert_eq!(self.poll().changes, 0);
        self
    }

    pub fn compare(&self) {
        let truth = self.truth();
        if self.replay.rows != truth {
            let keys: BTreeSet<_> = self.replay.rows.keys().chain(truth.keys()).collect();
            for key in keys {
                let (found, wanted) = (self.replay.rows.get(key), truth.get(key));
                if found != wanted {
                    eprintln!("{key:?}\n  replayed {found:?}\n  truth    {wanted:?}");
                }
            }
            panic!("the replay differs from the shard");
        }
    }

    /// What the shard holds, by plain joins to the tenant column.
    pub fn truth(&self) -> Rows {
        let mut all = Rows::new();
        for (name, config) in &self.declared {
            let Some(def) = read_table(&self.conn, name).unwrap() else { continue };
            let columns: Vec<String> =
                def.stored_columns().map(|column| format!("t0.{}", quote(&column.name))).collect();
            let (site, joins) = self.site_join(config);
            let sql = format!("SELECT {site}, {} FROM {} t0{joins}", columns.join(", "), quote(name));
            let mut statement = self.conn.prepare(&sql).unwrap();
            let mut rows = statement.query([]).unwrap();
            let table = CapturedTable { kind: config.kind.clone(), owner: config.owner.clone(), def };
            while let Some(row) = rows.next().unwrap() {
                let site = match row.get_ref(0).unwrap() {
                    rusqlite::types::ValueRef::Integer(number) => SiteId::new(number.to_string()).ok(),
                    rusqlite::types::ValueRef::Text(text) => {
                        std::str::from_utf8(text).ok().and_then(|text| SiteId::new(text).ok())
                    }
                    _ => None,
                };
                let row = read_row(row, 1, columns.len(), &mut RowBuilder::new()).unwrap();
                all.entry((site, name.clone())).or_default().insert(key_of(&table, &row), row);
            }
        }
        all
    }

    fn site_join(&self, config: &TableConfig) -> (String, String) {
        let (mut joins, mut at, mut owner) = (String::new(), 0, &config.owner);
        loop {
            match owner {
                Owner::Tenant { column } => return (format!("t{at}.{}", quote(column)), joins),
                Owner::Site { .. } | Owner::Reference => return ("NULL".to_owned(), joins),
                Owner::Parent { column, table, key } => {
                    let next = at + 1;
                    joins.push_str(&format!(
                        " LEFT JOIN {} t{next} ON t{next}.{} = t{at}.{}",
                        quote(table),
                        quote(key),
                        quote(column)
                    ));
                    owner = &self.declared[table].owner;
                    at = next;
                }
            }
        }
    }

    /// What was logged by the last poll, in words.
    pub fn log(&self) -> Vec<String> {
        let mut log: Vec<_> = self.replay.log.iter().collect();
        log.sort_by_key(|(.., change)| change.stamp.key);
        let one = |(site, table, change): &&(Option<SiteId>, String, Change)| {
            let op = match change.op {
                Op::Insert { .. } => "insert",
                Op::Update { .. } => "update",
                Op::Delete { .. } => "delete",
                Op::Truncate => "truncate",
            };
            format!("{op} {table} {}", site.as_ref().map_or("-", SiteId::as_str))
        };
        log.iter().map(one).collect()
    }
}
