//! Compares rows between `main` (what must be) and `live` (what is), inside SQLite.

use std::collections::BTreeMap;

use anyhow::Result;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, ToSql};

use crate::schema::{self, Owner, Table};

/// Rows shown per table and direction when something differs.
const SHOWN: usize = 25;

/// The queries for one table.
pub(super) struct Comparison {
    pub(super) table: &'static Table,
    columns: Vec<String>,
    /// Rows of the site `?1`.
    site: Queries,
    /// Rows of nobody in `temp.victim`.
    neighbours: Queries,
}

/// Counts and differences under one condition.
struct Queries {
    /// Rows there must be, rows there are, rows that must be and are not.
    counts: String,
    /// Rows that must be and are not.
    missing: String,
    /// Rows that are and must not be.
    extra: String,
}

/// Which rows are compared.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// One site's.
    Site(&'a str),
    /// All that are nobody's in `temp.victim`.
    Neighbours,
}

/// The outcome for one table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Rows there must be.
    pub(super) rows: u64,
    pub(super) equal: bool,
}

impl Comparison {
    pub(super) fn new(connection: &Connection, table: &'static Table) -> Result<Self> {
        let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1, 'main')")?;
        let columns: Vec<String> =
            statement.query_map([table.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Self {
            site: Queries::new(table, &columns, site_condition),
            neighbours: Queries::new(table, &columns, neighbour_condition),
            table,
            columns,
        })
    }

    /// Equal, and how many rows.
    pub(super) fn run(&self, connection: &Connection, rows: Rows<'_>) -> Result<Outcome> {
        let mut statement = connection.prepare_cached(&self.queries(rows).counts)?;
        let (must, is, missing): (i64, i64, i64) = statement
            .query_row(parameters(&rows).as_slice(), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(Outcome { rows: must.unsigned_abs(), equal: must == is && missing == 0 })
    }

    /// The site has rows in `db`.
    pub(super) fn any(&self, connection: &Connection, db: &str, site: &str) -> Result<bool> {
        let (name, condition) = (self.table.name, site_condition(self.table, db));
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {db}.{name} WHERE {condition})");
        Ok(connection.prepare_cached(&sql)?.query_row([site], |row| row.get(0))?)
    }

    /// What differs, in words, a row each.
    pub(super) fn describe(&self, connection: &Connection, rows: Rows<'_>) -> Result<Vec<String>> {
        let queries = self.queries(rows);
        let missing = self.by_key(connection, &queries.missing, rows)?;
        let mut extra = self.by_key(connection, &queries.extra, rows)?;
        let mut texts = Vec::new();
        for (key, must) in missing {
            texts.push(match extra.remove(&key) {
                None => format!("row {key} is missing"),
                Some(is) => format!("row {key}: {}", self.changed(&must, &is)),
            });
        }
        texts.extend(extra.into_keys().map(|key| format!("row {key} must not be there")));
        Ok(texts)
    }

    fn queries(&self, rows: Rows<'_>) -> &Queries {
        match rows {
            Rows::Site(_) => &self.site,
            Rows::Neighbours => &self.neighbours,
        }
    }

    fn by_key(
        &self,
        connection: &Connection,
        sql: &str,
        rows: Rows<'_>,
    ) -> Result<BTreeMap<String, Vec<Value>>> {
        let mut statement = connection.prepare(sql)?;
        let mut found = statement.query(parameters(&rows).as_slice())?;
        let mut by_key = BTreeMap::new();
        while let Some(row) = found.next()? {
            let values: Vec<Value> =
                (0..self.columns.len()).map(|index| row.get(index)).collect::<Result<_, _>>()?;
            let key = self.table.key.iter().map(|name| {
                let place = self.columns.iter().position(|column| column == name);
                place.map_or_else(String::new, |place| shown(&values[place]))
            });
            by_key.insert(key.collect::<Vec<_>>().join(", "), values);
        }
        Ok(by_key)
    }

    fn changed(&self, must: &[Value], is: &[Value]) -> String {
        let pairs = self.columns.iter().zip(must.iter().zip(is));
        let changed = pairs
            .filter(|(_, (must, is))| must != is)
            .map(|(column, (must, is))| format!("`{column}` must be {} and is {}", shown(must), shown(is)));
        changed.collect::<Vec<_>>().join(", ")
    }
}

impl Queries {
    fn new(table: &Table, columns: &[String], condition: fn(&Table, &str) -> String) -> Self {
        // BINARY: a column's own collation must not make different texts equal. typeof: 1, 1.0 and '1' differ.
        let list: Vec<String> = columns
            .iter()
            .map(|column| format!("\"{column}\" COLLATE BINARY, typeof(\"{column}\")"))
            .collect();
        let plain: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
        let (list, plain) = (list.join(", "), plain.join(", "));
        let select = |what: &str, db: &str| {
            format!("SELECT {what} FROM {db}.{} WHERE {}", table.name, condition(table, db))
        };
        let except = |a: &str, b: &str| format!("{} EXCEPT {}", select(&list, a), select(&list, b));
        let detail = |a: &str, b: &str| {
            // Back from the list with types to plain columns, by key.
            let keys: Vec<String> = table.key.iter().map(|key| format!("\"{key}\"")).collect();
            let keys = keys.join(", ");
            let differing = except(a, b);
            let names: Vec<String> =
                columns.iter().enumerate().map(|(at, column)| format!("\"{column}\", t{at}")).collect();
            format!(
                "WITH differing ({}) AS ({differing}) SELECT {plain} FROM {a}.{} WHERE ({keys}) IN
                 (SELECT {keys} FROM differing) LIMIT {SHOWN}",
                names.join(", "),
                table.name
            )
        };
        Self {
            counts: format!(
                "SELECT ({}), ({}), (SELECT count(*) FROM ({}))",
                select("count(*)", "main"),
                select("count(*)", "live"),
                except("main", "live")
            ),
            missing: detail("main", "live"),
            extra: detail("live", "main"),
        }
    }
}

fn parameters<'a>(rows: &'a Rows<'a>) -> Vec<&'a dyn ToSql> {
    match rows {
        Rows::Site(site) => vec![site as &dyn ToSql],
        Rows::Neighbours => vec![],
    }
}

fn site_condition(table: &Table, db: &str) -> String {
    owned(table, db, "= ?1")
}

/// Orphans count as neighbours: a row that nobody owns must be explained, too.
fn neighbour_condition(table: &Table, db: &str) -> String {
    match table.owner {
        Owner::Reference => "true".to_owned(),
        _ => format!("NOT ({})", owned(table, db, "IN (SELECT site FROM temp.victim)")),
    }
}

fn owned(table: &Table, db: &str, test: &str) -> String {
    match table.owner {
        Owner::Tenant(column) => format!("{column} {test}"),
        Owner::Reference => "false".to_owned(),
        Owner::Parent { column, table, key } => {
            let above =
                schema::table(table).map_or_else(|| "false".to_owned(), |parent| owned(parent, db, test));
            format!("{column} IN (SELECT {key} FROM {db}.{table} WHERE {above})")
        }
    }
}

/// A value with its storage class.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 40;
    let text = match ValueRef::from(value) {
        ValueRef::Null => return "NULL".to_owned(),
        ValueRef::Integer(number) => return format!("integer {number}"),
        ValueRef::Real(number) => return format!("real {number}"),
        ValueRef::Text(bytes) => format!("text '{}'", String::from_utf8_lossy(bytes).escape_debug()),
        ValueRef::Blob(bytes) => {
            format!("blob {}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    };
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}… ({} characters)", &text[..cut], text.chars().count()),
        None => text,
    }
}
