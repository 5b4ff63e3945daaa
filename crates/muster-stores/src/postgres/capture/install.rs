//! What has to be in the shard for capture: schema, publication, rights and settings.

use muster_types::ShardName;
use tokio_postgres::{Client, Error};

use super::error::explain;
use super::layout::Layout;
use super::{state, triggers};
use crate::capture::CaptureError;
use crate::postgres::connect::PostgresConfig;
use crate::postgres::schema::quote;

/// How long a table's lock is waited for.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '10s'";

/// Refuses a shard that cannot be captured, with everything that is to be done first.
pub(super) async fn check(
    config: &PostgresConfig,
    client: &Client,
    shard: &ShardName,
    layout: &Layout,
) -> Result<(), CaptureError> {
    let failed = |error| explain(config, "check settings and rights", &error);
    let mut wanting = settings(client).await.map_err(failed)?;
    wanting.extend(rights(client, config, layout).await.map_err(failed)?);
    if !wanting.is_empty() {
        return Err(CaptureError::new(
            format!("shard `{shard}` ({config}) cannot be captured:\n{}", wanting.join("\n")),
            "then run `muster capture init` again",
        ));
    }
    if !layout.refused.is_empty() {
        let tables: Vec<String> =
            layout.refused.iter().map(|(table, reason)| format!("table `{table}`: {reason}")).collect();
        return Err(CaptureError::new(
            format!("shard `{shard}` ({config}) has tables that cannot be captured:\n{}", tables.join("\n")),
            format!("run these, then `muster capture init` again:\n{}", layout.fixes.join("\n")),
        ));
    }
    if layout.undeclared.is_empty() {
        return Ok(());
    }
    Err(CaptureError::new(
        format!(
            "shard `{shard}` ({config}) has tables that the topology does not declare: {}",
            layout.undeclared.iter().map(|name| told(layout, name)).collect::<Vec<_>>().join(", ")
        ),
        "declare each under [tables.NAME] with its kind and owner; `reference = true` is for tables that belong to no site",
    ))
}

fn told(layout: &Layout, name: &str) -> String {
    layout.misnamed.get(name).map_or_else(|| name.to_owned(), |reason| format!("{name} ({reason})"))
}

async fn settings(client: &Client) -> Result<Vec<String>, Error> {
    let mut wanting = Vec::new();
    let level: String = client.query_one_scalar("SELECT current_setting('wal_level')", &[]).await?;
    if level != "logical" {
        wanting.push(format!(
            "its wal_level is `{level}`: run ALTER SYSTEM SET wal_level = 'logical'; and restart the server"
        ));
    }
    let sql = "SELECT current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots), \
        current_setting('max_wal_senders')::int - (SELECT count(*)::int FROM pg_stat_replication)";
    let row = client.query_one(sql, &[]).await?;
    for (name, free) in
        [("max_replication_slots", row.get::<_, i32>(0)), ("max_wal_senders", row.get::<_, i32>(1))]
    {
        if free < 2 {
            wanting.push(format!(
                "{name} leaves {free} free, and capture needs 2: raise it with ALTER SYSTEM SET and restart the server"
            ));
        }
    }
    Ok(wanting)
}

async fn rights(client: &Client, config: &PostgresConfig, layout: &Layout) -> Result<Vec<String>, Error> {
    let sql = "SELECT rolsuper, rolreplication, rolbypassrls, has_database_privilege(current_database(), 'CREATE') \
        FROM pg_roles WHERE rolname = current_user";
    let row = client.query_one(sql, &[]).await?;
    let (superuser, replication, bypass, create): (bool, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let (role, database) = (quote(config.user()), quote(config.database()));
    let mut wanting = Vec::new();
    if !superuser && !replication {
        wanting.push(format!("the role may not replicate: ALTER ROLE {role} REPLICATION;"));
    }
    if !create {
        wanting.push(format!("the role may not make schema `muster` and a publication: GRANT CREATE ON DATABASE {database} TO {role};"));
    }
    for table in &layout.tables {
        let sql = "SELECT has_table_privilege(oid, 'SELECT'), pg_has_role(relowner, 'USAGE'), relforcerowsecurity \
            FROM pg_class WHERE oid = $1";
        let row = client.query_one(sql, &[&table.live.oid]).await?;
        let (select, owns, forced): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let name = table.live.qualified();
        if !select {
            wanting.push(format!("the role may not read {name}: GRANT SELECT ON {name} TO {role};"));
        }
        if !owns && !superuser {
            wanting.push(format!("the role may not publish {name}: make it a member of the table's owner"));
        }
        if table.live.row_security && !superuser && !bypass && (forced || !owns) {
            wanting.push(format!("row security hides rows of {name}: ALTER ROLE {role} BYPASSRLS;"));
        }
    }
    Ok(wanting)
}

/// Schema, state and publication; gives whether all was there before.
pub(super) async fn install(client: &mut Client, name: &str, layout: &Layout) -> Result<bool, Error> {
    let there = state::exists(client).await?;
    if !there {
        let transaction = client.transaction().await?;
        state::create(&transaction, name).await?;
        transaction.commit().await?;
    } else {
        state::create(client, name).await?;
    }
    let changed = publish(client, name, layout).await?;
    Ok(there && !changed)
}

/// Brings the publication in line; gives whether it had to be changed.
pub(super) async fn publish(client: &mut Client, name: &str, layout: &Layout) -> Result<bool, Error> {
    let publication = quote(name);
    let mut statements = Vec::new();
    if !has_publication(client, name).await? {
        statements.push(format!(
            "CREATE PUBLICATION {publication} WITH (publish = 'insert, update, delete, truncate', \
             publish_via_partition_root = true)"
        ));
    }
    for table in &layout.misplaced {
        statements.push(format!("ALTER PUBLICATION {publication} DROP TABLE {table}"));
    }
    for table in layout.tables.iter().filter(|table| table.signature.published.is_none()) {
        statements.push(format!("ALTER PUBLICATION {publication} ADD TABLE {}", table.live.rows_of()));
    }
    if statements.is_empty() {
        return Ok(false);
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK_WAIT).await?;
    for statement in statements {
        transaction.batch_execute(&statement).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

pub(super) async fn has_publication(client: &Client, name: &str) -> Result<bool, Error> {
    client.query_one_scalar("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", &[&name]).await
}

/// Takes away everything of Muster's but the slot.
pub(super) async fn remove(client: &mut Client, name: &str) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    triggers::remove(&transaction).await?;
    transaction.batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", quote(name))).await?;
    transaction.batch_execute("DROP SCHEMA IF EXISTS muster CASCADE").await?;
    transaction.commit().await
}
