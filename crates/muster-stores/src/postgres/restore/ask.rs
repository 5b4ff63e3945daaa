//! Questions about what lives: what it lacks, and what a statement of the operator's gives.

use futures::{StreamExt, pin_mut};
use muster_engine::driver::{DriverError, ReadQuery, ShardAddress, StoreProbe};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::shard::{Catalog, Shard};
use crate::postgres::schema::literal;

/// What the live tables lack of those of `store`.
pub(super) async fn lacks(shard: &Shard, store: &StoreProbe) -> Result<Vec<String>, DriverError> {
    let session = shard.session().await?;
    let read = Catalog::read(&session).await;
    let catalog = read.map_err(|error| shard.error("read its definitions", &error))?;
    session.keep();
    let mut lacking = Vec::new();
    for table in store.tables.iter() {
        let name = &table.def.name;
        let Some(live) = catalog.tables.get(name) else {
            lacking.push(format!("`{name}`"));
            continue;
        };
        let there = |column: &str| live.def.columns.iter().any(|known| known.name == column);
        let gone = table.def.stored_columns().filter(|column| !there(&column.name));
        lacking.extend(gone.map(|column| format!("`{name}`.`{}`", column.name)));
    }
    Ok(lacking)
}

/// Where the database is.
pub(super) fn address(shard: &Shard) -> Result<ShardAddress, DriverError> {
    let config = shard.config()?;
    Ok(ShardAddress::Postgres {
        host: config.host().to_owned(),
        port: config.port(),
        database: config.database().to_owned(),
        user: config.user().to_owned(),
    })
}

/// The first rows of a statement. The connection is not used again: a statement can leave locks of its session behind.
pub(super) async fn query(shard: &Shard, query: &ReadQuery) -> Result<Vec<Vec<Option<String>>>, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| match error.code() {
        Some(&SqlState::QUERY_CANCELED) => shard.permanent(
            format!("the statement was stopped after {} s", query.limit.as_secs()),
            "give it an index or a longer `timeout_seconds`",
        ),
        _ => shard.error("run the statement", &error),
    };
    let begin = format!(
        // Tables are named as in the topology.
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = public; SET LOCAL statement_timeout = {}",
        query.limit.as_millis()
    );
    session.batch_execute(&begin).await.map_err(failed)?;
    // The protocol with parameters takes one statement alone; as part of another one it is run below, for fields as text.
    let prepared = session.prepare(&query.sql).await.map_err(failed)?;
    let arguments = match prepared.params().len() {
        0 => String::new(),
        1 => format!("({})", literal(query.site.as_str())),
        many => {
            let message = format!("the statement has {many} parameters");
            return Err(shard.permanent(message, "write `$1` for the site's id, and no other parameter"));
        }
    };
    session.batch_execute(&format!("PREPARE muster_check AS {}", query.sql)).await.map_err(failed)?;
    first_rows(&session, &format!("EXECUTE muster_check{arguments}"), query.rows_max).await.map_err(failed)
}

async fn first_rows(client: &Client, sql: &str, rows_max: usize) -> Result<Vec<Vec<Option<String>>>, Error> {
    let messages = client.simple_query_raw(sql).await?;
    pin_mut!(messages);
    let mut rows = Vec::new();
    while rows.len() < rows_max
        && let Some(message) = messages.next().await.transpose()?
    {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
        }
    }
    Ok(rows)
}
