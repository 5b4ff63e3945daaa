//! The durable maps key → site through which rows without a tenant column are attributed.
//!
//! # Invariants
//! - Every row that other tables are owned through has a live entry, written by the trigger that logs the row.
//! - Entries of rows that are gone stay as tombstones, so that children deleted after their parent, in the same
//!   transaction or later, are still attributed. A child that comes before its parent leaves an entry without a site.
//! - When the site of an entry changes, one `V` row is logged and the entries owned through it follow; capture makes the
//!   moves of rows out of it. So no trigger has to name a child table.

use super::layout::{Captured, Layout, Object, ObjectKind};
use crate::sqlite::schema::{quote, quote_text};
use crate::sqlite::system::{self, CHANGE, NOW_MS, OwnerMap};

const LAST_SEQ: &str = "(SELECT max(seq) FROM _muster_change)";

/// Affinity and collation of the key of a map.
fn key_type<'a>(layout: &'a Layout, map: &OwnerMap) -> Option<(&'static str, &'a str)> {
    let table = layout.by_name(&map.table)?;
    let collation = table.shape.single_key_collation(&map.key)?;
    Some((table.shape.affinity(&map.key), collation))
}

pub(super) fn objects(layout: &Layout, table: &Captured, map: &OwnerMap) -> Vec<Object> {
    let key = key_type(layout, map).unwrap_or(("BLOB", "BINARY"));
    let parent = system::owner_map(table.owner()).and_then(|above| key_type(layout, &above));
    let ddl = system::owner_map_ddl(map, key, parent).into_iter().enumerate();
    let mut objects: Vec<Object> = ddl
        .map(|(index, (name, sql))| {
            Object::new(if index == 0 { ObjectKind::Table } else { ObjectKind::Index }, name, sql)
        })
        .collect();
    objects.push(move_trigger(layout, table, map));
    objects
}

fn move_trigger(layout: &Layout, table: &Captured, map: &OwnerMap) -> Object {
    let name = format!("{}move", map.name());
    let mut body = vec![format!(
        "INSERT INTO {CHANGE}(at_ms, tbl, op, old_site, new_site, v0, v1) \
         VALUES ({NOW_MS}, {}, 'V', OLD.site, NEW.site, NEW.key, {});",
        table.id,
        quote_text(&map.key)
    )];
    for child in layout.children_of(map) {
        for below in layout.maps_of(child.name()) {
            body.push(format!(
                "UPDATE {} SET site = NEW.site WHERE parent = NEW.key AND site IS NOT NEW.site;",
                quote(&below.name())
            ));
        }
    }
    let sql = format!(
        "CREATE TRIGGER {} AFTER UPDATE OF site ON {} WHEN NEW.site IS NOT OLD.site BEGIN {} END",
        quote(&name),
        quote(&map.name()),
        body.join(" ")
    );
    Object::new(ObjectKind::Trigger, name, sql)
}

/// Writes the entries of a row that was inserted or updated.
pub(super) fn keep_sql(layout: &Layout, table: &Captured) -> Vec<String> {
    let (site, parent) = (system::site_sql(table.owner(), "NEW"), system::parent_sql(table.owner(), "NEW"));
    let mut statements = Vec::new();
    for map in layout.maps_of(table.name()) {
        let (name, key) = (quote(&map.name()), format!("NEW.{}", quote(&map.key)));
        statements.push(format!(
            "UPDATE {name} SET parent = {parent}, site = {site}, dead_seq = NULL WHERE key = {key} \
             AND (site IS NOT {site} OR parent IS NOT {parent} OR dead_seq IS NOT NULL);"
        ));
        statements.push(format!(
            "INSERT INTO {name}(key, parent, site, dead_seq) SELECT {key}, {parent}, {site}, NULL \
             WHERE {key} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {name} WHERE key = {key});"
        ));
    }
    statements
}

/// Leaves an entry without a site where the row that this one is owned through is not there yet.
pub(super) fn expect_parent_sql(table: &Captured) -> Option<String> {
    let name = quote(&system::owner_map(table.owner())?.name());
    let key = system::parent_sql(table.owner(), "NEW");
    Some(format!(
        "INSERT INTO {name}(key, parent, site, dead_seq) SELECT {key}, NULL, NULL, {LAST_SEQ} \
         WHERE {key} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {name} WHERE key = {key});"
    ))
}

/// Before a key changes: the new key is known already when the change cascades to children.
pub(super) fn announce_key_sql(layout: &Layout, table: &Captured) -> Vec<String> {
    let (site, parent) = (system::site_sql(table.owner(), "NEW"), system::parent_sql(table.owner(), "NEW"));
    let announce = |map: OwnerMap| {
        let (name, key) = (quote(&map.name()), format!("NEW.{}", quote(&map.key)));
        format!(
            "INSERT INTO {name}(key, parent, site, dead_seq) SELECT {key}, {parent}, {site}, coalesce({LAST_SEQ}, 0) \
             WHERE {key} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {name} WHERE key = {key});"
        )
    };
    layout.maps_of(table.name()).into_iter().map(announce).collect()
}

/// Turns the entry of the old key into a tombstone, after an update that changed it.
pub(super) fn bury_old_key_sql(layout: &Layout, table: &Captured) -> Vec<String> {
    let bury = |map: OwnerMap| {
        let key = quote(&map.key);
        format!(
            "UPDATE {} SET dead_seq = {LAST_SEQ} WHERE key = OLD.{key} AND key IS NOT NEW.{key};",
            quote(&map.name())
        )
    };
    layout.maps_of(table.name()).into_iter().map(bury).collect()
}

/// Turns the entry of a deleted row into a tombstone.
pub(super) fn bury_deleted_sql(layout: &Layout, table: &Captured) -> Vec<String> {
    let bury = |map: OwnerMap| {
        let (name, key) = (quote(&map.name()), quote(&map.key));
        format!("UPDATE {name} SET dead_seq = {LAST_SEQ} WHERE key = OLD.{key};")
    };
    layout.maps_of(table.name()).into_iter().map(bury).collect()
}

/// Turns the entries of replaced rows into tombstones; `evicted` selects them as `e`.
pub(super) fn bury_evicted_sql(layout: &Layout, table: &Captured, evicted: &str) -> Vec<String> {
    let bury = |map: OwnerMap| {
        let value = table.value_column(&map.key)?;
        let name = quote(&map.name());
        Some(format!("UPDATE {name} SET dead_seq = {LAST_SEQ} WHERE key IN (SELECT e.{value} {evicted});"))
    };
    layout.maps_of(table.name()).into_iter().filter_map(bury).collect()
}

/// Statements that bring the maps of `table` in line with its rows, without triggers: at installation. Owners first.
pub(super) fn rebuild_sql(layout: &Layout, table: &Captured) -> Vec<String> {
    let mut statements = Vec::new();
    let from = quote(table.name());
    let (site, parent) = (system::site_sql(table.owner(), "t"), system::parent_sql(table.owner(), "t"));
    for map in layout.maps_of(table.name()) {
        let (name, key) = (quote(&map.name()), quote(&map.key));
        statements.push(format!(
            "UPDATE {name} SET dead_seq = coalesce({LAST_SEQ}, 0) WHERE dead_seq IS NULL \
             AND key NOT IN (SELECT {key} FROM {from} WHERE {key} IS NOT NULL);"
        ));
        statements.push(format!("DELETE FROM {name} WHERE key IN (SELECT {key} FROM {from});"));
        statements.push(format!(
            "INSERT INTO {name}(key, parent, site, dead_seq) SELECT t.{key}, {parent}, {site}, NULL FROM {from} AS t \
             WHERE t.{key} IS NOT NULL;"
        ));
    }
    if let Some(map) = system::owner_map(table.owner()) {
        let (name, column) = (quote(&map.name()), system::parent_sql(table.owner(), "t"));
        statements.push(format!(
            "INSERT OR IGNORE INTO {name}(key, parent, site, dead_seq) SELECT {column}, NULL, NULL, \
             coalesce({LAST_SEQ}, 0) FROM {from} AS t WHERE {column} IS NOT NULL;"
        ));
    }
    statements
}
