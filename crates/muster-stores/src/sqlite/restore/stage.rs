//! Rows beside the live data: one file a store, with plain tables.
//!
//! # Invariants
//! - A staging file under its own name is complete: it is written under another name and renamed at the end.
//! - It is not trusted after a crash (nothing of it is synced): its digests are read back before it is published.
//! - Its columns have no type, so that every value keeps its storage class.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use muster_engine::driver::{DriverError, RowBatch, StoreWork};
use muster_rows::{Row, RowBuilder, RowsDigest};
use muster_types::journal::TableDigest;
use muster_types::table::TableDef;
use muster_types::{RunId, StoreId};
use rusqlite::{CachedStatement, Connection, OpenFlags};
use tokio::sync::mpsc;

use super::fence::check_epoch;
use super::shard::Shard;
use super::sql::column_list;
use crate::sqlite::schema::quote;
use crate::sqlite::value::{bind, read_row};

/// Page cache of a staging connection, in KiB: appends touch few pages.
const CACHE_KIBIBYTES: i64 = 2048;

/// Extensions of files under way begin so.
const UNFINISHED: &str = "part-";

/// A folder is taken away once for each site that is handed back in that instant: a few in a row at most.
const FOLDER_TRIES: u32 = 100;

/// Tells attempts of one process apart.
static ATTEMPT: AtomicU64 = AtomicU64::new(0);

/// Loads what `rows` delivers.
pub(super) fn stage(
    shard: &Shard,
    work: &StoreWork,
    mut rows: mpsc::Receiver<RowBatch>,
) -> Result<(), DriverError> {
    let doing = format!("stage {}", work.store);
    let target = shard.stage_path(&work.run, &work.store);
    let part = Part::begin(&target).map_err(|error| shard.file_error(&doing, &error))?;
    let encoding = encoding(shard)?;
    let failed = |error: rusqlite::Error| shard.error(&doing, &error);
    let conn = create(&part.0, &encoding, work).map_err(failed)?;
    conn.execute_batch("BEGIN").map_err(failed)?;
    let mut inserts = Inserts::prepare(&conn, work).map_err(failed)?;
    while let Some(batch) = rows.blocking_recv() {
        for row in &batch.rows {
            inserts.insert(shard, work, batch.table, row)?;
        }
    }
    drop(inserts);
    conn.execute_batch("COMMIT").map_err(failed)?;
    conn.close().map_err(|(_, error)| failed(error))?;
    // What an engine leaves that lost the run meanwhile, nobody would take away.
    let reader = shard.log_reader()?;
    check_epoch(shard, &reader.conn, &work.run, work.epoch)?;
    shard.keep_log_reader(reader);
    std::fs::rename(&part.0, &target).map_err(|error| shard.file_error(&doing, &error))
}

/// Rows and digest of each staged table.
pub(super) fn digest_staged(
    shard: &Shard,
    work: &StoreWork,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    let doing = format!("read back what is staged of {}", work.store);
    let path = existing(shard, work)?;
    let failed = |error: rusqlite::Error| shard.error(&doing, &error);
    let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    let digest = |def: &TableDef| -> rusqlite::Result<TableDigest> {
        let mut statement = conn.prepare(&select_staged("main", def))?;
        digest_rows(&mut statement, &def.name)
    };
    work.tables
        .iter()
        .map(|table| Ok((table.def.name.clone(), digest(&table.def).map_err(failed)?)))
        .collect()
}

/// The staging file of a store, which must be there.
pub(super) fn existing(shard: &Shard, work: &StoreWork) -> Result<PathBuf, DriverError> {
    let path = shard.stage_path(&work.run, &work.store);
    if path.is_file() {
        return Ok(path);
    }
    Err(shard.permanent(
        format!("the staging file `{}` of {} is gone", path.display(), work.store),
        "stage the store again: resume the run",
    ))
}

/// Takes what is staged of stores out of use, at once; [`remove`] takes it off the disk. Files that nobody removes are taken
/// for unfinished ones.
pub(super) fn set_aside(shard: &Shard, run: &RunId, stores: &[StoreId]) -> Result<Vec<PathBuf>, DriverError> {
    let mut aside = Vec::new();
    for store in stores {
        let path = shard.stage_path(run, store);
        let new = path.with_extension(format!("{UNFINISHED}{}-released", std::process::id()));
        match std::fs::rename(&path, &new) {
            Ok(()) => aside.push(new),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(shard.file_error(&format!("remove what is staged of {store}"), &error));
            }
        }
    }
    Ok(aside)
}

/// Removes what was set aside, and the run's folder when it is empty.
pub(super) fn remove(shard: &Shard, run: &RunId, aside: &[PathBuf]) -> Result<(), DriverError> {
    for path in aside {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(shard.file_error(&format!("remove what run {run} staged"), &error));
            }
            _ => {}
        }
    }
    remove_empty(&shard.stage_folder(run));
    Ok(())
}

/// Removes what engines that are gone had not finished: whoever has raised the epoch is the only one to stage.
pub(super) fn sweep(shard: &Shard, run: &RunId) -> Result<(), DriverError> {
    let folder = shard.stage_folder(run);
    let failed = |error: std::io::Error| shard.file_error(&format!("tidy the staging of run {run}"), &error);
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let unfinished = path.extension().is_some_and(|extension| {
            extension.to_str().is_some_and(|extension| extension.starts_with(UNFINISHED))
        });
        if unfinished {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
    }
    remove_empty(&folder);
    Ok(())
}

/// Removes a run's folder, and the one around it. Either may hold other stores or other runs, and then stays.
fn remove_empty(folder: &Path) {
    if std::fs::remove_dir(folder).is_ok()
        && let Some(parent) = folder.parent()
    {
        let _ = std::fs::remove_dir(parent);
    }
}

/// Selects the staged rows of a table in the order they came.
pub(super) fn select_staged(schema: &str, def: &TableDef) -> String {
    let columns = column_list("", def.stored_columns().map(|column| column.name.as_str()));
    format!("SELECT {columns} FROM {schema}.{}", quote(&def.name))
}

/// Digests the rows of a statement as rows of `table`.
pub(super) fn digest_rows(
    statement: &mut rusqlite::Statement<'_>,
    table: &str,
) -> rusqlite::Result<TableDigest> {
    let columns = statement.column_count();
    let mut builder = RowBuilder::new();
    let mut digest = RowsDigest::new();
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        digest.add(table, &read_row(row, 0, columns, &mut builder)?);
        count += 1;
    }
    Ok(TableDigest { rows: count, digest: digest.finish() })
}

/// A file under way; removed unless it was renamed.
struct Part(PathBuf);

impl Part {
    /// An empty file. The folder goes with its last file, so a hand-back may take it away under a stage that begins:
    /// then both try again.
    fn begin(target: &Path) -> std::io::Result<Self> {
        let number = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let path = target.with_extension(format!("{UNFINISHED}{}-{number}", std::process::id()));
        let folder = target.parent().unwrap_or(Path::new("."));
        let mut tries = FOLDER_TRIES;
        loop {
            match std::fs::create_dir_all(folder).and_then(|()| File::create(&path)) {
                Err(error) if error.kind() == ErrorKind::NotFound && tries > 1 => tries -= 1,
                Err(error) => return Err(error),
                Ok(_) => return Ok(Self(path)),
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Renamed already, or of no use.
        if std::fs::remove_file(&self.0).is_ok()
            && let Some(folder) = self.0.parent()
        {
            remove_empty(folder);
        }
    }
}

/// The text encoding of the shard: an attached file must have the same.
fn encoding(shard: &Shard) -> Result<String, DriverError> {
    let reader = shard.log_reader()?;
    let encoding = reader
        .conn
        .pragma_query_value(None, "encoding", |row| row.get(0))
        .map_err(|error| shard.error("read its encoding", &error))?;
    shard.keep_log_reader(reader);
    Ok(encoding)
}

fn create(path: &Path, encoding: &str, work: &StoreWork) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.pragma_update(None, "encoding", encoding)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIBIBYTES)?;
    // The file is written once, by one connection, and thrown away after a crash.
    conn.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;")?;
    for table in work.tables.iter() {
        let columns = column_list("", table.def.stored_columns().map(|column| column.name.as_str()));
        conn.execute_batch(&format!("CREATE TABLE {} ({columns})", quote(&table.def.name)))?;
    }
    Ok(conn)
}

/// One prepared insert for each table.
struct Inserts<'c> {
    statements: Vec<CachedStatement<'c>>,
}

impl<'c> Inserts<'c> {
    fn prepare(conn: &'c Connection, work: &StoreWork) -> rusqlite::Result<Self> {
        conn.set_prepared_statement_cache_capacity(work.tables.len());
        let prepare = |def: &TableDef| {
            let marks = vec!["?"; def.stored_columns().count()].join(", ");
            conn.prepare_cached(&format!("INSERT INTO {} VALUES ({marks})", quote(&def.name)))
        };
        Ok(Self {
            statements: work.tables.iter().map(|table| prepare(&table.def)).collect::<Result<_, _>>()?,
        })
    }

    fn insert(
        &mut self,
        shard: &Shard,
        work: &StoreWork,
        table: usize,
        row: &Row,
    ) -> Result<(), DriverError> {
        let misfit = |what: String| {
            shard.permanent(
                format!("staging {}: {what}", work.store),
                "the repository's rows do not fit their own definition: run `muster check` on it",
            )
        };
        let statement = self
            .statements
            .get_mut(table)
            .ok_or_else(|| misfit(format!("rows of table number {table}, which the plan does not have")))?;
        let name = &work.tables[table].def.name;
        if row.len() != statement.parameter_count() {
            let (found, wanted) = (row.len(), statement.parameter_count());
            return Err(misfit(format!("a row of table `{name}` has {found} fields instead of {wanted}")));
        }
        let failed = |error: rusqlite::Error| shard.error(&format!("stage {}", work.store), &error);
        for (index, field) in row.fields().enumerate() {
            let bound = bind(field).ok_or_else(|| {
                misfit(format!("field {index} of a row of table `{name}` is no value: {field:?}"))
            })?;
            statement.raw_bind_parameter(index + 1, bound).map_err(failed)?;
        }
        statement.raw_execute().map_err(failed)?;
        Ok(())
    }
}
