//! Rows that a statement replaces through a conflict clause.
//!
//! SQLite fires no delete trigger for rows that `OR REPLACE` removes, unless the writer's connection has
//! `recursive_triggers` on. So a BEFORE trigger notes every row that holds a primary or unique key of the new row, and
//! the AFTER trigger logs those noted rows that are gone.
//!
//! # Invariants
//! - Notes carry the new row's values of all key columns (`i0..`), by which the AFTER trigger finds its own notes among
//!   those of statements that are nested in each other through triggers and foreign-key actions.
//! - The BEFORE trigger first removes older notes of the same values, so notes of statements that ended otherwise
//!   (upsert, `OR IGNORE`) are never taken for new ones. Every AFTER trigger that reads notes has such a BEFORE trigger
//!   under the same condition.
//! - A row that is deleted loses its notes; one that is updated has them brought up to date.
//! - No trigger here can itself meet a conflict: the conflict clause of the outer statement would take over.

use super::layout::{Captured, Object, ObjectKind};
use crate::sqlite::schema::{KeyShape, quote};

/// The table of notes.
pub(crate) fn table_name(table: &Captured) -> String {
    format!("_muster_evict_{}", table.id)
}

pub(super) fn objects(table: &Captured) -> Vec<Object> {
    let name = table_name(table);
    let idents = ident_columns(table);
    let typed = idents.iter().enumerate().map(|(index, column)| match table.shape.affinity(column) {
        "BLOB" => format!("i{index}"),
        affinity => format!("i{index} {affinity}"),
    });
    let values = (0..table.columns().len()).map(|index| format!("v{index}"));
    let columns: Vec<String> = typed.chain(values).collect();
    let create = format!("CREATE TABLE {name}({})", columns.join(", "));
    // The rowid alias comes last: it is compared with OR.
    let alias = usize::from(table.shape.rowid_alias.is_some());
    let by_ident: Vec<String> =
        (alias..idents.len()).chain(0..alias).map(|index| format!("i{index}")).collect();
    let by_key: Vec<String> = table.key().iter().map(|(index, ..)| format!("v{index}")).collect();
    let (ident_index, key_index) = (format!("{name}_ident"), format!("{name}_key"));
    let index = |index: &str, columns: &[String]| {
        let sql = format!("CREATE INDEX {index} ON {name}({})", columns.join(", "));
        Object::new(ObjectKind::Index, index, sql)
    };
    vec![
        Object::new(ObjectKind::Table, name.clone(), create),
        index(&ident_index, &by_ident),
        index(&key_index, &by_key),
    ]
}

/// Every column of a primary or unique key, the rowid alias first.
fn ident_columns(table: &Captured) -> Vec<&str> {
    let mut columns: Vec<&str> = table.shape.rowid_alias.as_deref().into_iter().collect();
    for (column, _) in table.shape.keys.iter().flat_map(|key| &key.columns) {
        if let Some(column) = column.as_deref().filter(|column| !columns.contains(column)) {
            columns.push(column);
        }
    }
    columns
}

/// The value that `column` of the new row will have, as the BEFORE trigger can know it: under `OR REPLACE` a NULL in a
/// NOT NULL column becomes the default only later. The rowid alias is -1 where SQLite has yet to choose it.
fn coming_value(table: &Captured, column: &str) -> String {
    let new = format!("NEW.{}", quote(column));
    let def = table.table.def.columns.iter().find(|def| def.name == column);
    match def.and_then(|def| def.default_sql.as_ref().filter(|_| def.not_null)) {
        Some(default) => format!("coalesce({new}, {default})"),
        None => new,
    }
}

/// Condition on the notes (`alias.`): they were made for this very new row.
fn same_ident(table: &Captured, alias: &str, value: impl Fn(&str) -> String) -> String {
    let one = |(index, column): (usize, &&str)| {
        if table.shape.rowid_alias.as_deref() == Some(column) {
            format!("({alias}i{index} IS NULL OR {alias}i{index} = +NEW.{})", quote(column))
        } else {
            // The plus takes the affinity away, so that the index can be used.
            format!("{alias}i{index} IS +{}", value(column))
        }
    };
    ident_columns(table).iter().enumerate().map(one).collect::<Vec<_>>().join(" AND ")
}

/// Condition on rows of the table (`t`): they hold `key` of the new row.
fn conflict(table: &Captured, key: &KeyShape) -> Option<String> {
    let mut parts = Vec::new();
    for (column, collation) in &key.columns {
        let column = column.as_deref()?;
        parts.push(format!(
            "t.{} = {} COLLATE {}",
            quote(column),
            coming_value(table, column),
            quote(collation)
        ));
    }
    parts.extend(key.predicate.as_ref().map(|predicate| format!("({predicate})")));
    Some(format!("({})", parts.join(" AND ")))
}

/// Condition: the keys of two rows are equal.
fn same_key(
    table: &Captured,
    left: impl Fn(usize, &str) -> String,
    right: impl Fn(usize, &str) -> String,
) -> String {
    let one = |(index, name, collation): &(usize, &str, &str)| {
        format!("{} = {} COLLATE {}", left(*index, name), right(*index, name), quote(collation))
    };
    table.key().iter().map(one).collect::<Vec<_>>().join(" AND ")
}

/// Statements of a BEFORE trigger that note rows which may be replaced; `updating` leaves the row itself out.
pub(super) fn note_sql(table: &Captured, updating: bool) -> Vec<String> {
    let name = table_name(table);
    let idents = ident_columns(table);
    let coming = |column: &str| coming_value(table, column);
    let forget = format!("DELETE FROM {name} WHERE {};", same_ident(table, "", coming));
    let ident_value = |column: &&str| {
        if table.shape.rowid_alias.as_deref() == Some(column) {
            format!("NULLIF(NEW.{}, -1)", quote(column))
        } else {
            coming_value(table, column)
        }
    };
    let images = table.columns().into_iter().map(|column| format!("t.{}", quote(column)));
    let values: Vec<String> = idents.iter().map(ident_value).chain(images).collect();
    let conflicts: Vec<String> = table.shape.keys.iter().filter_map(|key| conflict(table, key)).collect();
    let others = if updating {
        let itself =
            same_key(table, |_, name| format!("t.{}", quote(name)), |_, name| format!("OLD.{}", quote(name)));
        format!(" AND NOT ({itself})")
    } else {
        String::new()
    };
    // One search for each key: with OR between them, and a collation spelt out, SQLite 3.54 scans the whole table.
    let search = |(nth, conflict): (usize, &String)| {
        let found_before: String =
            conflicts[..nth].iter().map(|before| format!(" AND coalesce({before}, 0) = 0")).collect();
        format!(
            "SELECT {} FROM {} AS t WHERE {conflict}{found_before}{others}",
            values.join(", "),
            quote(table.name())
        )
    };
    let searches: Vec<String> = conflicts.iter().enumerate().map(search).collect();
    let note = format!("INSERT INTO {name} {};", searches.join(" UNION ALL "));
    vec![forget, note]
}

/// Condition of the BEFORE UPDATE trigger: a key may change. `UPDATE OF` would miss `SET rowid = …`.
pub(super) fn key_may_change_sql(table: &Captured) -> Option<String> {
    if table.shape.keys.iter().any(|key| key.predicate.is_some()) {
        return None;
    }
    let one = |column: &&str| format!("NEW.{0} IS NOT OLD.{0} COLLATE BINARY", quote(column));
    Some(ident_columns(table).iter().map(one).collect::<Vec<_>>().join(" OR "))
}

/// `FROM … WHERE …` of the noted rows that this statement has replaced, as `e` with the image in `v0..`; for AFTER
/// triggers.
pub(super) fn evicted_from_sql(table: &Captured) -> String {
    let new = |column: &str| format!("NEW.{}", quote(column));
    let noted = |index: usize, _: &str| format!("e.v{index}");
    let still_there = same_key(table, |_, name| format!("t.{}", quote(name)), noted);
    let its_key_taken = same_key(table, noted, |_, name| new(name));
    format!(
        "FROM {} AS e WHERE {} AND (({its_key_taken}) OR NOT EXISTS (SELECT 1 FROM {} AS t WHERE {still_there}))",
        table_name(table),
        same_ident(table, "e.", new),
        quote(table.name()),
    )
}

/// Removes the notes that the statement made; for AFTER triggers.
pub(super) fn forget_sql(table: &Captured) -> String {
    let new = |column: &str| format!("NEW.{}", quote(column));
    format!("DELETE FROM {} WHERE {};", table_name(table), same_ident(table, "", new))
}

fn noted_key(table: &Captured) -> String {
    let one = |(index, name, _): &(usize, &str, &str)| format!("v{index} IS +OLD.{}", quote(name));
    table.key().iter().map(one).collect::<Vec<_>>().join(" AND ")
}

/// Removes notes of a row that is deleted.
pub(super) fn forget_deleted_sql(table: &Captured) -> String {
    format!("DELETE FROM {} WHERE {};", table_name(table), noted_key(table))
}

/// Brings notes of a row that is updated up to date.
pub(super) fn refresh_sql(table: &Captured) -> String {
    let columns = table.columns();
    let set = columns.iter().enumerate().map(|(index, column)| format!("v{index} = NEW.{}", quote(column)));
    format!(
        "UPDATE {} SET {} WHERE {};",
        table_name(table),
        set.collect::<Vec<_>>().join(", "),
        noted_key(table)
    )
}
