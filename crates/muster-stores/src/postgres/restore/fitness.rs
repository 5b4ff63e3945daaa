//! Whether the shard would take a publish of any of its kinds: rights, triggers, and what does not come back.

use std::collections::BTreeMap;

use muster_engine::driver::DriverError;
use muster_types::Kind;
use muster_types::table::CapturedTable;
use tokio_postgres::{Client, Error};

use super::compare::compare;
use super::live::kind_tables;
use super::shard::{Catalog, Shard};
use super::{privileges, probe};
use crate::postgres::schema::LiveTable;

/// What an operator should know before the day of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fitness {
    /// What would fail a publish, each with the way out.
    pub problems: Vec<String>,
    /// What would not come back.
    pub notes: Vec<String>,
}

/// Looks at all declared tables as if each were to be restored. Reads only.
pub(super) async fn fitness(shard: &Shard) -> Result<Fitness, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error("look at rights and triggers", &error);
    let catalog = shard.catalog(&session).await?;
    let mut found = Fitness::default();
    found.problems.extend(probe::unwritable(&session).await.map_err(failed)?);
    let mut kinds: BTreeMap<Kind, Vec<CapturedTable>> = BTreeMap::new();
    for (name, live) in &catalog.tables {
        let Some(config) = shard.tables().get(name) else { continue };
        let (kind, owner, def) = (config.kind.clone(), config.owner.clone(), live.def.clone());
        let table = CapturedTable { kind, owner, def };
        found.problems.extend(compare(shard.tables(), &table, Some(live)).obstacles);
        kinds.entry(table.kind.clone()).or_default().push(table);
    }
    for (kind, tables) in &kinds {
        let tables = kind_tables(shard, &catalog, kind, tables, None);
        found.problems.extend(privileges::missing(&session, &tables).await.map_err(failed)?);
    }
    found.notes = not_carried(&session, shard, &catalog, None).await.map_err(failed)?;
    session.keep();
    Ok(found)
}

/// Of a kind's tables, or of all: what is in the shard and not in the repository.
pub(super) async fn not_carried(
    client: &Client,
    shard: &Shard,
    catalog: &Catalog,
    kind: Option<&Kind>,
) -> Result<Vec<String>, Error> {
    let of_kind = |table: &&LiveTable| {
        let declared = shard.tables().get(&table.def.name);
        declared.is_some_and(|config| kind.is_none_or(|kind| config.kind == *kind))
    };
    let tables: Vec<&LiveTable> = catalog.tables.values().filter(of_kind).collect();
    let unlogged =
        |table: &&&LiveTable| table.unlogged || table.partitions.iter().any(|partition| partition.unlogged);
    let mut notes: Vec<String> = tables
        .iter()
        .filter(unlogged)
        .map(|table| {
            format!(
                "table `{}` is unlogged: its rows are not captured and do not come back (ALTER TABLE {} SET LOGGED \
                 changes that)",
                table.def.name,
                table.qualified()
            )
        })
        .collect();
    let numbers: Vec<String> = tables.iter().flat_map(|table| columns_of_objects(table)).collect();
    if !numbers.is_empty() {
        let sql = "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)";
        if client.query_one(sql, &[]).await?.get(0) {
            notes.push(format!(
                "large objects are not captured: {} may name some, which do not come back",
                numbers.join(", ")
            ));
        }
    }
    Ok(notes)
}

/// Columns that can hold the number of a large object.
fn columns_of_objects(table: &LiveTable) -> impl Iterator<Item = String> {
    let columns = table.def.stored_columns();
    let named = columns.filter(|column| matches!(column.declared_type.as_str(), "oid" | "lo" | "public.lo"));
    named.map(|column| format!("`{}.{}`", table.def.name, column.name))
}
