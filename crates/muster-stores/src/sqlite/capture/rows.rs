//! Reads tables whole, ordered by site.
//!
//! # Invariants
//! - Rows of tables are ordered by SQLite, which spills to a temporary file; one row of each table is held.

use std::time::Instant;

use muster_rows::{Row, RowBuilder};
use muster_types::SiteId;
use rusqlite::{Connection, Rows};

use super::layout::Captured;
use crate::capture::CaptureError;
use crate::sqlite::schema::quote;
use crate::sqlite::system;
use crate::sqlite::value::read_row;

/// Rows between two looks at the clock.
const ROWS_PER_CHECK: u64 = 1_024;

/// Why reading ended early.
pub(super) enum ReadError {
    Sqlite(rusqlite::Error),
    Other(CaptureError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<CaptureError> for ReadError {
    fn from(error: CaptureError) -> Self {
        Self::Other(error)
    }
}

fn select_sql(table: &Captured) -> String {
    let columns: Vec<String> = table.columns().iter().map(|column| format!("t.{}", quote(column))).collect();
    let key: Vec<String> = table.key().iter().map(|(_, name, _)| format!("t.{}", quote(name))).collect();
    format!(
        "SELECT {}, {} FROM main.{} AS t ORDER BY 1, {}",
        system::site_sql(table.owner(), "t"),
        columns.join(", "),
        quote(table.name()),
        key.join(", ")
    )
}

/// One table's rows by site, and the next of them.
struct Cursor<'s> {
    rows: Rows<'s>,
    columns: usize,
    next: Option<(Option<SiteId>, Row)>,
}

impl Cursor<'_> {
    fn advance(&mut self, builder: &mut RowBuilder) -> rusqlite::Result<()> {
        self.next = match self.rows.next()? {
            Some(row) => {
                let site: Option<String> = row.get(0)?;
                Some((site.and_then(|site| SiteId::new(site).ok()), read_row(row, 1, self.columns, builder)?))
            }
            None => None,
        };
        Ok(())
    }
}

/// Gives every row of `tables` to `emit` with the index of its table, by ascending site (none first), then table.
pub(super) fn read_by_site(
    conn: &Connection,
    tables: &[&Captured],
    deadline: Option<Instant>,
    mut emit: impl FnMut(Option<&SiteId>, usize, &Row) -> Result<(), CaptureError>,
) -> Result<(), ReadError> {
    let mut builder = RowBuilder::new();
    let mut statements =
        tables.iter().map(|table| conn.prepare(&select_sql(table))).collect::<Result<Vec<_>, _>>()?;
    let mut cursors = Vec::with_capacity(statements.len());
    for (statement, table) in statements.iter_mut().zip(tables) {
        let mut cursor = Cursor { rows: statement.query([])?, columns: table.columns().len(), next: None };
        cursor.advance(&mut builder)?;
        cursors.push(cursor);
    }
    let mut count = 0_u64;
    while let Some(site) =
        cursors.iter().filter_map(|cursor| cursor.next.as_ref()).map(|(site, _)| site).min().cloned()
    {
        for (index, cursor) in cursors.iter_mut().enumerate() {
            while let Some((_, row)) = cursor.next.as_ref().filter(|(of, _)| *of == site) {
                emit(site.as_ref(), index, row)?;
                cursor.advance(&mut builder)?;
                count += 1;
                if count.is_multiple_of(ROWS_PER_CHECK) && deadline.is_some_and(|end| Instant::now() > end) {
                    return Err(ReadError::Other(CaptureError::transient(
                        format!("the snapshot took longer than it may; {count} rows were read"),
                        "raise capture.snapshot_seconds_max in the topology, or take it when the shard is quiet",
                    )));
                }
            }
        }
    }
    Ok(())
}
