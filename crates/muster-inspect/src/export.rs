//! Rows as text that `sqlite3` or `psql` loads.
//!
//! # Invariants
//! - Foreign keys stand behind all rows, so that tables may refer to each other in a circle. Those to tables of other
//!   stores are left out, in a comment: an empty database has no such table.

use std::io::Write;

use muster_rows::{Class, Field, Row, encode_row};
use muster_types::table::{CapturedTable, Owner};

use crate::error::InspectError;

/// What loads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `sqlite3 FILE < export.sql`: INSERT statements that keep storage classes.
    Sqlite,
    /// `psql -f export.sql`: COPY blocks.
    Postgres,
}

/// Writes what comes before all tables.
///
/// # Errors
/// Of `out`.
pub fn begin(dialect: Dialect, out: &mut dyn Write) -> std::io::Result<()> {
    match dialect {
        Dialect::Sqlite => writeln!(out, "PRAGMA foreign_keys = OFF;\nBEGIN;"),
        // What the text of values depends on.
        Dialect::Postgres => writeln!(
            out,
            "BEGIN;\nSET LOCAL client_encoding = 'UTF8';\nSET LOCAL DateStyle = 'ISO, YMD';\n\
             SET LOCAL IntervalStyle = 'postgres';\nSET LOCAL TimeZone = 'UTC';"
        ),
    }
}

/// Writes what comes before the rows of a table, with its definition where it is asked for.
///
/// # Errors
/// Of `out`.
pub fn begin_table(
    dialect: Dialect,
    table: &CapturedTable,
    with_definition: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if with_definition {
        // Of a table that sites share, owner, privileges and triggers are the shard's affair and not the site's.
        let shared = !matches!(table.owner, Owner::Site { .. });
        let of_shard =
            |sql: &str| shared && (sql.starts_with("/* last */") || sql.starts_with("/* schema */"));
        let wanted = |sql: &&String| parent_of(sql).is_none() && !of_shard(sql);
        for statement in table.def.create_sql.iter().filter(wanted) {
            writeln!(out, "{statement};")?;
        }
    }
    match dialect {
        Dialect::Sqlite => Ok(()),
        Dialect::Postgres => {
            writeln!(out, "COPY {} ({}) FROM stdin;", name_in_postgres(table), columns(table))
        }
    }
}

/// Writes the foreign keys of `tables`, behind the rows of all of them.
///
/// # Errors
/// Of `out`.
pub fn foreign_keys(tables: &[&CapturedTable], out: &mut dyn Write) -> std::io::Result<()> {
    let names: Vec<String> = tables.iter().map(|table| name_in_postgres(table).replace('"', "")).collect();
    for statement in tables.iter().flat_map(|table| &table.def.create_sql) {
        let Some(parent) = parent_of(statement) else { continue };
        if names.contains(&parent.replace('"', "")) {
            writeln!(out, "{statement};")?;
        } else {
            writeln!(out, "-- of another store: {};", statement.replace('\n', " "))?;
        }
    }
    Ok(())
}

/// The table that a statement's foreign key refers to; none of a statement that adds none. SQLite's are part of the
/// table.
fn parent_of(statement: &str) -> Option<&str> {
    let (_, key) = statement.strip_prefix("ALTER TABLE ")?.split_once(" FOREIGN KEY (")?;
    let (_, parent) = key.split_once(") REFERENCES ")?;
    Some(&parent[..end_of_name(parent, '(')])
}

/// The name by which PostgreSQL knows the table: with its schema, where the definition is PostgreSQL's.
fn name_in_postgres(table: &CapturedTable) -> String {
    let created = table.def.create_sql.iter().find_map(|statement| {
        let name = statement
            .strip_prefix("CREATE TABLE ")
            .or_else(|| statement.strip_prefix("CREATE UNLOGGED TABLE "))?;
        let name = &name[..end_of_name(name, ' ')];
        name.starts_with("\"").then_some(name).filter(|name| name.contains("\".\""))
    });
    created.map_or_else(|| quoted(&table.def.name), str::to_owned)
}

/// Where a name ends: before `end`, unless that is quoted.
fn end_of_name(text: &str, end: char) -> usize {
    let mut in_quotes = false;
    let ends = |(_, letter): &(usize, char)| {
        in_quotes ^= *letter == '"';
        *letter == end && !in_quotes
    };
    text.char_indices().find(ends).map_or(text.len(), |(at, _)| at)
}

/// Writes one row.
///
/// # Errors
/// [`InspectError::Unwritable`] for a value that the dialect cannot hold, or an error of `out`.
pub fn row(
    dialect: Dialect,
    table: &CapturedTable,
    row: &Row,
    out: &mut dyn Write,
) -> Result<(), InspectError> {
    let written = match dialect {
        Dialect::Sqlite => {
            let values: Vec<String> = row.fields().map(literal).collect();
            let (name, columns) = (quoted(&table.def.name), columns(table));
            writeln!(out, "INSERT INTO {name} ({columns}) VALUES ({});", values.join(", "))
        }
        Dialect::Postgres => {
            if let Some(column) =
                row.fields().position(|field| field.class == Class::Text && field.bytes.contains(&0))
            {
                return Err(InspectError::Unwritable(format!(
                    "column {column} of a row of `{}` holds a NUL character, which PostgreSQL text cannot; \
                     export with --format sqlite",
                    table.def.name
                )));
            }
            out.write_all(&copy_line(row))
        }
    };
    written.map_err(|error| InspectError::Unwritable(format!("failed to write the export: {error}")))
}

/// Writes what comes behind the rows of a table.
///
/// # Errors
/// Of `out`.
pub fn end_table(dialect: Dialect, out: &mut dyn Write) -> std::io::Result<()> {
    match dialect {
        Dialect::Sqlite => Ok(()),
        Dialect::Postgres => writeln!(out, "\\."),
    }
}

/// Writes what comes behind all tables.
///
/// # Errors
/// Of `out`.
pub fn end(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "COMMIT;")
}

/// The COPY line without the field of storage classes.
fn copy_line(row: &Row) -> Vec<u8> {
    let mut line = Vec::new();
    encode_row(row, &mut line);
    let classes = line.iter().rposition(|byte| *byte == b'\t').unwrap_or(line.len());
    line.truncate(classes);
    line.push(b'\n');
    line
}

fn columns(table: &CapturedTable) -> String {
    let names: Vec<String> = table.def.stored_columns().map(|column| quoted(&column.name)).collect();
    names.join(", ")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(field: Field<'_>) -> String {
    let hex = || field.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match field.class {
        Class::Null | Class::Unchanged => "NULL".to_owned(),
        Class::Integer => String::from_utf8_lossy(field.bytes).into_owned(),
        Class::Real => match field.bytes {
            b"Infinity" => "9e999".to_owned(),
            b"-Infinity" => "-9e999".to_owned(),
            digits => real(&String::from_utf8_lossy(digits)),
        },
        Class::Blob => format!("x'{}'", hex()),
        Class::Text => match std::str::from_utf8(field.bytes) {
            Ok(text) if !text.contains('\0') => format!("'{}'", text.replace('\'', "''")),
            _ => format!("CAST(x'{}' AS TEXT)", hex()),
        },
    }
}

/// A literal that SQLite reads as a real, not as an integer.
fn real(digits: &str) -> String {
    if digits.contains(['.', 'e', 'E']) { digits.to_owned() } else { format!("{digits}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parents_are_read_from_statements() {
        let parent = |sql| parent_of(sql);
        assert_eq!(
            parent(
                "ALTER TABLE \"public\".\"a\" ADD CONSTRAINT \"k\" FOREIGN KEY (x) REFERENCES public.b(id) DEFERRABLE"
            ),
            Some("public.b")
        );
        assert_eq!(
            parent("ALTER TABLE \"s\".\"a\" ADD CONSTRAINT \"k\" FOREIGN KEY (x) REFERENCES s.\"b (c)\"(id)"),
            Some("s.\"b (c)\"")
        );
        assert_eq!(parent("ALTER TABLE \"s\".\"a\" ADD CONSTRAINT \"k\" PRIMARY KEY (id)"), None);
        assert_eq!(parent("CREATE TABLE a (b REFERENCES c)"), None);
        let name = "\"s t\".\"a (b)\"";
        assert_eq!(&name[..end_of_name("\"s t\".\"a (b)\" (id integer)", ' ')], name);
    }
}
