//! Foreign keys of published rows, checked by us: under `session_replication_role = replica` the server checks none.
//!
//! # Invariants
//! - Every row that a published row refers to is there, and, unless it is published itself, is locked against being
//!   deleted or given another key until the commit.
//! - It makes no difference whether a key is deferrable, or whether keys form a circle: all rows are there when it is
//!   asked.

use futures::future::join_all;
use muster_engine::driver::DriverError;
use tokio_postgres::{Client, Error, Row};

use super::conflict::shortened;
use super::live::KindTable;
use super::shard::Shard;
use super::stage::{ATTEMPT, StagedRows, of_attempts, table_name};
use crate::postgres::schema::{LiveForeignKey, quote};

/// How often it is asked for a row that is not there: a transaction that was waited for may have deleted it and brought
/// it back, and only the next statement sees the new one.
const ASKED_MAX: usize = 3;

/// A row that is referred to and not there, or an error on the way.
pub(super) struct Missing {
    /// The attempt that staged a row which refers to it, where it is known.
    pub(super) attempt: Option<i64>,
    pub(super) error: DriverError,
}

/// Checks every foreign key of the published tables.
pub(super) async fn check(
    shard: &Shard,
    client: &Client,
    rows: &StagedRows<'_>,
    tables: &[KindTable<'_>],
) -> Result<(), Missing> {
    let published = tables.iter().filter(|table| table.then.is_some());
    let asked: Vec<Asked<'_>> = published
        .flat_map(|table| table.now.foreign_keys.iter().map(move |key| (table, key)))
        .map(|(table, key)| Asked { table, key, sql: missing_sql(rows, table, key, tables) })
        .collect();
    let failed = |asked: &Asked<'_>, error: &Error| {
        let doing = format!("publish {}: check what rows of `{}` refer to", rows.of, asked.table.name());
        Missing { attempt: None, error: shard.error(&doing, error) }
    };
    let answers = join_all(asked.iter().map(|asked| client.query_typed_opt(&asked.sql, &[]))).await;
    for (asked, answer) in asked.iter().zip(answers) {
        let mut found = answer.map_err(|error| failed(asked, &error))?;
        for _ in 1..ASKED_MAX {
            if found.is_none() {
                break;
            }
            found = client.query_typed_opt(&asked.sql, &[]).await.map_err(|error| failed(asked, &error))?;
        }
        if let Some(row) = found {
            return Err(missing(shard, rows, asked, &row));
        }
    }
    Ok(())
}

/// A question for rows that are referred to and not there.
struct Asked<'a> {
    table: &'a KindTable<'a>,
    key: &'a LiveForeignKey,
    sql: String,
}

fn missing(shard: &Shard, rows: &StagedRows<'_>, asked: &Asked<'_>, row: &Row) -> Missing {
    let Asked { table, key, .. } = asked;
    let attempt: Option<i64> = row.get(1);
    let site = attempt.and_then(|attempt| rows.attempts.iter().position(|known| *known == attempt));
    let whose = site.map_or_else(|| rows.of.to_owned(), |site| rows.sites[site].to_string());
    let error = shard.permanent(
        format!(
            "{whose}: a row of table `{}` refers by ({}) to ({}) of table `{}`, which is not there \
             (foreign key `{}`)",
            table.name(),
            key.columns.join(", "),
            shortened(row.get(0)),
            key.parent_table,
            key.name,
        ),
        "restore the store that holds the missing row first, or to the same moment",
    );
    Missing { attempt, error }
}

/// Selects a reference without its row. For each distinct reference one look into the live table, by its key's index,
/// so that the cost does not grow with that table.
fn missing_sql(
    rows: &StagedRows<'_>,
    table: &KindTable<'_>,
    key: &LiveForeignKey,
    tables: &[KindTable<'_>],
) -> String {
    let columns = |alias: &str, names: &[String]| {
        names.iter().map(|name| format!("{alias}.{}", quote(name))).collect::<Vec<_>>()
    };
    let (source, attempt) = rows_sql(rows, table, key);
    let here = columns("s", &key.columns);
    let values: Vec<String> = here.iter().map(|column| format!("quote_nullable({column})")).collect();
    // MATCH SIMPLE asks nothing of a row with a NULL; MATCH FULL wants all or none.
    let asked = if key.match_full {
        format!("num_nulls({}) < {}", here.join(", "), here.len())
    } else {
        here.iter().map(|column| format!("{column} IS NOT NULL")).collect::<Vec<_>>().join(" AND ")
    };
    let equal = |alias: &str| {
        let there = columns(alias, &key.parent_columns);
        there
            .iter()
            .zip(&here)
            .zip(&key.operators)
            .map(|((there, here), operator)| format!("{there} {operator} {here}"))
            .collect::<Vec<_>>()
            .join(" AND ")
    };
    let among = among_published(rows, key, tables).map_or_else(String::new, |staging| {
        format!(" AND NOT EXISTS (SELECT FROM {staging} AND {})", equal("q"))
    });
    format!(
        "SELECT concat_ws(', ', {values}), s.staged_by FROM (SELECT {here}, {attempt} AS staged_by FROM {source} \
         WHERE {asked}{among} GROUP BY {here}) s \
         LEFT JOIN LATERAL (SELECT true AS there FROM {parent} p WHERE {found} FOR KEY SHARE OF p) l ON true \
         WHERE l.there IS NULL LIMIT 1",
        values = values.join(", "),
        here = here.join(", "),
        parent = key.parent_sql,
        found = equal("p"),
    )
}

/// The published rows `s`: as staged, or as they are now where the key has a column that they did not have then.
/// And an aggregate that tells an attempt, where it is known.
fn rows_sql(rows: &StagedRows<'_>, table: &KindTable<'_>, key: &LiveForeignKey) -> (String, String) {
    let staged = |name: &String| table.restored_columns().any(|column| column == name);
    match (table.then, &table.way) {
        (Some(then), _) if key.columns.iter().all(staged) => {
            let name = table_name(rows.run, then);
            let source = format!("(SELECT * FROM {name} s WHERE {}) s", of_attempts(rows.attempts));
            (source, format!("min(s.{ATTEMPT})"))
        }
        (_, Some(way)) => {
            let of_sites: Vec<String> = rows.sites.iter().map(|site| way.rows_of(site)).collect();
            let live = table.now.rows_of();
            let source = format!("(SELECT t.* FROM {live} t WHERE {}) s", of_sites.join(" OR "));
            (source, "NULL::bigint".to_owned())
        }
        _ => (format!("{} s", table.now.rows_of()), "NULL::bigint".to_owned()),
    }
}

/// The staged rows `q` of the table referred to, as FROM and WHERE, if it is published too.
fn among_published(rows: &StagedRows<'_>, key: &LiveForeignKey, tables: &[KindTable<'_>]) -> Option<String> {
    let parent = tables.iter().find(|table| table.now.oid == key.parent_oid)?;
    let staged = |name: &String| parent.restored_columns().any(|column| column == name);
    let then = parent.then.filter(|_| key.parent_columns.iter().all(staged))?;
    let name = table_name(rows.run, then);
    Some(format!("(SELECT * FROM {name} s WHERE {}) q WHERE true", of_attempts(rows.attempts)))
}
