//! [`SqliteSource`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::table::CapturedTable;
use muster_types::topology::TableConfig;
use muster_types::{Boundary, Digest, Incarnation, Kind, Position, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::check::{self, Findings};
use super::error::explain;
use super::install;
use super::layout::{Captured, Layout};
use super::rows::{self, ReadError};
use super::{acknowledge, changes};
use crate::capture::{CaptureError, CaptureSource, ChangeSink, Installed, Polled, ShardState, SnapshotSink};
use crate::sqlite::system;

/// How long capture waits for a writer before it tries later.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Times that a poll repairs the shard's triggers before it gives up: each needs a schema change in between.
const REPAIRS_MAX: u32 = 5;
/// Uncertainty of change times, which are whole milliseconds of the same clock.
const CLOCK_UNCERTAINTY_MICROS: u64 = 1_000;

/// A SQLite file as a source of changes.
#[derive(Debug)]
pub struct SqliteSource {
    path: PathBuf,
    declared: BTreeMap<String, TableConfig>,
    snapshot_max: Option<Duration>,
    conn: Option<(FileId, Connection)>,
    /// What the last check found in order, with the schema version that it was made at.
    checked: Option<(i64, Layout, Vec<String>)>,
    /// Pending tables that the last poll delivered, up to its boundary.
    delivered: Option<(Position, Vec<Pending>)>,
    /// Undeclared tables that an event has told of.
    told: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

/// A table that has to be delivered whole, or whose end has to be told.
#[derive(Clone, Debug)]
struct Pending {
    name: String,
    kind: Kind,
    event: TableEventKind,
    reason: String,
    generation: i64,
}

impl SqliteSource {
    /// A source of the file at `path`. `declared` are the tables that the topology declares for the shard's kinds; those
    /// that the file does not have are passed over until it has them. The file is opened at first use.
    pub fn new(path: impl Into<PathBuf>, declared: BTreeMap<String, TableConfig>) -> Self {
        Self {
            path: path.into(),
            declared,
            snapshot_max: None,
            conn: None,
            checked: None,
            delivered: None,
            told: BTreeSet::new(),
        }
    }

    /// Bounds the read transaction of a snapshot, which keeps the write-ahead log from shrinking.
    #[must_use]
    pub fn with_snapshot_max(mut self, limit: Duration) -> Self {
        self.snapshot_max = Some(limit);
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection; opened anew when the path names another file than before.
    fn connect(&mut self) -> Result<&mut Connection, CaptureError> {
        let file = std::fs::metadata(&self.path).map_err(|error| {
            CaptureError::new(
                format!("shard file `{}`: {error}", self.path.display()),
                "check the shard's path in the topology, and that its disk is mounted",
            )
        })?;
        let file = FileId(file.dev(), file.ino());
        if self.conn.as_ref().is_none_or(|(opened, _)| *opened != file) {
            self.conn = None;
            self.checked = None;
            self.delivered = None;
            let conn = open(&self.path).map_err(|error| explain(&self.path, "open it", &error))?;
            self.conn = Some((file, conn));
        }
        match &mut self.conn {
            Some((_, conn)) => Ok(conn),
            None => Err(CaptureError::transient("the connection was lost", "capture tries again")),
        }
    }

    /// Runs `work` on the connection; errors say what was being done.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CaptureError> {
        let path = self.path.clone();
        let result = work(self.connect()?);
        result.map_err(|error| explain(&path, doing, &error))
    }

    fn require_installed(&mut self) -> Result<(), CaptureError> {
        let there = self.with("read its capture state", |conn| {
            Ok(system::has_table(conn, "_muster_state")? && system::has_table(conn, system::TABLE)?)
        })?;
        if there {
            return Ok(());
        }
        Err(CaptureError::new(
            format!("capture is not installed in shard file `{}`", self.path.display()),
            "run `muster capture init`",
        ))
    }

    fn check_mode(&mut self) -> Result<(), CaptureError> {
        let mode = self.with("read its journal mode", |conn| check::journal_mode(conn))?.unwrap_or_default();
        if mode.eq_ignore_ascii_case("wal") {
            return Ok(());
        }
        Err(CaptureError::new(
            format!(
                "shard file `{}` has journal mode `{mode}`, in which readers block writers",
                self.path.display()
            ),
            "run `PRAGMA journal_mode = WAL;` on it once, while no other process uses it",
        ))
    }

    fn refuse(&self, findings: &Findings) -> Result<(), CaptureError> {
        let path = self.path.display();
        if let Some((table, reason)) = findings.refused.first() {
            return Err(CaptureError::new(
                format!("table `{table}` of shard file `{path}` cannot be captured: {reason}"),
                "then run `muster capture init` again",
            ));
        }
        if !findings.undeclared.is_empty() {
            return Err(CaptureError::new(
                format!(
                    "shard file `{path}` has tables that the topology does not declare: {}",
                    findings.undeclared.join(", ")
                ),
                "declare each under [tables.NAME] with its kind and owner; use owner = \"reference\" for tables that belong to no site",
            ));
        }
        Ok(())
    }

    /// Makes triggers anew in one short write transaction.
    fn repair(&mut self) -> Result<Findings, CaptureError> {
        let declared = self.declared.clone();
        self.checked = None;
        self.with("install capture's triggers", |conn| {
            let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let findings = install::install(&transaction, &declared)?;
            transaction.commit()?;
            Ok(findings)
        })
    }

    /// Runs `work` in a read transaction in which tables and triggers are those that capture knows.
    fn read<T>(
        &mut self,
        doing: &str,
        mut work: impl FnMut(&Connection, &View) -> Result<T, ReadError>,
    ) -> Result<T, CaptureError> {
        self.require_installed()?;
        for _ in 0..REPAIRS_MAX {
            let (declared, known) = (self.declared.clone(), self.checked.take());
            let path = self.path.clone();
            let conn = self.connect()?;
            let failed = |error: rusqlite::Error| explain(&path, doing, &error);
            let transaction = conn.transaction().map_err(failed)?;
            let found = View::read(&transaction, &declared, known).map_err(failed)?;
            let Some(view) = found else {
                drop(transaction);
                self.repair()?;
                continue;
            };
            let result = work(&transaction, &view);
            drop(transaction);
            self.checked = Some((view.schema_version, view.layout, view.undeclared));
            return result.map_err(|error| match error {
                ReadError::Sqlite(error) => explain(&self.path, doing, &error),
                ReadError::Other(error) => error,
            });
        }
        Err(CaptureError::transient(
            format!("shard file `{}` changes its tables at every poll", self.path.display()),
            "capture tries again; a table that is created and dropped all the time is better kept in a TEMP table",
        ))
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_WAIT)?;
    // The writers' connections look after the write-ahead log; closing ours must not hold them up.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    // An acknowledgement that is lost is given again; the change rows themselves are the writers' to sync.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(conn)
}

/// One consistent state of the shard, in which capture is in order.
struct View {
    schema_version: i64,
    layout: Layout,
    undeclared: Vec<String>,
    pending: Vec<Pending>,
    acknowledged: Position,
    last: Position,
    /// Read after the snapshot of the transaction was taken.
    now: Timestamp,
}

impl View {
    /// `None` when the shard is not as capture knows it.
    fn read(
        conn: &Connection,
        declared: &BTreeMap<String, TableConfig>,
        known: Option<(i64, Layout, Vec<String>)>,
    ) -> rusqlite::Result<Option<Self>> {
        // The first statement takes the snapshot; the clock is read behind it.
        let last = system::last_position(conn)?;
        let now = now();
        let schema_version = conn.query_row("PRAGMA main.schema_version", [], |row| row.get(0))?;
        let (layout, undeclared) = match known {
            Some((version, layout, undeclared)) if version == schema_version => (layout, undeclared),
            _ => {
                let findings = check::check(conn, declared)?;
                if !findings.in_order() {
                    return Ok(None);
                }
                let refused = findings.refused.into_iter().map(|(table, _)| table);
                (findings.layout, findings.undeclared.into_iter().chain(refused).collect())
            }
        };
        let acknowledged: i64 =
            conn.query_row("SELECT acknowledged FROM main._muster_state", [], |row| row.get(0))?;
        let pending = read_pending(conn)?;
        let acknowledged = Position(acknowledged.cast_unsigned());
        Ok(Some(Self { schema_version, layout, undeclared, pending, acknowledged, last, now }))
    }

    /// The stamp of this state: not before `earlier`, nor before any change in it.
    fn stamp(&self, conn: &Connection, earlier: Boundary) -> rusqlite::Result<Boundary> {
        let newest: Option<i64> =
            conn.query_row("SELECT max(at_ms) FROM main._muster_change", [], |row| row.get(0))?;
        let newest = newest.map_or(self.now, |at_ms| Timestamp::from_micros(at_ms.saturating_mul(1_000)));
        Ok(Boundary { position: self.last, at: self.now.max(earlier.at).max(newest) })
    }
}

fn read_pending(conn: &Connection) -> rusqlite::Result<Vec<Pending>> {
    let mut statement = conn.prepare_cached(
        "SELECT name, kind, pending, coalesce(reason, ''), generation FROM main._muster_table \
         WHERE pending IS NOT NULL ORDER BY name",
    )?;
    let mut found = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let event = match row.get_ref(2)?.as_str()? {
            "dropped" => TableEventKind::Dropped,
            "undeclared" => TableEventKind::Undeclared,
            _ => TableEventKind::Reread,
        };
        let Ok(kind) = row.get::<_, String>(1)?.parse() else { continue };
        found.push(Pending { name: row.get(0)?, kind, event, reason: row.get(3)?, generation: row.get(4)? });
    }
    Ok(found)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Rounded up: a stamp must not lie before the moment it stands for.
    Timestamp::from_micros(i64::try_from(since.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX))
}

impl CaptureSource for SqliteSource {
    fn init(&mut self) -> Result<Installed, CaptureError> {
        self.check_mode()?;
        let declared = self.declared.clone();
        let findings = self.with("read its tables", |conn| check::check(conn, &declared))?;
        self.refuse(&findings)?;
        let installed_before =
            self.with("read its capture state", |conn| system::has_table(conn, "_muster_state"))?;
        let unchanged = installed_before && findings.in_order();
        let findings = if unchanged { findings } else { self.repair()? };
        let mut tables: Vec<String> =
            findings.layout.tables.iter().map(|table| table.name().to_owned()).collect();
        tables.sort();
        let triggers = self.with("count its triggers", |conn| {
            let sql = "SELECT count(*) FROM main.sqlite_schema WHERE type = 'trigger' AND name LIKE '\\_muster%' ESCAPE '\\'";
            conn.query_row(sql, [], |row| row.get::<_, u32>(0))
        })?;
        Ok(Installed { tables, triggers: triggers.into(), unchanged, notes: Vec::new() })
    }

    fn remove(&mut self) -> Result<(), CaptureError> {
        self.checked = None;
        self.delivered = None;
        self.with("remove capture", |conn| {
            let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            system::drop_everything(&transaction)?;
            transaction.commit()
        })
    }

    fn state(&mut self) -> Result<ShardState, CaptureError> {
        self.require_installed()?;
        let path = self.path.display().to_string();
        let (format, incarnation, acknowledged, head, last) = self.with("read its capture state", |conn| {
            let transaction = conn.transaction()?;
            let last = system::last_position(&transaction)?;
            let sql = "SELECT format, incarnation, acknowledged, head_sequence, head_digest FROM main._muster_state";
            transaction.query_row(sql, [], |row| {
                let head: (Option<i64>, Option<String>) = (row.get(3)?, row.get(4)?);
                Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, head, last))
            })
        })?;
        let what = format!("the capture state of shard file `{path}`");
        muster_types::format::accept(&what, format)
            .map_err(|error| CaptureError::new(error.to_string(), "upgrade this muster"))?;
        let damaged = |error: String| {
            CaptureError::new(
                format!("{what} is damaged: {error}"),
                "run `muster capture remove`, then `muster capture init` and `muster capture --once --snapshot`",
            )
        };
        let incarnation = Incarnation::new(incarnation).map_err(|error| damaged(error.to_string()))?;
        let head = match head {
            (Some(sequence), Some(digest)) => {
                let digest: Digest = digest.parse().map_err(|error| damaged(format!("{error}")))?;
                Some((sequence.cast_unsigned(), digest))
            }
            _ => None,
        };
        Ok(ShardState {
            incarnation,
            acknowledged: Position(acknowledged.cast_unsigned()),
            head,
            last,
            broken: None,
        })
    }

    fn begin_incarnation(&mut self, incarnation: &Incarnation) -> Result<(), CaptureError> {
        self.require_installed()?;
        self.delivered = None;
        self.repair()?;
        let last = self.with("begin an incarnation", |conn| {
            let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last = system::last_position(&transaction)?;
            transaction.execute(
                "UPDATE main._muster_state SET incarnation = ?1, acknowledged = ?2, head_sequence = NULL, head_digest = NULL",
                params![incarnation.as_str(), last.0.cast_signed()],
            )?;
            // The snapshot that begins every incarnation holds these tables whole.
            transaction.execute("DELETE FROM main._muster_table WHERE pending IN ('dropped', 'undeclared')", [])?;
            transaction.execute("UPDATE main._muster_table SET pending = NULL, reason = NULL", [])?;
            transaction.commit()?;
            Ok(last)
        })?;
        self.with("remove older changes", |conn| acknowledge::remove_changes(conn, last))
    }

    fn snapshot(
        &mut self,
        not_before: Boundary,
        sink: &mut dyn SnapshotSink,
    ) -> Result<Boundary, CaptureError> {
        let deadline = self.snapshot_max.map(|limit| Instant::now() + limit);
        self.read("take a snapshot", |conn, view| {
            let tables: Vec<&Captured> = view.layout.tables.iter().collect();
            let known: Vec<CapturedTable> = tables.iter().map(|table| table.table.clone()).collect();
            sink.tables(&known)?;
            sink.beside(&super::beside::read(conn).map_err(ReadError::from)?)?;
            let boundary = view.stamp(conn, not_before)?;
            rows::read_by_site(conn, &tables, deadline, |site, table, row| sink.row(site, table, row))?;
            Ok(boundary)
        })
    }

    fn poll(
        &mut self,
        after: Boundary,
        _watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        let path = self.path.display().to_string();
        let told = self.told.clone();
        let mut newly_told = Vec::new();
        let (polled, pending) = self.read("poll its changes", |conn, view| {
            check_range(&path, view, after)?;
            let boundary = view.stamp(conn, after)?;
            let left_out: Vec<String> = view.pending.iter().map(|pending| pending.name.clone()).collect();
            let reading = changes::Reading {
                after: after.position,
                upto: boundary.position,
                left_out: &left_out,
                order: changes::Order::Grouped,
            };
            let mut indexes = TableIndexes::default();
            let count = changes::read(conn, &view.layout, &reading, |found| {
                let index = indexes.of(found.table, sink)?;
                sink.change(found.site.as_ref(), index, found.mark.as_ref(), found.change)
                    .map_err(ReadError::from)
            })?;
            deliver_pending(conn, view, boundary, &mut indexes, sink)?;
            newly_told = view.undeclared.iter().filter(|name| !told.contains(*name)).cloned().collect();
            for name in &newly_told {
                sink.table_event(undeclared_event(name, boundary.at, view))?;
            }
            let polled =
                Polled { boundary, changes: count, undeclared: view.undeclared.clone(), more: false };
            Ok((polled, view.pending.clone()))
        })?;
        self.told.extend(newly_told);
        self.delivered = Some((polled.boundary.position, pending));
        Ok(polled)
    }

    fn change_at(&mut self, position: Position) -> Result<Option<Timestamp>, CaptureError> {
        self.with("look for a change", |conn| {
            let sql = "SELECT at_ms FROM main._muster_change WHERE seq = ?1";
            let found: Option<i64> =
                conn.query_row(sql, [position.0.cast_signed()], |row| row.get(0)).optional()?;
            Ok(found.map(|at_ms| Timestamp::from_micros(at_ms.saturating_mul(1000))))
        })
    }

    fn acknowledge(&mut self, upto: Position, head: (u64, Digest)) -> Result<(), CaptureError> {
        self.require_installed()?;
        let delivered = self.delivered.take().filter(|(position, _)| *position <= upto);
        self.with("acknowledge changes", |conn| {
            let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "UPDATE main._muster_state SET acknowledged = max(acknowledged, ?1), head_sequence = ?2, head_digest = ?3",
                params![upto.0.cast_signed(), head.0.cast_signed(), head.1.to_string()],
            )?;
            for pending in delivered.iter().flat_map(|(_, pending)| pending) {
                let sql = match pending.event {
                    TableEventKind::Reread => {
                        "UPDATE main._muster_table SET pending = NULL, reason = NULL WHERE name = ?1 AND generation = ?2"
                    }
                    _ => "DELETE FROM main._muster_table WHERE name = ?1 AND generation = ?2",
                };
                transaction.execute(sql, params![pending.name, pending.generation])?;
            }
            transaction.commit()
        })?;
        self.with("remove acknowledged changes", |conn| acknowledge::remove_changes(conn, upto))?;
        if let Some((_, layout, _)) = self.checked.clone() {
            self.with("collect what is no longer needed", |conn| acknowledge::collect(conn, &layout, upto))?;
        }
        Ok(())
    }

    fn session(&self) -> BTreeMap<String, String> {
        let mut session = BTreeMap::from([("driver".to_owned(), "sqlite".to_owned())]);
        session.insert("sqlite_version".to_owned(), rusqlite::version().to_owned());
        if let Some((_, conn)) = &self.conn
            && let Ok(encoding) = conn.query_row("PRAGMA main.encoding", [], |row| row.get(0))
        {
            session.insert("encoding".to_owned(), encoding);
        }
        session
    }

    fn clock_offset_micros(&mut self) -> Result<(i64, u64), CaptureError> {
        // Writers of a file run on this machine and stamp with its clock.
        Ok((0, CLOCK_UNCERTAINTY_MICROS))
    }
}

fn check_range(path: &str, view: &View, after: Boundary) -> Result<(), CaptureError> {
    if view.acknowledged > after.position {
        return Err(CaptureError::new(
            format!(
                "shard file `{path}`: changes up to {} were acknowledged and are gone, and those behind {} are asked for",
                view.acknowledged, after.position
            ),
            "run `muster capture --once`, which begins a new incarnation with a snapshot where the log cannot go on",
        ));
    }
    if view.last < after.position {
        return Err(CaptureError::new(
            format!(
                "shard file `{path}` is at position {}, before {} where the log ends: it was rewound",
                view.last, after.position
            ),
            "run `muster capture --once`, which begins a new incarnation with a snapshot",
        ));
    }
    Ok(())
}

/// Tables that a sink knows, by their number.
#[derive(Default)]
struct TableIndexes(BTreeMap<i64, usize>);

impl TableIndexes {
    fn of(&mut self, table: &Captured, sink: &mut dyn ChangeSink) -> Result<usize, CaptureError> {
        if let Some(index) = self.0.get(&table.id) {
            return Ok(*index);
        }
        sink.table(&table.table)?;
        let index = self.0.len();
        self.0.insert(table.id, index);
        Ok(index)
    }
}

/// Events of pending tables, and the rows of those that are read again.
fn deliver_pending(
    conn: &Connection,
    view: &View,
    boundary: Boundary,
    indexes: &mut TableIndexes,
    sink: &mut dyn ChangeSink,
) -> Result<(), ReadError> {
    for pending in &view.pending {
        sink.table_event(TableEvent {
            position: None,
            table: pending.name.clone(),
            kind: pending.kind.clone(),
            event: pending.event,
            at: boundary.at,
            reason: pending.reason.clone(),
        })?;
    }
    let again = |table: &&Captured| {
        let named = |pending: &&Pending| pending.name == table.name();
        view.pending.iter().find(named).is_some_and(|found| found.event == TableEventKind::Reread)
    };
    let tables: Vec<&Captured> = view.layout.tables.iter().filter(again).collect();
    let numbers =
        tables.iter().map(|table| indexes.of(table, sink)).collect::<Result<Vec<_>, CaptureError>>()?;
    rows::read_by_site(conn, &tables, None, |site, table, row| sink.reread_row(site, numbers[table], row))
}

/// The kind of an undeclared table is not known; the event is filed under that of the shard's first table.
fn undeclared_event(table: &str, at: Timestamp, view: &View) -> TableEvent {
    let any = view.layout.tables.first().map(|table| table.table.kind.clone());
    #[expect(clippy::expect_used, reason = "a fixed, valid name")]
    let kind = any.unwrap_or_else(|| "metadata".parse().expect("a valid kind"));
    TableEvent {
        position: None,
        table: table.to_owned(),
        kind,
        event: TableEventKind::Undeclared,
        at,
        reason: "it is in the shard, and the topology does not declare it, or it cannot be captured"
            .to_owned(),
    }
}
