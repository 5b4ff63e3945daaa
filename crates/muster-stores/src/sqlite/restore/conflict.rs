//! Why a live table refused restored rows: which key, which values, and who holds them.
//!
//! # Invariants
//! Asked inside the failed transaction, before it is rolled back, so that the answer is about the same state.

use muster_engine::driver::{DriverError, StoreWork};
use muster_types::table::{ForeignKey, UniqueKey};
use rusqlite::{Connection, OptionalExtension};

use super::errors::{is_foreign_key_violation, is_key_violation};
use super::live::LiveTable;
use super::shard::Shard;
use crate::sqlite::schema::quote;
use crate::sqlite::system::site_sql;

/// Longest printed key value.
const VALUE_CHARS_MAX: usize = 80;

/// The error for a row of `table` that was refused.
pub(super) fn refused(
    shard: &Shard,
    conn: &Connection,
    work: &StoreWork,
    table: &LiveTable,
    error: &rusqlite::Error,
) -> DriverError {
    if is_key_violation(error)
        && let Some(taken) = taken_key(conn, table)
    {
        return taken.error(shard, work, table);
    }
    if is_foreign_key_violation(error)
        && let Some(missing) = missing_parent(shard, conn, work, table)
    {
        return missing;
    }
    shard.error(&format!("publish {}: insert into `{}`", work.store, table.name()), error)
}

struct Taken {
    columns: Vec<String>,
    values: String,
    holder: Option<String>,
}

impl Taken {
    fn error(&self, shard: &Shard, work: &StoreWork, table: &LiveTable) -> DriverError {
        let holder =
            self.holder.as_ref().map_or_else(|| "a row of no site".to_owned(), |site| format!("site:{site}"));
        shard.permanent(
            format!(
                "{}: key ({}) = ({}) of table `{}` is held by {holder}",
                work.store,
                self.columns.join(", "),
                self.values,
                table.name()
            ),
            format!("decide who keeps the key, change or remove the row of {holder}, then resume the run"),
        )
    }
}

fn taken_key(conn: &Connection, table: &LiveTable) -> Option<Taken> {
    let primary =
        UniqueKey { name: "primary key".into(), columns: table.now.key.clone(), predicate_sql: None };
    let keys = std::iter::once(&primary).chain(&table.now.unique);
    // A key over something that staged rows do not have (a generated column) cannot be asked about this way.
    keys.filter(|key| !key.columns.is_empty()).find_map(|key| taken_in(conn, table, key).ok().flatten())
}

fn taken_in(conn: &Connection, table: &LiveTable, key: &UniqueKey) -> rusqlite::Result<Option<Taken>> {
    let name = quote(table.name());
    let filter = key.predicate_sql.as_ref().map_or_else(String::new, |sql| format!(" WHERE {sql}"));
    let equal: Vec<String> =
        key.columns.iter().map(|column| format!("t.{0} = s.{0}", quote(column))).collect();
    let values: Vec<String> =
        key.columns.iter().map(|column| format!("quote(t.{})", quote(column))).collect();
    let site = site_sql(&table.owner, "t");
    let sql = format!(
        "SELECT {values}, {site} FROM (SELECT * FROM stage.{name}{filter}) s \
         JOIN (SELECT * FROM main.{name}{filter}) t ON {equal} LIMIT 1",
        values = values.join(" || ', ' || "),
        equal = equal.join(" AND "),
    );
    let read = |row: &rusqlite::Row<'_>| {
        let values = String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned();
        Ok(Taken { columns: key.columns.clone(), values: shortened(values), holder: row.get(1)? })
    };
    conn.query_row(&sql, [], read).optional()
}

/// The first staged row that refers to a row which is not there, or that it cannot be told; the error for it.
pub(super) fn missing_parent(
    shard: &Shard,
    conn: &Connection,
    work: &StoreWork,
    table: &LiveTable,
) -> Option<DriverError> {
    table.now.foreign_keys.iter().find_map(|key| {
        let values = match missing_in(conn, table, key) {
            Ok(values) => values?,
            Err(error) => {
                return Some(
                    shard.error(&format!("look for rows that `{}` refers to", table.name()), &error),
                );
            }
        };
        Some(shard.permanent(
            format!(
                "{}: a row of table `{}` refers by ({}) to ({values}) of table `{}`, which is not there",
                work.store,
                table.name(),
                key.columns.join(", "),
                key.parent_table
            ),
            "restore the store that holds the missing row first, or to the same moment",
        ))
    })
}

fn missing_in(conn: &Connection, table: &LiveTable, key: &ForeignKey) -> rusqlite::Result<Option<String>> {
    let pairs = || key.columns.iter().zip(&key.parent_columns);
    let equal: Vec<String> =
        pairs().map(|(here, there)| format!("p.{} = s.{}", quote(there), quote(here))).collect();
    let present: Vec<String> =
        key.columns.iter().map(|column| format!("s.{} IS NOT NULL", quote(column))).collect();
    let values: Vec<String> =
        key.columns.iter().map(|column| format!("quote(s.{})", quote(column))).collect();
    let sql = format!(
        "SELECT {values} FROM stage.{name} s WHERE {present} AND NOT EXISTS \
         (SELECT 1 FROM main.{parent} p WHERE {equal}) LIMIT 1",
        values = values.join(" || ', ' || "),
        name = quote(table.name()),
        present = present.join(" AND "),
        parent = quote(&key.parent_table),
        equal = equal.join(" AND "),
    );
    conn.query_row(&sql, [], |row| {
        Ok(shortened(String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned()))
    })
    .optional()
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
