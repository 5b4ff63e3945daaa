//! Live definitions beside those at the recovery point: what restored rows meet.

use muster_types::table::{ColumnDef, TableDef};

use crate::comparison::Comparison;
use crate::sqlite::schema::affinity_of;

/// Compares one table.
pub(super) fn compare(then: &TableDef, now: Option<&TableDef>) -> Comparison {
    let table = &then.name;
    let Some(now) = now else { return Comparison::gone(table) };
    let mut found = Comparison::default();
    for column in then.stored_columns() {
        compare_column(table, column, now, &mut found);
    }
    for column in now.stored_columns() {
        if then.stored_columns().any(|old| same_name(&old.name, &column.name)) {
            continue;
        }
        added_column(table, column, &mut found);
    }
    found.keys(then, now);
    found
}

fn compare_column(table: &str, then: &ColumnDef, now: &TableDef, found: &mut Comparison) {
    let name = &then.name;
    let Some(live) = now.columns.iter().find(|column| same_name(&column.name, name)) else {
        found.obstacles.push(format!("table `{table}`: column `{name}` was dropped or renamed"));
        return;
    };
    if live.generated {
        found.obstacles.push(format!("table `{table}`: column `{name}` is generated now"));
    }
    if live.declared_type.eq_ignore_ascii_case(&then.declared_type) {
        return;
    }
    let text = format!(
        "table `{table}`: column `{name}` was declared `{}` and is `{}`",
        then.declared_type, live.declared_type
    );
    if affinity_of(&live.declared_type) == affinity_of(&then.declared_type) {
        found.notes.push(text);
    } else {
        found.obstacles.push(text);
    }
}

fn added_column(table: &str, column: &ColumnDef, found: &mut Comparison) {
    let name = &column.name;
    let default = column.default_sql.as_deref().unwrap_or("NULL");
    if column.not_null && default.eq_ignore_ascii_case("null") {
        found.obstacles.push(format!("table `{table}`: new column `{name}` is NOT NULL without a default"));
        return;
    }
    found.notes.push(format!("table `{table}`: column `{name}` is new; restored rows get {default}"));
    found.added.push(column.clone());
}

fn same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, declared_type: &str) -> ColumnDef {
        ColumnDef {
            name: name.into(),
            declared_type: declared_type.into(),
            not_null: false,
            default_sql: None,
            generated: false,
        }
    }

    fn table(columns: Vec<ColumnDef>) -> TableDef {
        TableDef {
            name: "t".into(),
            columns,
            key: vec!["id".into()],
            unique: vec![],
            foreign_keys: vec![],
            create_sql: vec![],
        }
    }

    #[test]
    fn equal_tables_do_not_differ() {
        let def = table(vec![column("id", "INTEGER")]);
        assert!(compare(&def, Some(&def)).texts().is_empty());
    }

    #[test]
    fn each_obstacle_names_its_column() {
        let then = table(vec![column("id", "INTEGER"), column("old", "TEXT"), column("n", "INTEGER")]);
        let required = ColumnDef { not_null: true, ..column("new", "TEXT") };
        let now = table(vec![column("id", "INTEGER"), column("n", "TEXT"), required]);
        assert_eq!(
            compare(&then, Some(&now)).obstacles,
            [
                "table `t`: column `old` was dropped or renamed",
                "table `t`: column `n` was declared `INTEGER` and is `TEXT`",
                "table `t`: new column `new` is NOT NULL without a default",
            ]
        );
        assert_eq!(compare(&then, None).obstacles, ["table `t` is gone"]);
    }

    #[test]
    fn a_new_column_with_a_default_and_a_wider_text_are_no_obstacles() {
        let then = table(vec![column("id", "INTEGER"), column("a", "VARCHAR(10)")]);
        let new = ColumnDef { default_sql: Some("'x'".into()), not_null: true, ..column("b", "TEXT") };
        let now = table(vec![column("id", "INTEGER"), column("a", "VARCHAR(20)"), new]);
        let found = compare(&then, Some(&now));
        assert!(found.obstacles.is_empty(), "{:?}", found.obstacles);
        assert_eq!(found.added.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(found.notes.len(), 2);
    }
}
