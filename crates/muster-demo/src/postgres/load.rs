//! Fills a shard's database with the rows of its model.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::{Context, Result};
use postgres::Client;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::definitions;
use super::schema::{Definition, definition};
use super::server::{Database, quoted};
use super::value::Class;
use crate::kind::Role;
use crate::schema::tables;

/// Makes the tables of a shard with this role and copies the model's rows into them.
pub(crate) fn fill(database: &mut Database, role: Role, model: &Connection) -> Result<()> {
    let mut client = database.connect()?;
    let definitions = definitions_of(role)?;
    for Definition { table, before, body, .. } in &definitions {
        for statement in *before {
            run(&mut client, statement)?;
        }
        run(&mut client, &format!("CREATE TABLE {table} {body}"))?;
        run(&mut client, &format!("ALTER TABLE {table} REPLICA IDENTITY FULL"))?;
        copy(&mut client, model, table).with_context(|| format!("filling {table} of {}", database.name))?;
    }
    for Definition { table, foreign_keys, then, .. } in &definitions {
        for statement in *then {
            run(&mut client, statement)?;
        }
        for key in *foreign_keys {
            run(&mut client, &format!("ALTER TABLE {table} ADD FOREIGN KEY {key}"))?;
        }
    }
    run(&mut client, "VACUUM (ANALYZE)")?;
    database.definitions = definitions::read(&mut client)?;
    Ok(())
}

fn definitions_of(role: Role) -> Result<Vec<&'static Definition>> {
    let known = |name| definition(name).with_context(|| format!("{name} has no definition for PostgreSQL"));
    tables(role).iter().map(|table| known(table.name)).collect()
}

fn run(client: &mut Client, sql: &str) -> Result<()> {
    client.batch_execute(sql).with_context(|| sql.to_owned())
}

/// The columns of a table in their order, with the class of each.
pub(super) fn columns(client: &mut Client, table: &str) -> Result<Vec<(String, Class)>> {
    let sql = "SELECT a.attname::text, t.typname::text FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
               WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let rows = client.query(sql, &[&format!("public.{}", quoted(table))])?;
    Ok(rows.iter().map(|row| (row.get(0), Class::of(row.get(1)))).collect())
}

fn copy(client: &mut Client, model: &Connection, table: &str) -> Result<()> {
    let columns = columns(client, table)?;
    same_columns(model, table, &columns)?;
    let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
    let names = names.join(", ");
    let mut writer = client.copy_in(&format!("COPY {table} ({names}) FROM STDIN"))?;
    let mut statement = model.prepare(&format!("SELECT {names} FROM {table}"))?;
    let mut rows = statement.query([])?;
    let mut line = String::new();
    while let Some(row) = rows.next()? {
        line.clear();
        for (index, (_, class)) in columns.iter().enumerate() {
            if index > 0 {
                line.push('\t');
            }
            match class.encode(&row.get::<_, Value>(index)?) {
                Some(text) => escape(&text, &mut line),
                None => line.push_str("\\N"),
            }
        }
        line.push('\n');
        writer.write_all(line.as_bytes())?;
    }
    writer.finish()?;
    Ok(())
}

fn same_columns(model: &Connection, table: &str, columns: &[(String, Class)]) -> Result<()> {
    let mut statement = model.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let there: BTreeSet<String> =
        statement.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let here: BTreeSet<String> = columns.iter().map(|(name, _)| name.clone()).collect();
    anyhow::ensure!(here == there, "{table} has the columns {here:?} and its model {there:?}");
    Ok(())
}

/// As `COPY`'s text format has it.
fn escape(text: &str, line: &mut String) {
    for letter in text.chars() {
        match letter {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            other => line.push(other),
        }
    }
}
