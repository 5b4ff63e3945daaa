//! A shard file, a repository in memory, and a naive reading of the repository to compare with the file.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that meets an error fails"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use muster_capture::{CaptureEvent, Events, ShardCapture, SourceFactory};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{MemoryObjects, Objects, Repository};
use muster_rows::{ChangeReader, Class, Field, Op, Row, RowBuilder, RowReader};
use muster_stores::capture::{
    CaptureError, CaptureSource, ChangeSink, Installed, Polled, ShardState, SnapshotSink,
};
use muster_stores::sqlite::capture::SqliteSource;
use muster_types::segment::{FrameKind, TableEventKind};
use muster_types::snapshot::{Chunk, ObjectInfo};
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use muster_types::{Boundary, ChangeKey, Digest, Incarnation, Position, ShardName, SiteId, Timestamp};
use rusqlite::Connection;
use tempfile::TempDir;

pub type Rows = BTreeMap<(Option<SiteId>, String), BTreeMap<String, Row>>;

const SCHEMA: &str = "
PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
CREATE TABLE issues(id INTEGER PRIMARY KEY, site TEXT, title TEXT UNIQUE);
CREATE TABLE comments(id INTEGER PRIMARY KEY, issue INTEGER REFERENCES issues(id) ON DELETE CASCADE ON UPDATE CASCADE, body);
INSERT INTO issues VALUES (1, 'a', 'one'), (2, 'b', 'two'); INSERT INTO comments VALUES (10, 1, 'x'), (20, 2, NULL);
";

pub fn declared() -> BTreeMap<String, TableConfig> {
    let kind: muster_types::Kind = "metadata".parse().unwrap();
    let tenant = Owner::Tenant { column: "site".into() };
    let parent = Owner::Parent { column: "issue".into(), table: "issues".into(), key: "id".into() };
    BTreeMap::from([
        (
            "issues".to_owned(),
            TableConfig { kind: kind.clone(), owner: tenant, migrations: vec![], harmless_triggers: vec![] },
        ),
        (
            "comments".to_owned(),
            TableConfig { kind, owner: parent, migrations: vec![], harmless_triggers: vec![] },
        ),
    ])
}

/// How many acknowledgements and beginnings fail: before they do anything, and after.
#[derive(Default)]
pub struct Crashes {
    pub before: AtomicU32,
    pub after: AtomicU32,
    pub before_begin: AtomicU32,
    pub after_begin: AtomicU32,
    /// What happens once, right after a state was read.
    pub behind_state: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

fn take(counter: &AtomicU32) -> Result<(), CaptureError> {
    match counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(CaptureError::transient("planted crash", "none")),
        Err(_) => Ok(()),
    }
}

/// A source whose acknowledgements and beginnings can be made to fail.
pub struct Crashing<S> {
    pub inner: S,
    pub crashes: Arc<Crashes>,
}

impl<S: CaptureSource> CaptureSource for Crashing<S> {
    fn init(&mut self) -> Result<Installed, CaptureError> {
        self.inner.init()
    }

    fn remove(&mut self) -> Result<(), CaptureError> {
        self.inner.remove()
    }

    fn state(&mut self) -> Result<ShardState, CaptureError> {
        let state = self.inner.state();
        let happens = self.crashes.behind_state.lock().unwrap().take();
        happens.into_iter().for_each(|happens| happens());
        state
    }

    fn begin_incarnation(&mut self, incarnation: &Incarnation) -> Result<(), CaptureError> {
        take(&self.crashes.before_begin)?;
        self.inner.begin_incarnation(incarnation)?;
        take(&self.crashes.after_begin)
    }

    fn snapshot(
        &mut self,
        not_before: Boundary,
        sink: &mut dyn SnapshotSink,
    ) -> Result<Boundary, CaptureError> {
        self.inner.snapshot(not_before, sink)
    }

    fn poll(
        &mut self,
        after: Boundary,
        watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        self.inner.poll(after, watermark, sink)
    }

    fn change_at(&mut self, position: Position) -> Result<Option<muster_types::Timestamp>, CaptureError> {
        self.inner.change_at(position)
    }

    fn acknowledge(&mut self, upto: Position, head: (u64, Digest)) -> Result<(), CaptureError> {
        take(&self.crashes.before)?;
        self.inner.acknowledge(upto, head)?;
        take(&self.crashes.after)
    }

    fn session(&self) -> BTreeMap<String, String> {
        self.inner.session()
    }

    fn clock_offset_micros(&mut self) -> Result<(i64, u64), CaptureError> {
        self.inner.clock_offset_micros()
    }
}

pub struct World {
    pub folder: TempDir,
    pub path: PathBuf,
    pub conn: Connection,
    pub memory: Arc<MemoryObjects>,
    pub repository: Repository,
    pub shard: ShardName,
    pub crashes: Arc<Crashes>,
    pub events: Arc<Mutex<Vec<CaptureEvent>>>,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        SqliteSource::new(&path, declared()).init().unwrap();
        let memory = Arc::new(MemoryObjects::new());
        let repository = Repository::create(memory.clone(), Timestamp::EPOCH).await.unwrap();
        let shard = ShardName::new("s").unwrap();
        Self {
            folder,
            path,
            conn,
            memory,
            repository,
            shard,
            crashes: Arc::default(),
            events: Arc::default(),
        }
    }

    pub fn run(&self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    pub fn factory(&self) -> SourceFactory {
        let (path, crashes) = (self.path.clone(), Arc::clone(&self.crashes));
        Arc::new(move || {
            Box::new(Crashing { inner: SqliteSource::new(&path, declared()), crashes: Arc::clone(&crashes) })
        })
    }

    pub fn listener(&self) -> Events {
        let events = Arc::clone(&self.events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    }

    /// What a new process would be.
    pub fn capture(&self) -> ShardCapture {
        self.capture_with(&self.repository)
    }

    pub fn capture_with(&self, repository: &Repository) -> ShardCapture {
        ShardCapture::new(repository.clone(), self.shard.clone(), self.factory(), None, self.listener())
    }

    pub fn happened(&self, wanted: impl Fn(&CaptureEvent) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }

    /// What the shard holds.
    pub fn truth(&self) -> Rows {
        let mut all = Rows::new();
        let queries = [
            ("issues", "SELECT site, id, site, title FROM issues"),
            (
                "comments",
                "SELECT i.site, c.id, c.issue, c.body FROM comments c LEFT JOIN issues i ON i.id = c.issue",
            ),
        ];
        for (table, sql) in queries {
            let mut statement = self.conn.prepare(sql).unwrap();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let site: Option<String> = row.get(0).unwrap();
                let site = site.and_then(|site| SiteId::new(site).ok());
                let row = muster_stores::sqlite::value::read_row(row, 1, 3, &mut RowBuilder::new()).unwrap();
                all.entry((site, table.to_owned())).or_default().insert(format!("{:?}", row.get(0)), row);
            }
        }
        all
    }

    /// As [`recorded`].
    pub async fn recorded(&self) -> (Boundary, Rows) {
        recorded(&self.repository, &self.memory, &self.shard).await
    }

    pub async fn compare(&self) {
        assert_eq!(self.recorded().await.1, self.truth());
    }
}

fn apply(rows: &mut BTreeMap<String, Row>, op: Op) {
    let (old, new) = match op {
        Op::Insert { new } => (None, Some(new)),
        Op::Update { old, new } => (Some(old), Some(new)),
        Op::Delete { old } => (Some(old), None),
        Op::Truncate => panic!("SQLite has no truncate"),
    };
    if let Some(old) = old {
        let before = rows.remove(&format!("{:?}", old.get(0))).expect("a row before");
        // PostgreSQL's log repeats only the replica identity.
        let same = |(before, old): (Field<'_>, Field<'_>)| old.class == Class::Unchanged || before == old;
        assert!(before.fields().zip(old.fields()).all(same), "{before:?} {old:?}");
    }
    if let Some(new) = new {
        assert_eq!(rows.insert(format!("{:?}", new.get(0)), new), None);
    }
}

/// What the last incarnation in the repository adds up to, strictly: no change twice, none missing.
pub async fn recorded(
    repository: &Repository,
    memory: &MemoryObjects,
    shard: &ShardName,
) -> (Boundary, Rows) {
    let query = CatalogQuery { sites: Sites::All, shards: None };
    let catalog = catalog::read(repository, &query, Timestamp::EPOCH).await.unwrap();
    let index = catalog.shards[shard].incarnations.len() - 1;
    let history = &catalog.shards[shard].incarnations[index];
    let mut rows = Rows::new();
    let snapshot = history.snapshots.first().unwrap();
    let mut boundary = snapshot.boundary;
    for (site, trace) in catalog.sites.iter().flat_map(|(site, found)| {
        found
            .traces
            .iter()
            .filter(|trace| trace.incarnation as usize == index)
            .map(move |trace| (site, trace))
    }) {
        for slice in trace.snapshots.get(&0).into_iter().flatten() {
            let table = &snapshot.tables[slice.table as usize];
            let text = text_of(memory, &snapshot.packs[slice.pack as usize], &slice.chunks).await;
            load(&mut rows, Some(site.clone()), table, &text);
        }
    }
    let mut position = boundary.position;
    for (number, segment) in history.segments.iter().enumerate() {
        assert_eq!(segment.after.position, position, "segment {number} does not continue");
        position = segment.boundary.position;
        boundary = segment.boundary;
        for event in &segment.table_events {
            assert_eq!(event.event, TableEventKind::Reread);
            rows.retain(|(_, table), _| *table != event.table);
        }
        let mut changes: BTreeMap<(SiteId, String), BTreeMap<ChangeKey, Op>> = BTreeMap::new();
        for (site, found) in &catalog.sites {
            let traces = found.traces.iter().filter(|trace| trace.incarnation as usize == index);
            let number = u32::try_from(number).unwrap();
            for frame in traces.flat_map(|trace| trace.segments.get(&number).into_iter().flatten()) {
                let table = &segment.tables[frame.table as usize];
                let text = text_of(memory, segment.data.as_ref().unwrap(), &frame.chunks).await;
                if frame.kind == FrameKind::Rows {
                    load(&mut rows, Some(site.clone()), table, &text);
                    continue;
                }
                let mut reader = ChangeReader::new(table.def.stored_columns().count());
                let of = changes.entry((site.clone(), table.def.name.clone())).or_default();
                for change in reader.changes(&text).map(Result::unwrap) {
                    assert!(of.insert(change.stamp.key, change.op).is_none());
                }
            }
        }
        for ((site, table), changes) in changes {
            let rows = rows.entry((Some(site), table)).or_default();
            changes.into_values().for_each(|op| apply(rows, op));
        }
    }
    rows.retain(|_, rows| !rows.is_empty());
    (boundary, rows)
}

fn load(rows: &mut Rows, site: Option<SiteId>, table: &CapturedTable, text: &[u8]) {
    let mut reader = RowReader::new(table.def.stored_columns().count());
    let of = rows.entry((site, table.def.name.clone())).or_default();
    for row in reader.rows(text).map(Result::unwrap) {
        assert!(of.insert(format!("{:?}", row.get(0)), row).is_none());
    }
}

async fn text_of(memory: &MemoryObjects, object: &ObjectInfo, chunks: &[Chunk]) -> Vec<u8> {
    let body = memory.get(&object.key).await.unwrap().unwrap();
    let mut text = Vec::new();
    for chunk in chunks {
        let from = usize::try_from(chunk.offset).unwrap();
        let bytes = &body[from..from + usize::try_from(chunk.bytes).unwrap()];
        text.extend(zstd::stream::decode_all(bytes).unwrap());
    }
    text
}
