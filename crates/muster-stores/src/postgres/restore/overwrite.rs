//! The site's own live rows give way to restored ones, under an explicit flag.
//!
//! # Invariants
//! - Every replaced row is saved in `muster.replaced` by the statement that deletes it.
//! - No row of another store changes: nothing cascades in a publish; instead it is checked that no row is left behind
//!   that refers to a replaced one which did not come back.

use std::collections::BTreeMap;

use muster_engine::driver::{DriverError, StoreWork};
use tokio_postgres::{Client, Error};

use super::live::KindTable;
use super::owner::Way;
use super::shard::{Catalog, Shard};
use crate::postgres::schema::{LiveForeignKey, LiveTable, literal, quote};

/// Rows that were replaced, by table.
pub(super) type Replaced = BTreeMap<String, u64>;

/// Saves and deletes the site's live rows.
pub(super) async fn replace(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    tables: &[KindTable<'_>],
) -> Result<Replaced, DriverError> {
    let mut replaced = Replaced::new();
    // Owned rows before their owners: whose they are is read from the rows of their parents.
    let mut deepest_first: Vec<(&KindTable<'_>, &Way<'_>)> =
        tables.iter().filter_map(|table| Some((table, table.way.as_ref()?))).collect();
    deepest_first.sort_by_key(|(_, way)| std::cmp::Reverse(way.depth()));
    for (table, way) in deepest_first {
        let moved = client.execute(&move_sql(work, table, way), &[]).await.map_err(|error: Error| {
            shard.error(&format!("publish {}: replace rows of `{}`", work.store, table.name()), &error)
        })?;
        if moved > 0 {
            replaced.insert(table.name().to_owned(), moved);
        }
    }
    Ok(replaced)
}

/// What is saved is what the delete found: a row that changes meanwhile is saved as it was last.
fn move_sql(work: &StoreWork, table: &KindTable<'_>, way: &Way<'_>) -> String {
    let columns: Vec<&str> = table.now.def.stored_columns().map(|column| column.name.as_str()).collect();
    let names: Vec<String> = columns.iter().map(|name| literal(name)).collect();
    let fields: Vec<String> = columns.iter().map(|name| text_of(&table.now.def, name)).collect();
    let store = &work.store;
    format!(
        "WITH gone AS (DELETE FROM {live} t WHERE {rows} RETURNING t.*) \
         INSERT INTO muster.replaced (run, site, kind, tbl, columns, fields) SELECT {run}, {site}, {kind}, {name}, \
         ARRAY[{names}]::text[], ARRAY[{fields}]::text[] FROM gone t",
        live = table.now.rows_of(),
        rows = way.rows_of(&store.site),
        run = literal(work.run.as_str()),
        site = literal(store.site.as_str()),
        kind = literal(store.kind.as_str()),
        name = literal(table.name()),
        names = names.join(", "),
        fields = fields.join(", "),
    )
}

/// A column's value as its type prints it. A cast of `character` to text would cut blanks off.
fn text_of(def: &muster_types::table::TableDef, name: &str) -> String {
    let declared = def.columns.iter().find(|column| column.name == name);
    let is_blank_padded = declared.is_some_and(|column| column.declared_type.starts_with("character("));
    if is_blank_padded { format!("concat(t.{})", quote(name)) } else { format!("t.{}::text", quote(name)) }
}

/// Fails when a row refers to one that was replaced and did not come back.
pub(super) async fn check_left_behind(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    catalog: &Catalog,
    tables: &[KindTable<'_>],
    replaced: &Replaced,
) -> Result<(), DriverError> {
    for parent in tables.iter().filter(|table| replaced.contains_key(table.name())) {
        for child in catalog.tables.values() {
            for key in child.foreign_keys.iter().filter(|key| key.parent_oid == parent.now.oid) {
                let Some(sql) = left_behind_sql(work, parent, child, key) else { continue };
                let found = client.query_opt(&sql, &[]).await.map_err(|error| {
                    shard.error(&format!("publish {}: check what refers to it", work.store), &error)
                })?;
                if found.is_some() {
                    return Err(shard.permanent(
                        format!(
                            "{}: a row of table `{}` refers to a row of `{}` that would be gone",
                            work.store,
                            child.def.name,
                            parent.name()
                        ),
                        "restore the store that holds the referring row as well, or remove that row",
                    ));
                }
            }
        }
    }
    Ok(())
}

fn left_behind_sql(
    work: &StoreWork,
    parent: &KindTable<'_>,
    child: &LiveTable,
    key: &LiveForeignKey,
) -> Option<String> {
    let stored: Vec<_> = parent.now.def.stored_columns().collect();
    let value = |name: &String| {
        let index = stored.iter().position(|column| &column.name == name)?;
        Some(format!("(r.fields[{}])::{}", index + 1, stored[index].declared_type))
    };
    let values: Vec<String> = key.parent_columns.iter().map(value).collect::<Option<_>>()?;
    let names: Vec<String> = (0..values.len()).map(|index| format!("k{index}")).collect();
    let equal = |alias: &str, columns: &[String], operators: &[String]| {
        let columns = columns.iter().map(|column| format!("{alias}.{}", quote(column)));
        let pairs = names.iter().zip(columns).zip(operators);
        pairs
            .map(|((name, column), operator)| format!("k.{name} {operator} {column}"))
            .collect::<Vec<_>>()
            .join(" AND ")
    };
    let selected: Vec<String> =
        values.iter().zip(&names).map(|(value, name)| format!("{value} AS {name}")).collect();
    let store = &work.store;
    Some(format!(
        "SELECT true FROM (SELECT {selected} FROM muster.replaced r WHERE r.run = {} AND r.site = {} AND r.kind = {} \
         AND r.tbl = {}) k JOIN {} c ON {} WHERE NOT EXISTS (SELECT FROM {} p WHERE {}) LIMIT 1",
        literal(work.run.as_str()),
        literal(store.site.as_str()),
        literal(store.kind.as_str()),
        literal(parent.name()),
        child.rows_of(),
        equal("c", &key.columns, &key.operators),
        key.parent_sql,
        equal("p", &key.parent_columns, &key.parent_operators),
        selected = selected.join(", "),
    ))
}
