//! The site's own live rows give way to restored ones, under an explicit flag.
//!
//! # Invariants
//! - Every replaced row is saved in `_muster_replaced` by the transaction that deletes it, and logged as deleted.
//! - No row of another store changes: foreign keys are off, so that nothing cascades; instead it is checked that no
//!   row is left behind that refers to a replaced one which did not come back.

use std::collections::BTreeMap;

use muster_engine::driver::{DriverError, StoreWork};
use muster_rows::{RowBuilder, RowsDigest};
use muster_types::journal::TableDigest;
use rusqlite::{Connection, OptionalExtension, params};

use super::live::{LiveTable, LiveTables};
use super::log::{disown_deleted, log_deleted};
use super::shard::Shard;
use super::sql::{column_list, rows_of_site};
use crate::sqlite::schema::quote;
use crate::sqlite::system;
use crate::sqlite::value::read_row;

/// What was replaced, by table.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// Rows and digests.
    pub(super) tables: BTreeMap<String, TableDigest>,
}

impl Replaced {
    /// All rows.
    pub(super) fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }

    /// Fails when a row refers to one that was replaced and did not come back.
    pub(super) fn check_left_behind(
        &self,
        shard: &Shard,
        conn: &Connection,
        work: &StoreWork,
        live: &LiveTables,
    ) -> Result<(), DriverError> {
        let failed = |error: rusqlite::Error| {
            shard.error(&format!("publish {}: check what refers to it", work.store), &error)
        };
        for table in live.tables.iter().filter(|table| self.tables.contains_key(table.name())) {
            for reference in references_to(conn, table.name()).map_err(failed)? {
                if let Some(child) = left_behind(conn, work, table, &reference).map_err(failed)? {
                    return Err(shard.permanent(
                        format!(
                            "{}: a row of table `{child}` refers to a row of `{}` that would be gone",
                            work.store,
                            table.name()
                        ),
                        "restore the store that holds the referring row as well, or remove that row",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Saves, logs and deletes the site's live rows.
pub(super) fn replace(
    shard: &Shard,
    conn: &Connection,
    work: &StoreWork,
    live: &LiveTables,
    mark: i64,
) -> Result<Replaced, DriverError> {
    let mut replaced = Replaced::default();
    for table in &live.tables {
        let failed = |error: rusqlite::Error| {
            shard.error(&format!("publish {}: replace rows of `{}`", work.store, table.name()), &error)
        };
        let Some(condition) = rows_of_site(&table.owner) else { continue };
        let found = digest(conn, table, &condition, work).map_err(failed)?;
        if found.rows > 0 {
            save(conn, table, &condition, work)
                .and_then(|()| log_deleted(conn, table, &condition, &work.store.site, mark))
                .map_err(failed)?;
            replaced.tables.insert(table.name().to_owned(), found);
        }
    }
    // Only now: whose the rows of owned tables are is read from the owner maps and the rows of their parents.
    for table in live.tables.iter().filter(|table| replaced.tables.contains_key(table.name())) {
        let site = work.store.site.as_str();
        let delete = || -> rusqlite::Result<()> {
            let Some(condition) = rows_of_site(&table.owner) else { return Ok(()) };
            conn.execute(
                &format!("DELETE FROM main.{} AS t WHERE {condition}", quote(table.name())),
                [site],
            )?;
            disown_deleted(conn, table, &work.store.site)
        };
        delete()
            .map_err(|error| shard.error(&format!("delete replaced rows of `{}`", table.name()), &error))?;
    }
    Ok(replaced)
}

fn digest(
    conn: &Connection,
    table: &LiveTable,
    condition: &str,
    work: &StoreWork,
) -> rusqlite::Result<TableDigest> {
    let columns = column_list("t", table.columns());
    let mut select =
        conn.prepare(&format!("SELECT {columns} FROM main.{} t WHERE {condition}", quote(table.name())))?;
    let width = select.column_count();
    let mut rows = select.query([work.store.site.as_str()])?;
    let (mut builder, mut digest, mut count) = (RowBuilder::new(), RowsDigest::new(), 0);
    while let Some(row) = rows.next()? {
        digest.add(table.name(), &read_row(row, 0, width, &mut builder)?);
        count += 1;
    }
    Ok(TableDigest { rows: count, digest: digest.finish() })
}

fn save(conn: &Connection, table: &LiveTable, condition: &str, work: &StoreWork) -> rusqlite::Result<()> {
    let width = table.columns().count();
    system::ensure_value_columns(conn, system::REPLACED, width)?;
    let values = system::value_list("", width);
    let sql = format!(
        "INSERT INTO main._muster_replaced (run, site, kind, tbl, {values}) \
         SELECT ?2, ?1, ?3, ?4, {columns} FROM main.{name} t WHERE {condition}",
        columns = column_list("t", table.columns()),
        name = quote(table.name()),
    );
    let store = &work.store;
    conn.execute(&sql, params![store.site.as_str(), work.run.as_str(), store.kind.as_str(), table.name()])?;
    Ok(())
}

/// A foreign key of another table.
struct Reference {
    child: String,
    /// Column there, column here.
    columns: Vec<(String, String)>,
}

fn references_to(conn: &Connection, parent: &str) -> rusqlite::Result<Vec<Reference>> {
    let mut select = conn.prepare_cached(
        "SELECT m.name, f.id, f.\"from\", f.\"to\", f.seq FROM main.sqlite_schema m, pragma_foreign_key_list(m.name, 'main') f \
         WHERE m.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE ORDER BY m.name, f.id, f.seq",
    )?;
    let mut found: Vec<(i64, Reference)> = Vec::new();
    let mut rows = select.query([parent])?;
    while let Some(row) = rows.next()? {
        let (child, id, here): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if found.last().is_none_or(|(last, reference)| *last != id || reference.child != child) {
            found.push((id, Reference { child, columns: Vec::new() }));
        }
        let there = match row.get::<_, Option<String>>(3)? {
            Some(there) => there,
            None => key_column(conn, parent, row.get(4)?)?,
        };
        if let Some((_, reference)) = found.last_mut() {
            reference.columns.push((here, there));
        }
    }
    Ok(found.into_iter().map(|(_, reference)| reference).collect())
}

/// A foreign key without columns refers to the primary key.
fn key_column(conn: &Connection, table: &str, index: i64) -> rusqlite::Result<String> {
    conn.query_row(
        "SELECT name FROM pragma_table_info(?1, 'main') WHERE pk = ?2",
        params![table, index + 1],
        |row| row.get(0),
    )
}

fn left_behind(
    conn: &Connection,
    work: &StoreWork,
    table: &LiveTable,
    reference: &Reference,
) -> rusqlite::Result<Option<String>> {
    let index = |name: &str| table.columns().position(|column| column.eq_ignore_ascii_case(name));
    let equal: Vec<String> = reference
        .columns
        .iter()
        .filter_map(|(here, there)| Some(format!("c.{} = r.v{}", quote(here), index(there)?)))
        .collect();
    if equal.len() != reference.columns.len() {
        return Ok(None);
    }
    let back = |(here, there): &(String, String)| format!("p.{} = c.{}", quote(there), quote(here));
    let sql = format!(
        "SELECT 1 FROM main._muster_replaced r JOIN main.{child} c ON {equal} \
         WHERE r.run = ?1 AND r.site = ?2 AND r.kind = ?3 AND r.tbl = ?4 \
         AND NOT EXISTS (SELECT 1 FROM main.{parent} p WHERE {back}) LIMIT 1",
        child = quote(&reference.child),
        equal = equal.join(" AND "),
        parent = quote(table.name()),
        back = reference.columns.iter().map(back).collect::<Vec<_>>().join(" AND "),
    );
    let store = &work.store;
    let found = conn
        .query_row(
            &sql,
            params![work.run.as_str(), store.site.as_str(), store.kind.as_str(), table.name()],
            |_| Ok(()),
        )
        .optional()?;
    Ok(found.map(|()| reference.child.clone()))
}
