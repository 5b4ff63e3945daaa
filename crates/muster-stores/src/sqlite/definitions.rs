//! The definitions of a shard's tables, for checking a topology against it.

use std::path::Path;

use muster_types::table::TableDef;
use rusqlite::{Connection, OpenFlags};

use super::schema;

/// Every table of the shard in the file at `path`, without Muster's own.
///
/// # Errors
/// What SQLite says; a file that is not there is not made.
pub fn live_definitions(path: &Path) -> rusqlite::Result<Vec<TableDef>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let mut definitions = Vec::new();
    for table in schema::user_tables(&connection)? {
        definitions.extend(schema::read_table(&connection, &table)?);
    }
    Ok(definitions)
}
