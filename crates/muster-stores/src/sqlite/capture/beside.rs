//! What a file has beside its tables: the last numbers of AUTOINCREMENT tables, views, and the application's triggers.

use muster_types::snapshot::Beside;
use rusqlite::Connection;

use crate::sqlite::system::has_table;

/// Reads it; Muster's own is left out.
///
/// # Errors
/// Those of rusqlite.
pub(super) fn read(conn: &Connection) -> rusqlite::Result<Beside> {
    let mut beside = Beside::default();
    if has_table(conn, "sqlite_sequence")? {
        let mut select = conn.prepare(
            "SELECT name, seq FROM main.sqlite_sequence WHERE name NOT LIKE '\\_muster%' ESCAPE '\\' \
             AND typeof(seq) = 'integer'",
        )?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        beside.sequences = rows.collect::<rusqlite::Result<_>>()?;
    }
    let mut select = conn.prepare(
        "SELECT sql FROM main.sqlite_schema WHERE type IN ('view', 'trigger') AND sql IS NOT NULL \
         AND name NOT LIKE '\\_muster%' ESCAPE '\\' AND tbl_name NOT LIKE '\\_muster%' ESCAPE '\\' \
         ORDER BY type DESC, rowid",
    )?;
    let statements = select.query_map([], |row| row.get(0))?;
    beside.statements = statements.collect::<rusqlite::Result<_>>()?;
    Ok(beside)
}
