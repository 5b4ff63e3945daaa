//! The shard's file and connections to it.
//!
//! # Invariants
//! - A kept connection is used again only while the path still names the file that it opened: a shard may be
//!   brought back by its own tools between two calls.
//! - Triggers never fire on a writing connection: neither the application's nor those of capture. What is written
//!   is logged by the writer itself.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_engine::driver::{DriverError, StoreWork};
use muster_types::table::CapturedTable;
use muster_types::topology::TableConfig;
use muster_types::{Kind, RunId, ShardName, StoreId};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::effects::Watch;
use super::live::{LiveTables, load, schema_version};
use crate::sqlite::capture::Layout;

/// How long to wait for another writer before the step fails as busy and is tried again later.
const BUSY_WAIT: Duration = Duration::from_secs(20);
/// Between two tries for the lock. Short, since SQLite's lock has no queue and a hammering writer would starve us.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Kept connections: publishes of one shard are few at a time.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// Prepared statements kept by connection: a publish of a store of twenty tables uses about four for each.
const STATEMENTS_MAX: usize = 128;

/// Which file a connection has opened.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// A connection between two calls.
struct Kept {
    file: FileId,
    conn: Connection,
    watch: Option<Watch>,
    /// Reading definitions takes longer than publishing a small store.
    known: HashMap<Kind, KnownTables>,
}

/// What is known of the live tables of a kind, for the definitions that it was read for.
struct KnownTables {
    then: Arc<Vec<CapturedTable>>,
    live: Arc<LiveTables>,
}

/// A connection that reads the shard's own log, with what it knows of the tables.
pub(super) struct LogReader {
    file: FileId,
    pub(super) conn: Connection,
    /// With the schema version that it was read at.
    pub(super) layout: Option<(i64, Layout)>,
}

/// One shard file with its declared tables.
pub(super) struct Shard {
    name: ShardName,
    path: PathBuf,
    tables: BTreeMap<String, TableConfig>,
    idle: Mutex<Vec<Kept>>,
    log_readers: Mutex<Vec<LogReader>>,
}

impl Shard {
    pub(super) fn new(name: ShardName, path: PathBuf, tables: BTreeMap<String, TableConfig>) -> Self {
        Self { name, path, tables, idle: Mutex::default(), log_readers: Mutex::default() }
    }

    pub(super) fn name(&self) -> &ShardName {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Declared tables with kind and owner.
    pub(super) fn tables(&self) -> &BTreeMap<String, TableConfig> {
        &self.tables
    }

    /// A connection for reading.
    pub(super) fn reader(&self) -> Result<Connection, DriverError> {
        self.present()?;
        let conn = self
            .open(OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| self.open(OpenFlags::SQLITE_OPEN_READ_ONLY))
            .map_err(|error| self.error("open it", &error))?;
        conn.pragma_update(None, "query_only", true).map_err(|error| self.error("open it", &error))?;
        Ok(conn)
    }

    /// A connection for reading the shard's own log and other small things, kept from an earlier call if there is one:
    /// a new one parses the whole schema first. Temporary tables are all that it writes.
    pub(super) fn log_reader(&self) -> Result<LogReader, DriverError> {
        let file = self.present()?;
        let mut kept = self.log_readers.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|reader| reader.file == file);
        if let Some(reader) = kept.pop() {
            return Ok(reader);
        }
        drop(kept);
        let conn = self.reader()?;
        conn.pragma_update(None, "query_only", false).map_err(|error| self.error("open it", &error))?;
        Ok(LogReader { file, conn, layout: None })
    }

    /// Keeps a reader for the next call, out of its transaction.
    pub(super) fn keep_log_reader(&self, reader: LogReader) {
        let mut kept = self.log_readers.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = reader.conn.is_autocommit() || reader.conn.execute_batch("COMMIT").is_ok();
        if kept.len() < IDLE_CONNECTIONS_MAX && ended {
            kept.push(reader);
        }
    }

    /// A connection for writing: triggers off, commits synced.
    pub(super) fn writer(&self) -> Result<Writer<'_>, DriverError> {
        let file = self.present()?;
        let refused = |reason: String| {
            self.permanent(
                format!("it does not take writes: {reason}"),
                "make the file and its folder writable, then resume the run",
            )
        };
        if let Some(reason) = self.marked_read_only() {
            return Err(refused(reason));
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| kept.file == file);
        let kept = idle.pop();
        drop(idle);
        let kept = match kept {
            Some(kept) => kept,
            None => {
                if let Some(reason) = self.unwritable() {
                    return Err(refused(reason));
                }
                let conn = self.open_writer().map_err(|error| self.error("open it for writing", &error))?;
                Kept { file, conn, watch: None, known: HashMap::new() }
            }
        };
        Ok(Writer { shard: self, kept })
    }

    /// Why the shard cannot take writes, if it cannot. A file marked read-only is respected even where the user may
    /// write it all the same.
    pub(super) fn unwritable(&self) -> Option<String> {
        let path = self.path.display();
        if let Some(reason) = self.marked_read_only() {
            return Some(reason);
        }
        match self.open(OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(|conn| conn.is_readonly("main")) {
            Ok(false) => None,
            Ok(true) => Some(format!("`{path}` can only be opened for reading")),
            Err(error) => Some(format!("`{path}`: {error}")),
        }
    }

    fn marked_read_only(&self) -> Option<String> {
        let path = self.path.display();
        match std::fs::metadata(&self.path) {
            Err(error) => Some(format!("`{path}`: {error}")),
            Ok(found) => found.permissions().readonly().then(|| format!("`{path}` is marked read-only")),
        }
    }

    /// Where a store's rows are staged.
    pub(super) fn stage_path(&self, run: &RunId, store: &StoreId) -> PathBuf {
        let name = format!("{}.{}.db", store.site.as_str(), store.kind.file_name());
        self.stage_folder(run).join(name)
    }

    /// The folder of a run's staging files.
    pub(super) fn stage_folder(&self, run: &RunId) -> PathBuf {
        let mut folder = self.path.clone().into_os_string();
        folder.push(".muster");
        PathBuf::from(folder).join(run.as_str())
    }

    fn present(&self) -> Result<FileId, DriverError> {
        let found = std::fs::metadata(&self.path).map_err(|error| {
            self.permanent(
                format!("`{}`: {error}", self.path.display()),
                "check the shard's path in the topology, and that its disk is mounted",
            )
        })?;
        Ok(FileId { device: found.dev(), inode: found.ino() })
    }

    fn open(&self, mode: OpenFlags) -> rusqlite::Result<Connection> {
        let mut conn = Connection::open_with_flags(&self.path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        wait_for_locks(&mut conn)?;
        Ok(conn)
    }

    fn open_writer(&self) -> rusqlite::Result<Connection> {
        let conn = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        // The writers' connections look after the write-ahead log; closing ours must not hold them up.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.execute_batch("PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY;")?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(conn)
    }

    fn keep(&self, kept: Kept) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(kept);
        }
    }
}

/// A borrowed writing connection. It is kept for the next caller only through [`Writer::keep`]; else it is closed,
/// which rolls back what is open.
pub(super) struct Writer<'a> {
    shard: &'a Shard,
    kept: Kept,
}

impl Writer<'_> {
    /// Gives the connection back if it is in no transaction.
    pub(super) fn keep(self) {
        if self.kept.conn.is_autocommit() {
            self.shard.keep(self.kept);
        }
    }

    /// The live tables that `work` is published into; read anew when the shard's definitions have changed.
    pub(super) fn live_tables(&mut self, work: &StoreWork) -> Result<Arc<LiveTables>, DriverError> {
        let version = schema_version(&self.kept.conn)
            .map_err(|error| self.shard.error("read its definitions", &error))?;
        if let Some(known) = self.kept.known.get(&work.store.kind)
            && known.live.schema_version == version
            && known.then == work.tables
        {
            return Ok(Arc::clone(&known.live));
        }
        let live = Arc::new(load(self.shard, &self.kept.conn, work)?);
        let known = KnownTables { then: Arc::clone(&work.tables), live: Arc::clone(&live) };
        self.kept.known.insert(work.store.kind.clone(), known);
        Ok(live)
    }

    /// Sees to it that row changes are watched under these definitions.
    pub(super) fn ensure_watch(&mut self, schema_version: i64) -> rusqlite::Result<()> {
        if self.kept.watch.as_ref().is_some_and(|watch| watch.schema_version() == schema_version) {
            return Ok(());
        }
        if self.kept.watch.take().is_some() {
            self.kept.conn = self.shard.open_writer()?;
        }
        self.kept.watch = Some(Watch::install(&self.kept.conn, schema_version)?);
        Ok(())
    }

    /// What watches row changes, once [`Writer::ensure_watch`] was called.
    pub(super) fn watch(&self) -> Option<&Watch> {
        self.kept.watch.as_ref()
    }
}

impl std::ops::Deref for Writer<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.kept.conn
    }
}

impl std::ops::DerefMut for Writer<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.kept.conn
    }
}

fn wait_for_locks(conn: &mut Connection) -> rusqlite::Result<()> {
    let tries_max = i32::try_from(BUSY_WAIT.as_millis() / BUSY_PAUSE.as_millis()).unwrap_or(i32::MAX);
    conn.busy_handler(Some(move |tries| {
        std::thread::sleep(BUSY_PAUSE);
        tries < tries_max
    }))
}
