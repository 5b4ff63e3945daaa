//! Looking into SQLite files.

use std::path::Path;
use std::time::Duration;

use muster_demo::{Owner, Table};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row};

/// All rows of a query, each value with its storage class.
#[track_caller]
pub fn query(path: &Path, sql: &str) -> Vec<Vec<Value>> {
    rows(path, sql, |row, index| row.get_unwrap(index))
}

/// All rows of a query as text, for messages and for comparing with what tools print.
#[track_caller]
pub fn query_text(path: &Path, sql: &str) -> Vec<Vec<String>> {
    rows(path, sql, |row, index| match row.get_ref_unwrap(index) {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => format!("{value:?}"),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

#[track_caller]
fn rows<T>(path: &Path, sql: &str, value: impl Fn(&Row<'_>, usize) -> T) -> Vec<Vec<T>> {
    let connection = Connection::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let read = statement.query_map([], |row| Ok((0..columns).map(|index| value(row, index)).collect()));
    read.and_then(Iterator::collect).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// A copy of a shard as it is now, everything in one file.
pub fn copy_shard(from: &Path, to: &Path) {
    let connection = Connection::open(from).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]).unwrap();
}

/// SQL that selects a site's rows of a table by whom they belong to, in the order of its key.
pub fn rows_of_site(table: &Table, site: &str) -> String {
    format!("SELECT * FROM {} WHERE {} ORDER BY {}", table.name, owned(table, site), table.key.join(", "))
}

fn owned(table: &Table, site: &str) -> String {
    match table.owner {
        Owner::Tenant(column) => format!("{column} = '{site}'"),
        Owner::Reference => "false".to_owned(),
        Owner::Parent { column, table, key } => {
            let parent = muster_demo::all_tables().find(|parent| parent.name == table).expect("a parent");
            format!("{column} IN (SELECT {key} FROM {table} WHERE {})", owned(parent, site))
        }
    }
}
