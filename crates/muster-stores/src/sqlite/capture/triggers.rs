//! The triggers that record changes.
//!
//! # Invariants
//! - They are the newest triggers of their table: SQLite fires the newest first, so a change is logged before another
//!   trigger answers it with changes of its own. Capture checks this at each poll.
//! - They are plain SQL that every SQLite version since 3.8.2 runs, in any writer.

use super::layout::{Captured, Layout, Object, ObjectKind};
use super::{evict, owner_map};
use crate::sqlite::schema::quote;
use crate::sqlite::system::{self, CHANGE, NOW_MS};

/// The triggers of a table, in the order of their creation: `ae`, which logs what an update replaced, fires before
/// `au`, which logs the update.
pub(super) fn objects(layout: &Layout, table: &Captured) -> Vec<Object> {
    let before_insert = evict::note_sql(table, false);
    let mut before_update = evict::note_sql(table, true);
    before_update.extend(owner_map::announce_key_sql(layout, table));
    let when =
        evict::key_may_change_sql(table).map(|condition| format!("WHEN {condition} ")).unwrap_or_default();
    vec![
        trigger(table, "bi", "BEFORE INSERT", "", &before_insert),
        trigger(table, "bu", "BEFORE UPDATE", &when, &before_update),
        trigger(table, "ai", "AFTER INSERT", "", &after_insert(layout, table)),
        trigger(table, "au", "AFTER UPDATE", "", &after_update(layout, table)),
        trigger(table, "ae", "AFTER UPDATE", &when, &evicted(layout, table)),
        trigger(table, "ad", "AFTER DELETE", "", &after_delete(layout, table)),
    ]
}

fn trigger(table: &Captured, suffix: &str, moment: &str, when: &str, body: &[String]) -> Object {
    let name = format!("_muster_{}_{suffix}", table.name());
    let sql = format!(
        "CREATE TRIGGER {} {moment} ON {} FOR EACH ROW {when}BEGIN {} END",
        quote(&name),
        quote(table.name()),
        body.join(" ")
    );
    Object::new(ObjectKind::Trigger, name, sql)
}

fn log_sql(table: &Captured, op: system::Op, old_site: &str, new_site: &str, alias: &str) -> String {
    let columns = table.columns();
    let values: Vec<String> = columns.iter().map(|column| format!("{alias}.{}", quote(column))).collect();
    format!(
        "INSERT INTO {CHANGE}(at_ms, tbl, op, old_site, new_site, {}) \
         VALUES ({NOW_MS}, {}, '{}', {old_site}, {new_site}, {});",
        system::value_list("", columns.len()),
        table.id,
        op.letter(),
        values.join(", ")
    )
}

/// Logs replaced rows as deletions and buries their entries; the notes go.
fn evicted(layout: &Layout, table: &Captured) -> Vec<String> {
    let from = evict::evicted_from_sql(table);
    let owning = system::owning_column(table.owner()).and_then(|column| table.value_column(column));
    let value = owning.map_or_else(|| "NULL".to_owned(), |column| format!("e.{column}"));
    let columns = table.columns().len();
    let mut statements = vec![format!(
        "INSERT INTO {CHANGE}(at_ms, tbl, op, old_site, new_site, {}) SELECT {NOW_MS}, {}, 'D', {}, NULL, {} {from};",
        system::value_list("", columns),
        table.id,
        system::site_of_value_sql(table.owner(), &value),
        system::value_list("e.", columns)
    )];
    statements.extend(owner_map::bury_evicted_sql(layout, table, &from));
    statements.push(evict::forget_sql(table));
    statements
}

fn after_insert(layout: &Layout, table: &Captured) -> Vec<String> {
    let mut body = evicted(layout, table);
    body.push(log_sql(table, system::Op::Insert, "NULL", &system::site_sql(table.owner(), "NEW"), "NEW"));
    body.extend(owner_map::expect_parent_sql(table));
    body.extend(owner_map::keep_sql(layout, table));
    body
}

fn after_update(layout: &Layout, table: &Captured) -> Vec<String> {
    let (old, new) = (system::site_sql(table.owner(), "OLD"), system::site_sql(table.owner(), "NEW"));
    let mut body = vec![log_sql(table, system::Op::Before, &old, &new, "OLD")];
    body.push(log_sql(table, system::Op::Update, &old, &new, "NEW"));
    body.push(evict::refresh_sql(table));
    body.extend(owner_map::expect_parent_sql(table));
    body.extend(owner_map::bury_old_key_sql(layout, table));
    body.extend(owner_map::keep_sql(layout, table));
    body
}

fn after_delete(layout: &Layout, table: &Captured) -> Vec<String> {
    let mut body =
        vec![log_sql(table, system::Op::Delete, &system::site_sql(table.owner(), "OLD"), "NULL", "OLD")];
    body.push(evict::forget_deleted_sql(table));
    body.extend(owner_map::bury_deleted_sql(layout, table));
    body
}
