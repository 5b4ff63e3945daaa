//! Puts capture's tables and triggers into a shard, repairs them, and takes them away.
//!
//! # Invariants
//! - One write transaction, which compares again what it is about to change: between the comparison of a poll and the
//!   repair the shard may have changed once more.
//! - Tables whose changes may have been missed are noted as pending in that transaction, until a segment that holds
//!   them whole is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::topology::TableConfig;
use rusqlite::{Connection, params};

use super::check::{self, Findings};
use super::layout::{Object, ObjectKind};
use super::owner_map;
use crate::sqlite::schema::quote;
use crate::sqlite::system;

/// The incarnation of a shard whose capture has not begun.
pub(super) const UNBEGUN: &str = "none";

/// Brings the shard in line with what is declared. Runs in the caller's write transaction.
pub(super) fn install(
    conn: &Connection,
    declared: &BTreeMap<String, TableConfig>,
) -> rusqlite::Result<Findings> {
    system::ensure_capture_tables(conn)?;
    conn.execute(
        "INSERT INTO _muster_state(id, format, incarnation, acknowledged) SELECT 1, ?1, ?2, 0 \
         WHERE NOT EXISTS (SELECT 1 FROM _muster_state)",
        params![muster_types::format::FORMAT, UNBEGUN],
    )?;
    let findings = check::check(conn, declared)?;
    let columns = findings.layout.columns_max();
    system::ensure_value_columns(conn, system::CHANGE, columns)?;
    system::ensure_value_columns(conn, system::REPLACED, columns)?;
    for name in &findings.dropped {
        conn.execute(
            "UPDATE _muster_table SET pending = 'dropped', reason = 'it is gone', generation = generation + 1 \
             WHERE name = ?1",
            [name],
        )?;
    }
    for (name, reason) in &findings.released {
        conn.execute(
            "UPDATE _muster_table SET pending = 'undeclared', reason = ?2, generation = generation + 1 \
             WHERE name = ?1",
            params![name, reason],
        )?;
    }
    drop_objects(conn, &findings.leftovers)?;
    replace_stale(conn, &findings)?;
    Ok(findings)
}

/// Makes the objects of stale tables, and of all that is owned through them, anew.
fn replace_stale(conn: &Connection, findings: &Findings) -> rusqlite::Result<()> {
    let objects = findings.layout.objects();
    let touched = with_descendants(findings);
    let actual = check::read_objects(conn)?;
    for table in findings.layout.tables.iter().filter(|table| touched.contains_key(table.name())) {
        let wanted = objects.get(&table.id).map(Vec::as_slice).unwrap_or_default();
        let outdated = |object: &&Object| match actual.objects.get(&object.name) {
            Some(found) => object.kind == ObjectKind::Trigger || found != *object,
            None => false,
        };
        let outdated: Vec<Object> = wanted.iter().filter(outdated).cloned().collect();
        drop_objects(conn, &outdated)?;
    }
    let touched_tables =
        || findings.layout.owners_first().into_iter().filter(|table| touched.contains_key(table.name()));
    for table in touched_tables() {
        create(conn, objects.get(&table.id).map(Vec::as_slice).unwrap_or_default(), false)?;
    }
    for table in touched_tables() {
        for statement in owner_map::rebuild_sql(&findings.layout, table) {
            conn.execute_batch(&statement)?;
        }
    }
    for table in touched_tables() {
        let wanted = objects.get(&table.id).map(Vec::as_slice).unwrap_or_default();
        create(conn, wanted, true)?;
        let (kind, owner, def, digest) = check::description(table, wanted);
        let reason = touched.get(table.name());
        let known = conn.execute(
            "UPDATE _muster_table SET kind = ?2, owner = ?3, def = ?4, objects = ?5, pending = 'reread', reason = ?6, \
             generation = generation + 1 WHERE id = ?1",
            params![table.id, kind, owner, def, digest, reason],
        )?;
        if known == 0 {
            conn.execute(
                "INSERT INTO _muster_table(id, name, kind, owner, def, objects, pending, reason, generation) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'reread', ?7, 1)",
                params![table.id, table.name(), kind, owner, def, digest, reason],
            )?;
        }
    }
    Ok(())
}

/// Stale tables and those owned through them, with the reason.
fn with_descendants(findings: &Findings) -> BTreeMap<String, String> {
    let mut touched = findings.stale.clone();
    for table in findings.layout.owners_first() {
        let above = system::owner_map(table.owner()).filter(|map| touched.contains_key(&map.table));
        if let Some(map) = above.filter(|_| !touched.contains_key(table.name())) {
            touched.insert(
                table.name().to_owned(),
                format!("the table `{}` that it is owned through was read again", map.table),
            );
        }
    }
    touched
}

fn create(conn: &Connection, objects: &[Object], triggers: bool) -> rusqlite::Result<()> {
    let there: BTreeSet<String> = check::read_objects(conn)?.objects.into_keys().collect();
    let wanted =
        |object: &&Object| (object.kind == ObjectKind::Trigger) == triggers && !there.contains(&object.name);
    objects.iter().filter(wanted).try_for_each(|object| conn.execute_batch(&object.sql))
}

/// Triggers first, then what they may use; indexes go with their tables.
fn drop_objects(conn: &Connection, objects: &[Object]) -> rusqlite::Result<()> {
    for (kind, word) in
        [(ObjectKind::Trigger, "TRIGGER"), (ObjectKind::Index, "INDEX"), (ObjectKind::Table, "TABLE")]
    {
        for object in objects.iter().filter(|object| object.kind == kind) {
            conn.execute_batch(&format!("DROP {word} IF EXISTS main.{}", quote(&object.name)))?;
        }
    }
    Ok(())
}
