//! Rows of PostgreSQL as text, by site and table, and how two such images differ.

use std::collections::{BTreeMap, BTreeSet};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A row: text by column name, `None` for NULL.
pub type Row = BTreeMap<String, Option<String>>;

/// By site and table: rows in an order of their own. A site without rows in a table has no entry.
pub type Rows = BTreeMap<(String, String), Vec<Row>>;

/// What the text of values depends on; and the schema, since the superuser of the test clusters is called like Muster's
/// own schema, which the usual search path would look into first.
const OPTIONS: &str = "-c search_path=public \
                       -c TimeZone=UTC -c DateStyle=ISO,YMD -c IntervalStyle=postgres -c extra_float_digits=1 \
                       -c bytea_output=hex -c client_encoding=UTF8";

/// A table and how its rows belong to sites.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// The table.
    pub table: &'static str,
    /// `SELECT` of the site as `owner`, then of the row's columns: a plain join.
    pub sql: &'static str,
    /// Columns that PostgreSQL computes: neither captured nor restored.
    pub generated: &'static [&'static str],
}

/// A connection under settings that the text of values depends on.
pub fn connect(url: &str) -> Client {
    let mut config: Config = url.parse().unwrap();
    config.options(OPTIONS).connect(NoTls).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// All rows of a database that belong to a site, as one transaction sees them.
pub fn rows(client: &mut Client, tables: &[Owned]) -> Rows {
    client.batch_execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").unwrap();
    let found = read(client, tables, "true");
    client.batch_execute("COMMIT").unwrap();
    found
}

/// The rows of one site, as the open transaction sees them.
pub fn rows_of(client: &mut Client, tables: &[Owned], site: &str) -> Rows {
    read(client, tables, &format!("owner = '{site}'"))
}

fn read(client: &mut Client, tables: &[Owned], filter: &str) -> Rows {
    let mut found = Rows::new();
    for Owned { table, sql, generated } in tables {
        let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&quoted(table)]).unwrap();
        if !there.get::<_, bool>(0) {
            continue;
        }
        for message in client.simple_query(&format!("SELECT * FROM ({sql}) owned WHERE {filter}")).unwrap() {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let Some(site) = row.get(0) else { continue };
            let columns = row.columns().iter().enumerate().skip(1);
            let columns = columns.filter(|(_, column)| !generated.contains(&column.name()));
            let columns =
                columns.map(|(at, column)| (column.name().to_owned(), row.get(at).map(str::to_owned)));
            found.entry((site.to_owned(), (*table).to_owned())).or_default().push(columns.collect());
        }
    }
    found.values_mut().for_each(|rows| rows.sort());
    found
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Takes out of `rows` the columns that `wanted` does not have at the same place, if all that they hold is `constant`:
/// a column that was added with a constant default is known only once a row of its table changes.
pub fn without_added(mut rows: Rows, wanted: &Rows, constant: &str) -> Rows {
    for (place, rows) in &mut rows {
        let Some(known) = wanted.get(place).and_then(|rows| rows.first()) else { continue };
        let columns: BTreeSet<String> = rows.iter().flat_map(|row| row.keys().cloned()).collect();
        for column in columns.iter().filter(|column| !known.contains_key(*column)) {
            if rows.iter().all(|row| row.get(column).is_some_and(|value| value.as_deref() == Some(constant)))
            {
                rows.iter_mut().for_each(|row| drop(row.remove(column)));
            }
        }
        rows.sort();
    }
    rows
}

/// What stands in one and not in the other, in words; empty if nothing does.
pub fn differences(muster: &Rows, judge: &Rows) -> String {
    let mut text = String::new();
    for place in muster.keys().chain(judge.keys()).collect::<BTreeSet<_>>() {
        let none = Vec::new();
        let (ours, theirs) = (muster.get(place).unwrap_or(&none), judge.get(place).unwrap_or(&none));
        if ours == theirs {
            continue;
        }
        let (site, table) = place;
        text +=
            &format!("site {site}, table {table}: Muster {} rows, PostgreSQL {}\n", ours.len(), theirs.len());
        for row in ours.iter().filter(|row| !theirs.contains(row)).take(5) {
            text += &format!("  only Muster:     {}\n", shown(row));
        }
        for row in theirs.iter().filter(|row| !ours.contains(row)).take(5) {
            text += &format!("  only PostgreSQL: {}\n", shown(row));
        }
    }
    text
}

/// A row for people; long values by their length and end.
fn shown(row: &Row) -> String {
    let value = |value: &Option<String>| match value {
        None => "NULL".to_owned(),
        Some(text) if text.len() > 40 => {
            let end: String = text.chars().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect();
            format!("{} bytes …{end}", text.len())
        }
        Some(text) => format!("`{text}`"),
    };
    row.iter().map(|(name, held)| format!("{name}={}", value(held))).collect::<Vec<_>>().join(" ")
}
