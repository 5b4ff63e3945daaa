//! The live tables of a shard as a SQLite file, for the judge.

use std::io::BufRead as _;
use std::path::Path;

use anyhow::{Context, Result};
use postgres::{Client, IsolationLevel, Transaction};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::definitions;
use super::load::columns;
use super::server::Database;
use super::value::Class;
use crate::kind::Role;
use crate::schema::{Owner, Table, tables};

/// Writes the live rows to a new file, and gives the names of definitions that are not the ones that were made.
///
/// The file's columns have no types, so that every value stays as it was read.
pub(crate) fn export(database: &Database, role: Role, to: &Path) -> Result<Vec<String>> {
    let mut client = database.connect()?;
    let is = definitions::read(&mut client)?;
    let differing: Vec<String> =
        database.definitions.symmetric_difference(&is).map(|(name, _)| name.clone()).collect();
    if differing.is_empty() {
        rows(&mut client, role, to).with_context(|| format!("exporting {}", database.name))?;
    }
    Ok(differing)
}

fn rows(client: &mut Client, role: Role, to: &Path) -> Result<()> {
    let file = Connection::open(to)?;
    file.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")?;
    for table in tables(role) {
        // Within the transaction below nothing is asked but the rows.
        let columns = columns(client, table.name)?;
        let mut transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()?;
        copy(&mut transaction, &file, table, &columns).with_context(|| table.name.to_owned())?;
        transaction.commit()?;
    }
    file.execute_batch("COMMIT; ANALYZE")?;
    Ok(())
}

fn copy(
    transaction: &mut Transaction<'_>,
    file: &Connection,
    table: &Table,
    columns: &[(String, Class)],
) -> Result<()> {
    let names: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    file.execute_batch(&format!("CREATE TABLE {} ({})", table.name, names.join(", ")))?;
    let places: Vec<String> = (1..=columns.len()).map(|place| format!("?{place}")).collect();
    let mut insert = file.prepare(&format!("INSERT INTO {} VALUES ({})", table.name, places.join(", ")))?;
    let selected: Vec<String> = columns.iter().map(|(name, class)| class.selected(name)).collect();
    let sql = format!("COPY (SELECT {} FROM public.{}) TO STDOUT", selected.join(", "), table.name);
    let mut reader = transaction.copy_out(&sql)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(&line))?;
        let values = text.split('\t').zip(columns).map(|(field, (_, class))| match field {
            "\\N" => Value::Null,
            field => class.decode(&unescaped(field)),
        });
        insert.execute(params_from_iter(values))?;
    }
    drop(reader);
    index(file, table)
}

/// What the judge looks rows up by.
fn index(file: &Connection, table: &Table) -> Result<()> {
    let (name, key) = (table.name, table.key.join(", "));
    file.execute_batch(&format!("CREATE INDEX {name}_key ON {name} ({key})"))?;
    let (Owner::Tenant(column) | Owner::Parent { column, .. }) = table.owner else { return Ok(()) };
    if table.key.first() != Some(&column) {
        file.execute_batch(&format!("CREATE INDEX {name}_owner ON {name} ({column})"))?;
    }
    Ok(())
}

/// A field of `COPY`'s text format.
fn unescaped(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('v') => text.push('\u{b}'),
            Some(other) => text.push(other),
            None => {}
        }
    }
    text
}
