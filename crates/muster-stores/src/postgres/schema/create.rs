//! Statements that create a table again, with its sequences, keys, checks and indexes.
//!
//! Types and functions that it uses must be there, and so must the tables that it refers to.

use super::name::{qualified, quote};
use super::table::{Identity, LiveTable, OwnedSequence};

/// What the statements need beside the table itself.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Collations by column, where they are not the type's.
    pub(super) collations: Vec<(String, String)>,
    /// Constraints with their definitions, foreign keys last.
    pub(super) constraints: Vec<(String, String)>,
    /// Definitions of indexes that belong to no constraint.
    pub(super) indexes: Vec<String>,
    /// `LIST (…)`, `RANGE (…)` or `HASH (…)` of a partitioned table.
    pub(super) partition_key: Option<String>,
}

/// The statements, in order.
pub(super) fn create_sql(table: &LiveTable, parts: &Parts) -> Vec<String> {
    let name = table.qualified();
    let own = || table.sequences.iter().filter(|sequence| !sequence.of_identity);
    let mut statements: Vec<String> = own()
        .map(|sequence| {
            format!(
                "CREATE SEQUENCE {} {}",
                qualified(&sequence.schema, &sequence.name),
                sequence.options_sql
            )
        })
        .collect();
    let columns: Vec<String> =
        table.def.columns.iter().map(|column| column_sql(table, parts, &column.name)).collect();
    let unlogged = if table.unlogged { "UNLOGGED " } else { "" };
    let partition =
        parts.partition_key.as_ref().map_or_else(String::new, |key| format!(" PARTITION BY {key}"));
    statements.push(format!("CREATE {unlogged}TABLE {name} ({}){partition}", columns.join(", ")));
    if parts.partition_key.as_ref().is_some_and(|key| !key.starts_with("HASH")) {
        let default = qualified(&table.schema, &format!("{}_default", table.name));
        statements.push(format!("CREATE TABLE {default} PARTITION OF {name} DEFAULT"));
    } else if parts.partition_key.is_some() {
        let only = qualified(&table.schema, &format!("{}_0", table.name));
        statements.push(format!(
            "CREATE TABLE {only} PARTITION OF {name} FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ));
    }
    statements.extend(own().map(|sequence| {
        let column = quote(&sequence.column);
        format!("ALTER SEQUENCE {} OWNED BY {name}.{column}", qualified(&sequence.schema, &sequence.name))
    }));
    let constraint = |(constraint, definition): &(String, String)| {
        format!("ALTER TABLE {name} ADD CONSTRAINT {} {definition}", quote(constraint))
    };
    let (foreign, other): (Vec<_>, Vec<_>) =
        parts.constraints.iter().partition(|(_, definition)| definition.starts_with("FOREIGN KEY"));
    statements.extend(other.into_iter().map(constraint));
    statements.extend(parts.indexes.iter().cloned());
    statements.extend(foreign.into_iter().map(constraint));
    statements
}

fn column_sql(table: &LiveTable, parts: &Parts, name: &str) -> String {
    let Some(column) = table.def.columns.iter().find(|column| column.name == name) else {
        return String::new();
    };
    let mut sql = format!("{} {}", quote(name), column.declared_type);
    if let Some((_, collation)) = parts.collations.iter().find(|(of, _)| of == name) {
        sql.push_str(&format!(" COLLATE {collation}"));
    }
    match (&column.default_sql, table.identity.get(name)) {
        (Some(expression), _) if column.generated => {
            sql.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
        }
        (Some(expression), _) => sql.push_str(&format!(" DEFAULT {expression}")),
        (None, Some(identity)) => {
            let when = if identity == &Identity::Always { "ALWAYS" } else { "BY DEFAULT" };
            let options = table.sequences.iter().find(|sequence| sequence.column == name);
            sql.push_str(&format!(
                " GENERATED {when} AS IDENTITY{}",
                options.map_or_else(String::new, in_column)
            ));
        }
        (None, None) => {}
    }
    if column.not_null {
        sql.push_str(" NOT NULL");
    }
    sql
}

fn in_column(sequence: &OwnedSequence) -> String {
    let name = qualified(&sequence.schema, &sequence.name);
    // The type of an identity sequence is the column's.
    let options = sequence.options_sql.split_once(" START").map_or("", |(_, rest)| rest);
    format!(" (SEQUENCE NAME {name} START{options})")
}
