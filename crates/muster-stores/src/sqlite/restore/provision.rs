//! An empty file is given tables, reference rows, views, triggers and capture.
//!
//! # Invariants
//! - One transaction: tables, rows, what stands beside them, capture's tables and triggers, and the record that the run did
//!   it. Before its commit the reference rows are read back.
//! - A file that holds a table is not touched. One that is not there is made empty, and never in place of another.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;

use muster_engine::driver::{DriverError, ProvisionWork, ReferenceRows, RowBatch};
use muster_types::journal::TableDigest;
use muster_types::plan::ShardSurvey;
use muster_types::table::{CapturedTable, TableDef};
use rusqlite::{Connection, params_from_iter};
use tokio::sync::mpsc;

use super::fence::check_epoch;
use super::shard::Shard;
use super::sql::column_list;
use super::stage::digest_rows;
use crate::sqlite::capture;
use crate::sqlite::schema::{quote, read_table, user_tables};
use crate::sqlite::value::SqlField;

/// The tables that are there; none in a file that is not.
pub(super) fn survey(shard: &Shard) -> Result<ShardSurvey, DriverError> {
    if !is_there(shard)? {
        return Ok(ShardSurvey::default());
    }
    let conn = shard.reader()?;
    let read = || {
        let mut tables = Vec::new();
        for name in user_tables(&conn)? {
            tables.extend(read_table(&conn, &name)?);
        }
        Ok(ShardSurvey { tables, missing_roles: Vec::new() })
    };
    read().map_err(|error| shard.error("read its definitions", &error))
}

fn is_there(shard: &Shard) -> Result<bool, DriverError> {
    shard.path().try_exists().map_err(|error| shard.file_error("look for its file", &error))
}

/// Makes an empty file where there is none.
pub(super) fn make_place(shard: &Shard) -> Result<(), DriverError> {
    match OpenOptions::new().write(true).create_new(true).open(shard.path()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(shard.file_error("make its file", &error)),
    }
}

/// See the module.
pub(super) fn provision(
    shard: &Shard,
    work: &ProvisionWork,
    mut rows: mpsc::Receiver<ReferenceRows>,
) -> Result<(), DriverError> {
    let writer = shard.writer()?;
    let failed = |error: rusqlite::Error| shard.error("give it its definitions", &error);
    // Capture takes files whose readers do not block writers.
    writer.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    writer.pragma_update(None, "foreign_keys", false).map_err(failed)?;
    writer.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    check_epoch(shard, &writer, &work.run, work.epoch)?;
    if recorded(&writer, work).map_err(failed)? {
        writer.execute_batch("ROLLBACK").map_err(failed)?;
        writer.keep();
        return Ok(());
    }
    if let Some(table) = user_tables(&writer).map_err(failed)?.first() {
        return Err(shard.permanent(
            format!("it is not empty any more: it has a table `{table}`"),
            "plan again: its definitions are compared then; or name an empty shard with --to-shard",
        ));
    }
    for statement in work.tables.iter().flat_map(|table| &table.def.create_sql) {
        writer.execute_batch(statement).map_err(failed)?;
    }
    let wanted = load(shard, &writer, &work.tables, &mut rows)?;
    compare(shard, &writer, &work.tables, &wanted)?;
    beside(&writer, work).map_err(failed)?;
    if let Some(reason) = capture::install(&writer, shard.tables()).map_err(failed)? {
        return Err(shard.permanent(
            format!("it cannot be captured once it has its definitions: {reason}"),
            "correct the topology, then plan again",
        ));
    }
    writer.execute_batch("COMMIT").map_err(failed)?;
    writer.keep();
    Ok(())
}

/// Whether the run has done it already; from now on it has.
fn recorded(conn: &Connection, work: &ProvisionWork) -> rusqlite::Result<bool> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS main._muster_provision(run TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID",
    )?;
    let noted = "INSERT INTO main._muster_provision(run) VALUES (?1) ON CONFLICT DO NOTHING";
    Ok(conn.execute(noted, [work.run.as_str()])? == 0)
}

fn load(
    shard: &Shard,
    conn: &Connection,
    tables: &[CapturedTable],
    rows: &mut mpsc::Receiver<ReferenceRows>,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    loop {
        match rows.blocking_recv() {
            Some(ReferenceRows::Batch(batch)) => insert(conn, tables, &batch)
                .map_err(|error| shard.error("load its reference rows", &error))?,
            Some(ReferenceRows::End(wanted)) => return Ok(wanted),
            None => {
                return Err(DriverError::new(
                    muster_engine::driver::ErrorClass::Transient,
                    format!("shard `{}`: its reference rows did not come to their end", shard.name()),
                    "the step is tried again",
                ));
            }
        }
    }
}

fn insert(conn: &Connection, tables: &[CapturedTable], batch: &RowBatch) -> rusqlite::Result<()> {
    let Some(table) = tables.get(batch.table) else { return Ok(()) };
    let columns: Vec<&str> = columns(&table.def).collect();
    let holes = vec!["?"; columns.len()].join(", ");
    let sql = format!(
        "INSERT INTO main.{} ({}) VALUES ({holes})",
        quote(&table.def.name),
        column_list("", columns.into_iter())
    );
    let mut insert = conn.prepare_cached(&sql)?;
    for row in &batch.rows {
        insert.execute(params_from_iter(row.fields().map(SqlField)))?;
    }
    Ok(())
}

fn columns(def: &TableDef) -> impl Iterator<Item = &str> {
    def.stored_columns().map(|column| column.name.as_str())
}

/// What was loaded is what the repository holds.
fn compare(
    shard: &Shard,
    conn: &Connection,
    tables: &[CapturedTable],
    wanted: &BTreeMap<String, TableDigest>,
) -> Result<(), DriverError> {
    for table in tables {
        let Some(wanted) = wanted.get(&table.def.name) else { continue };
        let list = column_list("t", columns(&table.def));
        let select = format!("SELECT {list} FROM main.{} t", quote(&table.def.name));
        let found = conn
            .prepare(&select)
            .and_then(|mut select| digest_rows(&mut select, &table.def.name))
            .map_err(|error| shard.error("read its reference rows back", &error))?;
        if found != *wanted {
            return Err(shard.permanent(
                format!(
                    "reference table `{}` has {} rows (digest {}) instead of {} (digest {}); nothing was kept",
                    table.def.name,
                    found.rows,
                    found.digest.short(),
                    wanted.rows,
                    wanted.digest.short()
                ),
                "check the disk of the shard, then resume the run",
            ));
        }
    }
    Ok(())
}

/// Last numbers of AUTOINCREMENT tables, views and triggers.
fn beside(conn: &Connection, work: &ProvisionWork) -> rusqlite::Result<()> {
    let there = |name: &String| work.tables.iter().any(|table| table.def.name == *name);
    for (name, last) in work.beside.sequences.iter().filter(|(name, _)| there(name)) {
        conn.execute("DELETE FROM main.sqlite_sequence WHERE name = ?1 AND seq < ?2", (name, last))?;
        conn.execute(
            "INSERT INTO main.sqlite_sequence(name, seq) SELECT ?1, ?2 \
             WHERE NOT EXISTS (SELECT 1 FROM main.sqlite_sequence WHERE name = ?1)",
            (name, last),
        )?;
    }
    work.beside.statements.iter().try_for_each(|statement| conn.execute_batch(statement))
}
