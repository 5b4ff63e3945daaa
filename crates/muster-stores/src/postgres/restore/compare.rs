//! Live definitions beside those at the recovery point: what restored rows meet.

use muster_types::table::{CapturedTable, ColumnDef, TableDef};
use muster_types::topology::Declared;

use super::recreate;
use crate::comparison::Comparison;
use crate::postgres::schema::LiveTable;

/// Compares one table, as `declared`.
pub(super) fn compare(declared: &Declared, captured: &CapturedTable, now: Option<&LiveTable>) -> Comparison {
    let then = &captured.def;
    let table = &then.name;
    let Some(now) = now else { return recreate::comparison(captured) };
    let mut found = Comparison::default();
    for column in then.stored_columns() {
        compare_column(table, column, &now.def, &mut found);
    }
    for column in now.def.stored_columns() {
        if !then.columns.iter().any(|old| old.name == column.name && !old.generated) {
            added_column(table, column, now, &mut found);
        }
    }
    found.column_obstacles = found.obstacles.len();
    found.keys(then, &now.def);
    let harmless = declared.get(table).map(|config| config.harmless_triggers.clone()).unwrap_or_default();
    found.obstacles.extend(acting_triggers(now, &harmless));
    // Checked by triggers of the server that do not fire in a publish.
    found.obstacles.extend(now.deferrable_others.iter().map(|name| {
        format!(
            "table `{table}`: constraint `{name}` is deferrable, and a publish would not keep to it; drop it and make it \
             again as NOT DEFERRABLE"
        )
    }));
    if now.keys.iter().any(|key| key.deferrable) {
        found.notes.push(format!(
            "table `{table}` has a deferrable unique key: writers to it wait while rows are published"
        ));
    }
    found
}

fn compare_column(table: &str, then: &ColumnDef, now: &TableDef, found: &mut Comparison) {
    let name = &then.name;
    let Some(live) = now.columns.iter().find(|column| &column.name == name) else {
        found.obstacles.push(format!("table `{table}`: column `{name}` was dropped or renamed"));
        return;
    };
    if live.generated {
        found.obstacles.push(format!("table `{table}`: column `{name}` is generated now"));
    }
    if live.declared_type != then.declared_type {
        found.obstacles.push(format!(
            "table `{table}`: column `{name}` was `{}` and is `{}`",
            then.declared_type, live.declared_type
        ));
    }
}

fn added_column(table: &str, column: &ColumnDef, now: &LiveTable, found: &mut Comparison) {
    let name = &column.name;
    if now.identity.contains_key(name) {
        found.notes.push(format!("table `{table}`: column `{name}` is new; restored rows get new numbers"));
        return;
    }
    let default = column.default_sql.as_deref().unwrap_or("NULL");
    if column.not_null && column.default_sql.is_none() {
        found.obstacles.push(format!("table `{table}`: new column `{name}` is NOT NULL without a default"));
        return;
    }
    found.notes.push(format!("table `{table}`: column `{name}` is new; restored rows get {default}"));
    found.added.push(column.clone());
}

/// Triggers and rules that would act on Muster's own writes, and are not declared to be harmless.
fn acting_triggers(now: &LiveTable, harmless: &[String]) -> impl Iterator<Item = String> {
    let acts = |what: &'static str| {
        move |name: &str| {
            format!(
                "table `{}`: {what} `{name}` is enabled as ALWAYS or REPLICA and would act on restored rows; enable it \
                 as an ordinary one (ALTER TABLE {} ENABLE {} \"{name}\"), or, if it changes no row of any table, name it in \
                 `harmless_triggers` of the table's section in the topology",
                now.def.name,
                now.qualified(),
                what.to_uppercase(),
            )
        }
    };
    let acting = |list: &[crate::postgres::schema::LiveTrigger]| {
        let acts = list.iter().filter(|one| one.firing.in_replica_role());
        acts.map(|one| one.name.clone()).filter(|name| !harmless.contains(name)).collect::<Vec<_>>()
    };
    let triggers = acting(&now.triggers).into_iter().map(move |name| acts("trigger")(&name));
    let rules = acting(&now.rules).into_iter().map(move |name| acts("rule")(&name));
    triggers.chain(rules).collect::<Vec<_>>().into_iter()
}
