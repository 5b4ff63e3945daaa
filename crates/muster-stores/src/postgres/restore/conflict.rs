//! Keys that restored rows would share with live ones: which, with which values, and who holds them.
//!
//! # Invariants
//! Asked inside the publish transaction, behind the savepoint of the failed insert, so that the answer is about the
//! same state.

use muster_engine::driver::{DriverError, StoreWork};
use tokio_postgres::{Client, Error};

use super::live::KindTable;
use super::shard::Shard;
use super::stage::{of_attempt, table_name};
use crate::postgres::schema::{LiveKey, quote};

/// Longest printed key value.
const VALUE_CHARS_MAX: usize = 80;

/// The first key of staged rows that a live row holds.
pub(super) async fn taken_key(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    table: &KindTable<'_>,
    attempt: i64,
) -> Result<Option<DriverError>, Error> {
    for key in &table.now.keys {
        let Some(sql) = taken_sql(work, table, key, attempt) else { continue };
        if let Some(row) = client.query_opt(&sql, &[]).await? {
            let holder = row.get::<_, Option<&str>>(1);
            return Ok(Some(taken(shard, work, table, key, row.get(0), holder)));
        }
    }
    Ok(None)
}

fn taken(
    shard: &Shard,
    work: &StoreWork,
    table: &KindTable<'_>,
    key: &LiveKey,
    values: &str,
    holder: Option<&str>,
) -> DriverError {
    let holder = holder.map_or_else(|| "a row of no site".to_owned(), |site| format!("site:{site}"));
    let columns: Vec<&str> = key.columns.iter().flatten().map(String::as_str).collect();
    shard.permanent(
        format!(
            "{}: key ({}) = ({}) of table `{}` is held by {holder}",
            work.store,
            columns.join(", "),
            shortened(values),
            table.name(),
        ),
        format!("decide who keeps the key, change or remove the row of {holder}, then resume the run"),
    )
}

/// None for a key over expressions, or over columns that staged rows do not have.
fn taken_sql(work: &StoreWork, table: &KindTable<'_>, key: &LiveKey, attempt: i64) -> Option<String> {
    let then = table.then?;
    let columns: Vec<&str> = key.columns.iter().map(Option::as_deref).collect::<Option<_>>()?;
    let staged = |name: &&str| then.stored_columns().any(|column| column.name == **name);
    if columns.is_empty() || !columns.iter().all(staged) {
        return None;
    }
    let equal = |name: &&str| table.now.equal_in(key, name, "t", "s");
    let equal: Vec<String> = columns.iter().map(equal).collect();
    let values: Vec<String> =
        columns.iter().map(|name| format!("quote_nullable(t.{})", quote(name))).collect();
    let filter = key.predicate_sql.as_ref().map_or_else(|| "true".to_owned(), |sql| format!("({sql})"));
    let (joins, site) = match &table.way {
        Some(way) => (way.joins("LEFT"), format!("{}::text", way.tenant())),
        None => (String::new(), "NULL::text".to_owned()),
    };
    Some(format!(
        "SELECT concat_ws(', ', {values}), {site} FROM (SELECT * FROM {staging} s WHERE {attempt} AND {filter}) s \
         JOIN (SELECT * FROM {live} WHERE {filter}) t ON {equal}{joins} LIMIT 1",
        values = values.join(", "),
        staging = table_name(&work.run, then),
        attempt = of_attempt(attempt),
        live = table.now.rows_of(),
        equal = equal.join(" AND "),
    ))
}

/// Values for messages.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
