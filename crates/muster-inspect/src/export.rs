//! Rows as text that `sqlite3` or `psql` loads.

use std::io::Write;

use muster_rows::{Class, Field, Row, encode_row};
use muster_types::table::CapturedTable;

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
        Dialect::Postgres => writeln!(out, "BEGIN;"),
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
        for statement in &table.def.create_sql {
            writeln!(out, "{statement};")?;
        }
    }
    match dialect {
        Dialect::Sqlite => Ok(()),
        Dialect::Postgres => {
            writeln!(out, "COPY {} ({}) FROM stdin;", quoted(&table.def.name), columns(table))
        }
    }
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
