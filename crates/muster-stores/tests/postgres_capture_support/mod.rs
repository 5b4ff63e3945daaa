//! A database under capture with a naive replay beside it: what the snapshot and the changes add up to must equal, at
//! every commit, what plain joins read from the database right after it.
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

use muster_rows::{Change, Class, Op, Row};
use muster_services::Postgres;
use muster_stores::capture::{CaptureError, CaptureSource, ChangeSink, Polled, SnapshotSink};
use muster_stores::postgres::PostgresSource;
use muster_stores::postgres::schema::quote;
use muster_types::segment::{Commit, Mark, TableEvent, TableEventKind};
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, SiteId, Timestamp};
use postgres::{Client, NoTls, SimpleQueryMessage};

pub use owned::{Own, config};

/// NULL, or text.
pub type Fields = Vec<Option<String>>;

/// (site, table) → key → row.
pub type Rows = BTreeMap<(Option<String>, String), BTreeMap<Vec<String>, Fields>>;

/// One change as it was delivered.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub site: Option<String>,
    pub table: usize,
    pub mark: Option<Mark>,
    pub change: Change,
}

/// Collects what capture delivers and holds it against the contract of the sinks.
#[derive(Default)]
pub struct Replay {
    pub rows: Rows,
    pub events: Vec<TableEvent>,
    pub commits: Vec<Commit>,
    pub delivered: Vec<Delivered>,
    reread: Rows,
    tables: Vec<CapturedTable>,
    last_slice: Option<(Option<SiteId>, usize)>,
}

fn fields(row: &Row, before: Option<&Fields>) -> Fields {
    let field = |(index, field): (usize, muster_rows::Field<'_>)| match field.class {
        Class::Null => None,
        Class::Unchanged => before.expect("a row before")[index].clone(),
        _ => Some(String::from_utf8(field.bytes.to_vec()).unwrap()),
    };
    row.fields().enumerate().map(field).collect()
}

impl Replay {
    /// Forgets what the last poll delivered.
    pub fn begin(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        *self = Self { rows, ..Self::default() };
    }

    fn key(&self, table: usize, row: &Row) -> Vec<String> {
        let def = &self.tables[table].def;
        assert_eq!(row.len(), def.stored_columns().count(), "{} {row:?}", def.name);
        let text = |index: &usize| {
            let field = row.get(*index).unwrap();
            assert_eq!(field.class, Class::Text, "a key of {}: {row:?}", def.name);
            String::from_utf8(field.bytes.to_vec()).unwrap()
        };
        def.key_indexes().iter().map(text).collect()
    }

    fn slice(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> (Option<String>, String) {
        let slice = (site.cloned(), table);
        let last = self.last_slice.replace(slice.clone());
        assert!(last.as_ref().is_none_or(|last| *last <= slice), "{last:?} before {slice:?}");
        assert!(row.fields().all(|field| field.class != Class::Unchanged));
        (site.map(|site| site.as_str().to_owned()), self.tables[table].def.name.clone())
    }

    /// Applies one change strictly.
    fn apply(&mut self, change: &Delivered) {
        let what = format!("{:?} {}", change, self.tables[change.table].def.name);
        let (old, new) = match &change.change.op {
            Op::Insert { new } => (None, Some(new)),
            Op::Update { old, new } => (Some(old), Some(new)),
            Op::Delete { old } => (Some(old), None),
            Op::Truncate => panic!("truncation is an event"),
        };
        let old_key = old.map(|old| self.key(change.table, old));
        let new_key = new.map(|new| self.key(change.table, new));
        let of = (change.site.clone(), self.tables[change.table].def.name.clone());
        let rows = self.rows.entry(of).or_default();
        let before = old_key.map(|key| rows.remove(&key).unwrap_or_else(|| panic!("no such row: {what}")));
        if let (Some(old), Some(before)) = (old, &before) {
            assert_eq!(&fields(old, Some(before)), before, "{what}");
        }
        if let (Some(new), Some(key)) = (new, new_key) {
            let twice = rows.insert(key, fields(new, before.as_ref()));
            assert!(twice.is_none(), "the row is there: {what}");
        }
        self.rows.retain(|_, rows| !rows.is_empty());
    }
}

impl SnapshotSink for Replay {
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError> {
        *self = Self { tables: tables.to_vec(), ..Self::default() };
        Ok(())
    }

    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        let slice = self.slice(site, table, row);
        let key = self.key(table, row);
        let twice = self.rows.entry(slice).or_default().insert(key, fields(row, None));
        assert!(twice.is_none(), "a row twice");
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
        assert!(self.last_slice.is_none(), "a change after reread rows");
        let site = site.map(|site| site.as_str().to_owned());
        self.delivered.push(Delivered { site, table, mark: mark.cloned(), change });
        Ok(())
    }

    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        let slice = self.slice(site, table, row);
        let key = self.key(table, row);
        let twice = self.reread.entry(slice).or_default().insert(key, fields(row, None));
        assert!(twice.is_none(), "a row twice");
        Ok(())
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        self.events.push(event);
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), CaptureError> {
        assert!(self.commits.last().is_none_or(|last| last.position < commit.position), "commits ascend");
        self.commits.push(commit);
        Ok(())
    }
}

/// A session that prints values as capture's do.
pub fn session(url: &str) -> Client {
    let mut client = Client::connect(url, NoTls).unwrap();
    // The role's own schema is Muster's.
    let settings = "SET search_path = public; SET lock_timeout = '10s'; SET DateStyle = 'ISO, YMD'; SET TimeZone = 'UTC'; SET IntervalStyle = postgres; \
        SET extra_float_digits = 1; SET bytea_output = hex; SET lc_monetary = 'C'; SET client_min_messages = warning";
    client.batch_execute(settings).unwrap();
    client
}

/// A database under capture.
pub struct Shard {
    pub url: String,
    pub conn: Client,
    pub declared: BTreeMap<String, TableConfig>,
    pub source: PostgresSource,
    pub replay: Replay,
    pub boundary: Boundary,
    pub name: ShardName,
    /// State behind each commit, with the end of the log then.
    truths: Vec<(u64, Rows)>,
    /// Commits that were held against a truth.
    pub compared: u64,
    in_parts: bool,
    head: u64,
    /// States that others exported while writers went on, with the place from which the log continues them.
    pub exported: Vec<(u64, Rows)>,
    /// Other sessions write: nobody knows what the database is after a commit but from exported states.
    pub busy: bool,
    /// Exported states that were held against the replay.
    pub exported_compared: u64,
    /// How many times the source was asked by the last poll.
    pub polls: u32,
    pub last_events: Vec<TableEvent>,
    last_log: Vec<String>,
}

impl Shard {
    /// A shard with this schema and data, with capture installed, begun and its snapshot replayed.
    pub fn new(server: &Postgres, sql: &str, tables: &[(&str, Own)]) -> Self {
        let mut shard = Self::uncaptured(server, sql, tables);
        shard.source.init().unwrap();
        shard.begin("0001-test");
        shard
    }

    /// A shard with this schema and data.
    pub fn uncaptured(server: &Postgres, sql: &str, tables: &[(&str, Own)]) -> Self {
        let name = server.create_database("capture").unwrap();
        let url = server.url(&name);
        let mut conn = session(&url);
        conn.batch_execute(sql).unwrap();
        let declared: BTreeMap<String, TableConfig> =
            tables.iter().map(|(name, own)| ((*name).to_owned(), config(own))).collect();
        // Slots have one name in the whole cluster.
        let name = ShardName::new(name).unwrap();
        let source = PostgresSource::new(name.clone(), &url, declared.clone());
        let boundary = Boundary { position: Position(0), at: Timestamp::EPOCH };
        let (replay, truths) = (Replay::default(), Vec::new());
        Self {
            url,
            conn,
            declared,
            source,
            replay,
            boundary,
            name,
            truths,
            compared: 0,
            in_parts: false,
            head: 0,
            exported: Vec::new(),
            busy: false,
            exported_compared: 0,
            polls: 0,
            last_events: Vec::new(),
            last_log: Vec::new(),
        }
    }

    /// Another capture of the same shard, as after a crash.
    pub fn restart(&mut self) {
        self.source = PostgresSource::new(self.name.clone(), &self.url, self.declared.clone());
    }

    /// As [`Self::restart`], with one more declared table that the replay does not expect yet.
    pub fn restart_with(&mut self, table: &str, own: &Own) {
        let mut declared = self.declared.clone();
        declared.insert(table.to_owned(), config(own));
        self.source = PostgresSource::new(self.name.clone(), &self.url, declared);
    }

    /// Begins an incarnation with a snapshot.
    pub fn begin(&mut self, incarnation: &str) {
        self.source.begin_incarnation(&Incarnation::new(incarnation).unwrap()).unwrap();
        self.snapshot();
        self.truths.clear();
        self.keep_truth();
        self.compare_live();
    }

    pub fn snapshot(&mut self) {
        self.boundary = self.source.snapshot(self.boundary, &mut self.replay).unwrap();
    }

    /// Runs SQL as the application does, as one transaction, and keeps what the database is then.
    pub fn run(&mut self, sql: &str) -> &mut Self {
        self.conn.batch_execute(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
        self.keep_truth();
        self
    }

    /// Runs SQL that may fail; gives why.
    pub fn run_fails(&mut self, sql: &str) -> Option<String> {
        let failed = self.conn.batch_execute(sql).err().map(|error| format!("{error:?}"));
        self.keep_truth();
        failed
    }

    /// Keeps what the database is, after a commit.
    pub fn keep_truth(&mut self) {
        let row =
            self.conn.query_one("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint", &[]).unwrap();
        let end = row.get::<_, i64>(0).cast_unsigned();
        let truth = self.truth();
        self.truths.push((end, truth));
    }

    /// Polls and compares at every commit, without acknowledging.
    pub fn poll(&mut self) -> Polled {
        self.try_poll(false).unwrap()
    }

    /// As capture does: a poll that ends early is followed by another, and acknowledged. What all of them delivered is
    /// kept.
    pub fn try_poll(&mut self, watermark: bool) -> Result<Polled, CaptureError> {
        let (mut events, mut log, mut changes) = (Vec::new(), Vec::new(), 0);
        self.polls = 0;
        loop {
            let polled = self.poll_once(watermark)?;
            self.polls += 1;
            changes += polled.changes;
            events.extend(self.replay.events.clone());
            log.extend(self.delivered());
            if !polled.more {
                (self.last_events, self.last_log) = (events, log);
                return Ok(Polled { changes, ..polled });
            }
            self.acknowledge();
        }
    }

    fn poll_once(&mut self, watermark: bool) -> Result<Polled, CaptureError> {
        (self.last_events, self.last_log) = (Vec::new(), Vec::new());
        self.replay.begin();
        let rows = self.replay.rows.clone();
        let polled = match self.source.poll(self.boundary, watermark, &mut self.replay) {
            Ok(polled) => polled,
            Err(error) => {
                self.replay = Replay { rows, ..Replay::default() };
                return Err(error);
            }
        };
        assert!(polled.boundary.at >= self.boundary.at && polled.boundary.position >= self.boundary.position);
        self.replay_poll(&polled);
        self.boundary = polled.boundary;
        Ok(polled)
    }

    /// Polls and holds the end against the database, for tables that plain joins saw before they were captured.
    pub fn poll_unchecked(&mut self) {
        self.truths.clear();
        self.keep_truth();
        self.poll();
    }

    /// As [`Self::poll`], for a poll of so much that it comes in several parts.
    pub fn poll_in_parts(&mut self) {
        self.in_parts = true;
        self.poll();
        self.in_parts = false;
    }

    fn replay_poll(&mut self, polled: &Polled) {
        let mut delivered = std::mem::take(&mut self.replay.delivered);
        check_order(&delivered, self.boundary.position, polled.boundary.position, self.in_parts);
        assert_eq!(delivered.len() as u64, polled.changes);
        delivered.sort_by_key(|delivered| delivered.change.stamp.key);
        let again: BTreeSet<String> = self
            .replay
            .events
            .iter()
            .filter(|event| event.event == TableEventKind::Reread)
            .map(|event| event.table.clone())
            .collect();
        if !again.is_empty() {
            assert!(self.replay.commits.is_empty());
        }
        delivered.retain(|delivered| !again.contains(&self.replay.tables[delivered.table].def.name));
        let mut events: Vec<TableEvent> = self.replay.events.clone();
        let placed = |event: &TableEvent| match event.event {
            TableEventKind::Truncated => true,
            TableEventKind::Dropped => event.position.is_some(),
            TableEventKind::Reread | TableEventKind::Undeclared => false,
        };
        events.retain(|event| placed(event) && !again.contains(&event.table));
        let mut points: Vec<Position> = self.replay.commits.iter().map(|commit| commit.position).collect();
        points.push(polled.boundary.position);
        let changed: BTreeSet<Position> = delivered
            .iter()
            .map(|delivered| delivered.change.stamp.key.position)
            .chain(events.iter().map(|event| match event.event {
                // Right before its commit.
                TableEventKind::Truncated => Position(event.position.unwrap().0 + 1),
                _ => event.position.unwrap(),
            }))
            .collect();
        let (mut changes, mut events) = (delivered.iter().peekable(), events.into_iter().peekable());
        for point in points {
            while let Some(change) = changes.next_if(|delivered| delivered.change.stamp.key.position <= point)
            {
                let position = change.change.stamp.key.position;
                if again.is_empty() {
                    self.compare_exported(position);
                }
                while let Some(event) = events.next_if(|event| event.position.unwrap() < position) {
                    self.replay.rows.retain(|(_, table), _| *table != event.table);
                }
                self.replay.apply(change);
            }
            while let Some(event) = events.next_if(|event| event.position.unwrap() <= point) {
                self.replay.rows.retain(|(_, table), _| *table != event.table);
            }
            if point == polled.boundary.position {
                self.end_poll(&again);
                self.exported.retain(|(from, _)| again.is_empty() || *from > point.0);
            }
            if self.busy {
                continue;
            }
            self.compare_at(point, changed.contains(&point));
        }
        self.replay.delivered = delivered;
    }

    fn end_poll(&mut self, again: &BTreeSet<String>) {
        let dropped = |table: &String| {
            self.replay
                .events
                .iter()
                .any(|event| event.table == *table && event.event == TableEventKind::Dropped)
        };
        self.replay.rows.retain(|(_, table), _| !again.contains(table) && !dropped(table));
        self.replay.rows.append(&mut self.replay.reread);
        self.replay.rows.retain(|_, rows| !rows.is_empty());
    }

    /// The replay, which is about to pass to `position`, against exported states up to there.
    fn compare_exported(&mut self, position: Position) {
        while let Some(at) = self.exported.iter().position(|(from, _)| *from <= position.0) {
            let (from, truth) = self.exported.remove(at);
            assert_same(&self.replay.rows, &truth, &format!("the state exported at {from}"));
            self.exported_compared += 1;
        }
    }

    /// The replay against what the database was after the commit at `point`.
    fn compare_at(&mut self, point: Position, is_commit: bool) {
        let behind = self.truths.partition_point(|(end, _)| *end <= point.0);
        // A heartbeat, and the end of a poll that reads tables again, stand for the commit before.
        let number = if is_commit { behind } else { behind.saturating_sub(1) };
        assert_same(&self.replay.rows, &self.truths[number].1, &format!("position {point}"));
        self.compared += 1;
    }

    pub fn acknowledge(&mut self) {
        self.head += 1;
        self.source.acknowledge(self.boundary.position, (self.head, Digest::of(b"head"))).unwrap();
    }

    /// Acknowledges, again where a connection was lost.
    pub fn acknowledge_until(&mut self, until: std::time::Instant) {
        self.head += 1;
        let head = (self.head, Digest::of(b"head"));
        while let Err(error) = self.source.acknowledge(self.boundary.position, head) {
            assert!(error.transient && std::time::Instant::now() < until, "{error}");
        }
    }

    /// Polls, compares, acknowledges, and polls once more.
    pub fn check(&mut self) -> &mut Self {
        self.poll();
        self.compare_live();
        self.acknowledge();
        assert_eq!(self.poll().changes, 0);
        self
    }

    /// The replay against the database of now.
    pub fn compare_live(&mut self) {
        let truth = self.truth();
        assert_same(&self.replay.rows, &truth, "the boundary");
    }

    /// What was delivered by the last poll, in words.
    pub fn log(&self) -> Vec<String> {
        self.last_log.clone()
    }

    fn delivered(&self) -> Vec<String> {
        let one = |delivered: &Delivered| {
            let op = match delivered.change.op {
                Op::Insert { .. } => "insert",
                Op::Update { .. } => "update",
                Op::Delete { .. } => "delete",
                Op::Truncate => "truncate",
            };
            let table = &self.replay.tables[delivered.table].def.name;
            format!("{op} {table} {}", delivered.site.as_deref().unwrap_or("-"))
        };
        self.replay.delivered.iter().map(one).collect()
    }

    /// Events of the last poll, in words.
    pub fn events(&self) -> Vec<String> {
        self.last_events.iter().map(|event| format!("{:?} {}", event.event, event.table)).collect()
    }

    /// What the database holds.
    pub fn truth(&mut self) -> Rows {
        truth_of(&self.declared, &mut self.conn)
    }
}

/// What `conn` sees the database hold, by plain joins to the tenant column.
pub fn truth_of(declared: &BTreeMap<String, TableConfig>, conn: &mut Client) -> Rows {
    let mut all = Rows::new();
    for (name, config) in declared {
        let Some((columns, key)) = columns_of(conn, name) else { continue };
        let list: Vec<String> = columns.iter().map(|column| format!("t0.{}", quote(column))).collect();
        let (site, joins) = site_join(declared, config);
        let sql = format!("SELECT {site}, {} FROM {} t0{joins}", list.join(", "), quote(name));
        for message in conn.simple_query(&sql).unwrap() {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let fields: Fields = (0..columns.len()).map(|at| row.get(at + 1).map(str::to_owned)).collect();
            let site = row.get(0).and_then(|site| SiteId::new(site.trim_end()).ok());
            let key = key.iter().map(|at| fields[*at].clone().unwrap()).collect();
            let of = (site.map(|site| site.as_str().to_owned()), name.clone());
            all.entry(of).or_default().insert(key, fields);
        }
    }
    all
}

/// Stored columns, and which of them are the key; none when there is no such table.
fn columns_of(conn: &mut Client, table: &str) -> Option<(Vec<String>, Vec<usize>)> {
    let sql = "SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 \
        AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum";
    let name = format!("public.{}", quote(table));
    let rows = conn.query(sql, &[&name]).unwrap();
    let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let sql = "SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(n, place), pg_attribute a \
        WHERE i.indrelid = to_regclass($1) AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.n \
        ORDER BY k.place";
    let rows = conn.query(sql, &[&name]).unwrap();
    let key: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let key = key.iter().map(|key| columns.iter().position(|column| column == key).unwrap()).collect();
    (!columns.is_empty()).then_some((columns, key))
}

fn site_join(declared: &BTreeMap<String, TableConfig>, config: &TableConfig) -> (String, String) {
    let (mut joins, mut at, mut owner) = (String::new(), 0, &config.owner);
    loop {
        match owner {
            Owner::Tenant { column } => return (format!("t{at}.{}::text", quote(column)), joins),
            Owner::Site { site } => return (format!("'{}'::text", site.as_str()), joins),
            Owner::Reference => return ("NULL::text".to_owned(), joins),
            Owner::Parent { column, table, key } => {
                let next = at + 1;
                joins.push_str(&format!(
                    " LEFT JOIN {} t{next} ON t{next}.{} = t{at}.{}",
                    quote(table),
                    quote(key),
                    quote(column)
                ));
                owner = &declared[table].owner;
                at = next;
            }
        }
    }
}

/// Changes of one (site, table, mark) come together and ascend; positions lie behind the last poll's end.
fn check_order(delivered: &[Delivered], after: Position, upto: Position, in_parts: bool) {
    let mut seen = BTreeSet::new();
    let mut last: Option<(&Delivered, _)> = None;
    for one in delivered {
        let key = one.change.stamp.key;
        assert!(key.position > after && key.position <= upto, "{key:?} in {after}..={upto}");
        let group = (&one.site, one.table, &one.mark);
        match last {
            Some((before, of)) if of == group => assert!(before.change.stamp.key < key, "keys ascend"),
            _ => assert!(seen.insert(group) || in_parts, "{group:?} does not come together"),
        }
        last = Some((one, group));
    }
    let mut keys: Vec<_> = delivered.iter().map(|one| one.change.stamp.key).collect();
    keys.sort_unstable();
    assert!(keys.windows(2).all(|two| two[0] < two[1]), "a change twice");
}

pub fn assert_same(found: &Rows, wanted: &Rows, what: &str) {
    if found == wanted {
        return;
    }
    let keys: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    for key in keys {
        let (found, wanted) = (found.get(key), wanted.get(key));
        if found != wanted {
            eprintln!("{key:?}\n  replayed {found:?}\n  truth    {wanted:?}");
        }
    }
    panic!("the replay differs from the database at {what}");
}
