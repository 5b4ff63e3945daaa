//! What a SQLite file says about its tables: definitions for the repository, and the particulars that triggers and
//! key comparisons depend on.
//!
//! - [`read_shape`]: one table as a [`Shape`], whose `def` is the portable part.
//! - [`user_tables`]: the application's tables.
//! - [`quote`], [`quote_text`]: identifiers and texts in SQL.
//!
//! # Errors
//! Those of rusqlite; which shapes cannot be captured is for capture to say.

use muster_types::table::{ColumnDef, ForeignKey, TableDef, UniqueKey};
use rusqlite::{Connection, OptionalExtension, params};

/// An identifier in SQL.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal in SQL.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A primary or unique key as SQLite compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyShape {
    /// The index's name; `PRIMARY KEY` for the rowid alias, which has no index.
    pub name: String,
    /// Is the primary key.
    pub primary: bool,
    /// Columns with their collations, in index order; an expression has no name.
    pub columns: Vec<(Option<String>, String)>,
    /// The predicate of a partial index.
    pub predicate: Option<String>,
}

/// One table with what its definition does not say in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The portable definition.
    pub def: TableDef,
    /// Stored without a rowid.
    pub without_rowid: bool,
    /// The column that is another name of the rowid (INTEGER PRIMARY KEY).
    pub rowid_alias: Option<String>,
    /// The primary key first, if there is one, then the unique keys.
    pub keys: Vec<KeyShape>,
    /// Not an ordinary table: virtual, or the shadow of a virtual one.
    pub special: bool,
}

impl Shape {
    /// The collation under which `column` is a key by itself; `None` when it is none.
    pub fn single_key_collation(&self, column: &str) -> Option<&str> {
        let found = self.keys.iter().find(|key| match key.columns.as_slice() {
            [(Some(name), _)] => name == column && key.predicate.is_none(),
            _ => false,
        })?;
        found.columns.first().map(|(_, collation)| collation.as_str())
    }

    /// The affinity of a column, as a type name that has it.
    pub fn affinity(&self, column: &str) -> &'static str {
        let declared = self.def.columns.iter().find(|found| found.name == column);
        affinity_of(declared.map_or("", |column| column.declared_type.as_str()))
    }
}

/// SQLite's rules from declared type to affinity.
pub fn affinity_of(declared_type: &str) -> &'static str {
    let upper = declared_type.to_ascii_uppercase();
    let has = |part: &str| upper.contains(part);
    if has("INT") {
        "INTEGER"
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        "TEXT"
    } else if has("BLOB") || upper.is_empty() {
        "BLOB"
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        "REAL"
    } else {
        "NUMERIC"
    }
}

/// Names of the application's tables: neither SQLite's nor Muster's own.
///
/// # Errors
/// Those of rusqlite.
pub fn user_tables(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         AND name NOT LIKE '\\_muster%' ESCAPE '\\' ORDER BY name",
    )?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

/// The table of exactly that name, if there is one.
///
/// # Errors
/// Those of rusqlite.
pub fn read_shape(conn: &Connection, table: &str) -> rusqlite::Result<Option<Shape>> {
    let listed: Option<(String, bool)> = conn
        .prepare_cached("SELECT type, wr FROM pragma_table_list(?1) WHERE schema = 'main' AND name = ?1")?
        .query_row([table], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((table_type, without_rowid)) = listed.filter(|(table_type, _)| table_type != "view") else {
        return Ok(None);
    };
    let (columns, key) = columns_of(conn, table)?;
    let mut keys = keys_of(conn, table)?;
    let rowid_alias = match key.as_slice() {
        [only] if !without_rowid && !keys.iter().any(|key| key.primary) => Some(only.clone()),
        _ => None,
    };
    if let Some(alias) = &rowid_alias {
        let columns = vec![(Some(alias.clone()), "BINARY".to_owned())];
        keys.push(KeyShape { name: "PRIMARY KEY".to_owned(), primary: true, columns, predicate: None });
    }
    keys.sort_by(|a, b| b.primary.cmp(&a.primary).then_with(|| a.name.cmp(&b.name)));
    let unique = keys.iter().filter(|key| !key.primary).filter_map(unique_key).collect();
    let def = TableDef {
        name: table.to_owned(),
        columns,
        key,
        unique,
        foreign_keys: foreign_keys_of(conn, table)?,
        create_sql: create_sql_of(conn, table)?,
    };
    Ok(Some(Shape { def, without_rowid, rowid_alias, keys, special: table_type != "table" }))
}

/// The definition of the table of exactly that name, if there is one.
///
/// # Errors
/// Those of rusqlite.
pub fn read_table(conn: &Connection, table: &str) -> rusqlite::Result<Option<TableDef>> {
    Ok(read_shape(conn, table)?.map(|shape| shape.def))
}

fn unique_key(key: &KeyShape) -> Option<UniqueKey> {
    let columns: Option<Vec<String>> = key.columns.iter().map(|(name, _)| name.clone()).collect();
    Some(UniqueKey { name: key.name.clone(), columns: columns?, predicate_sql: key.predicate.clone() })
}

fn columns_of(conn: &Connection, table: &str) -> rusqlite::Result<(Vec<ColumnDef>, Vec<String>)> {
    let mut statement = conn.prepare_cached(
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1, 'main') ORDER BY cid",
    )?;
    let mut key: Vec<(i64, String)> = Vec::new();
    let mut columns = Vec::new();
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let place: i64 = row.get(4)?;
        if place > 0 {
            key.push((place, name.clone()));
        }
        columns.push(ColumnDef {
            name,
            declared_type: row.get(1)?,
            not_null: row.get(2)?,
            default_sql: row.get(3)?,
            generated: row.get::<_, i64>(5)? != 0,
        });
    }
    key.sort();
    Ok((columns, key.into_iter().map(|(_, name)| name).collect()))
}

fn keys_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<KeyShape>> {
    let mut statement = conn.prepare_cached(
        "SELECT l.name, l.origin = 'pk', s.sql, l.partial FROM pragma_index_list(?1, 'main') l \
         LEFT JOIN main.sqlite_schema s ON s.type = 'index' AND s.name = l.name WHERE l.\"unique\" ORDER BY l.name",
    )?;
    let mut keys = Vec::new();
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let sql: Option<String> = row.get(2)?;
        let partial: bool = row.get(3)?;
        let columns = key_columns_of(conn, &name)?;
        let predicate = sql.filter(|_| partial).and_then(|sql| predicate_of(&sql));
        keys.push(KeyShape { name, primary: row.get(1)?, columns, predicate });
    }
    Ok(keys)
}

fn key_columns_of(conn: &Connection, index: &str) -> rusqlite::Result<Vec<(Option<String>, String)>> {
    let mut statement = conn.prepare_cached(
        "SELECT name, coalesce(coll, 'BINARY') FROM pragma_index_xinfo(?1, 'main') WHERE \"key\" ORDER BY seqno",
    )?;
    let columns = statement.query_map([index], |row| Ok((row.get(0)?, row.get(1)?)))?;
    columns.collect()
}

fn foreign_keys_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<ForeignKey>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, \"table\", \"from\", \"to\" FROM pragma_foreign_key_list(?1, 'main') ORDER BY id, seq",
    )?;
    let mut found: Vec<(i64, ForeignKey)> = Vec::new();
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        if found.last().is_none_or(|(last, _)| *last != id) {
            let parent_table = row.get(1)?;
            found.push((id, ForeignKey { columns: vec![], parent_table, parent_columns: vec![] }));
        }
        if let Some((_, key)) = found.last_mut() {
            key.columns.push(row.get(2)?);
            key.parent_columns.extend(row.get::<_, Option<String>>(3)?);
        }
    }
    for (_, key) in found.iter_mut().filter(|(_, key)| key.parent_columns.is_empty()) {
        key.parent_columns = columns_of(conn, &key.parent_table)?.1;
    }
    Ok(found.into_iter().map(|(_, key)| key).collect())
}

fn create_sql_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT sql FROM main.sqlite_schema WHERE tbl_name = ?1 AND type IN ('table', 'index') AND sql IS NOT NULL \
         ORDER BY type = 'index', name",
    )?;
    let statements = statement.query_map(params![table], |row| row.get(0))?;
    statements.collect()
}

/// The predicate in the text of a partial index: what follows the first WHERE outside of quotes, comments and
/// parentheses.
fn predicate_of(sql: &str) -> Option<String> {
    let bytes = sql.as_bytes();
    let (mut at, mut depth) = (0, 0_u32);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'' | b'`') => at = skip_until(bytes, at + 1, &[quote]),
            b'[' => at = skip_until(bytes, at + 1, b"]"),
            b'-' if bytes[at..].starts_with(b"--") => at = skip_until(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => at = skip_until(bytes, at + 2, b"*/"),
            b'(' => (depth, at) = (depth + 1, at + 1),
            b')' => (depth, at) = (depth.saturating_sub(1), at + 1),
            byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                let end = word_end(bytes, at);
                if depth == 0 && bytes[at..end].eq_ignore_ascii_case(b"where") {
                    return sql.get(end..).map(|rest| rest.trim().to_owned());
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

fn word_end(bytes: &[u8], from: usize) -> usize {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'$' || *byte >= 0x80;
    bytes[from..].iter().position(|byte| !inside(byte)).map_or(bytes.len(), |length| from + length)
}

fn skip_until(bytes: &[u8], from: usize, end: &[u8]) -> usize {
    let found = bytes[from.min(bytes.len())..].windows(end.len()).position(|window| window == end);
    found.map_or(bytes.len(), |length| from + length + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sql: &str, table: &str) -> Shape {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(sql).unwrap();
        read_shape(&conn, table).unwrap().unwrap()
    }

    #[test]
    fn rowid_alias_is_told_from_other_primary_keys() {
        assert_eq!(shape("CREATE TABLE t(a INTEGER PRIMARY KEY)", "t").rowid_alias.as_deref(), Some("a"));
        assert_eq!(shape("CREATE TABLE t(a INT PRIMARY KEY)", "t").rowid_alias, None);
        assert_eq!(shape("CREATE TABLE t(a INTEGER PRIMARY KEY DESC)", "t").rowid_alias, None);
        let without = shape("CREATE TABLE t(a INTEGER PRIMARY KEY) WITHOUT ROWID", "t");
        assert_eq!((without.rowid_alias, without.without_rowid), (None, true));
        assert!(without.def.columns[0].not_null);
    }

    #[test]
    fn a_whole_definition_with_odd_names() {
        let found = shape(
            "CREATE TABLE p(x TEXT COLLATE NOCASE PRIMARY KEY NOT NULL) WITHOUT ROWID;
             CREATE TABLE \"odd \"\"t\"(\"a b\" TEXT NOT NULL, b REFERENCES p, c AS (b || 'x'), d DEFAULT 5,
                PRIMARY KEY(\"a b\", d), UNIQUE(b COLLATE NOCASE));
             CREATE UNIQUE INDEX u ON \"odd \"\"t\"(d) WHERE \"a b\" <> 'where (' /* ) where */ AND d > 3",
            "odd \"t",
        );
        assert_eq!(found.def.key, ["a b", "d"]);
        assert_eq!(found.def.key_indexes(), [0, 2]);
        assert_eq!(found.def.foreign_keys[0].parent_columns, ["x"]);
        assert!(found.def.columns[2].generated);
        assert_eq!(found.def.columns[3].default_sql.as_deref(), Some("5"));
        let partial = found.keys.iter().find(|key| key.name == "u").unwrap();
        assert_eq!(partial.predicate.as_deref(), Some("\"a b\" <> 'where (' /* ) where */ AND d > 3"));
        assert_eq!(found.single_key_collation("b"), Some("NOCASE"));
        assert_eq!(found.single_key_collation("d"), None);
        assert_eq!(found.def.create_sql.len(), 2);
    }
}
