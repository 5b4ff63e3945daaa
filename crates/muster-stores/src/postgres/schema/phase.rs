//! The statements that create a table, by when they are run around a load.
//!
//! An unindexed table is filled and then indexed in a fraction of the time that filling an indexed one takes; foreign
//! keys wait for the rows of all tables, and owner and privileges for everything that takes the owner.

/// When a statement of [`TableDef::create_sql`](muster_types::table::TableDef::create_sql) is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Owner of and privileges on its schema, where that is created.
    Schema,
    /// What the table needs, and the table.
    Before,
    /// Keys, checks, indexes, positions of sequences.
    Loaded,
    /// Foreign keys.
    Foreign,
    /// Triggers, row security, replica identity, owner, privileges.
    Last,
}

/// Marks a statement about the schema; a comment to the server.
pub(super) const SCHEMA: &str = "/* schema */ ";

/// Marks a statement of the last phase; a comment to the server.
pub(super) const LAST: &str = "/* last */ ";

impl Phase {
    /// Of a statement as [`read`](super::read) and capture write it.
    pub fn of(statement: &str) -> Self {
        let created = ["CREATE SEQUENCE ", "CREATE TABLE ", "CREATE UNLOGGED ", "ALTER SEQUENCE ", "DO "];
        if statement.starts_with(SCHEMA) {
            return Self::Schema;
        }
        if statement.starts_with(LAST) {
            return Self::Last;
        }
        if created.iter().any(|begin| statement.starts_with(begin)) {
            return Self::Before;
        }
        let definition = statement
            .strip_prefix("ALTER TABLE ")
            .and_then(behind_name)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(behind_name)
            .and_then(|rest| rest.strip_prefix(" ADD CONSTRAINT "))
            .and_then(behind_name);
        match definition {
            Some(definition) if definition.starts_with(" FOREIGN KEY") => Self::Foreign,
            _ => Self::Loaded,
        }
    }
}

/// What follows a quoted identifier.
fn behind_name(text: &str) -> Option<&str> {
    let mut rest = text.strip_prefix('"')?;
    loop {
        let (_, behind) = rest.split_once('"')?;
        match behind.strip_prefix('"') {
            Some(more) => rest = more,
            None => return Some(behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_keys_are_told_from_other_constraints_under_odd_names() {
        for (statement, phase) in [
            ("CREATE TABLE \"a\".\"b\" (\"x\" integer)", Phase::Before),
            ("CREATE SEQUENCE \"a\".\"s\" AS integer", Phase::Before),
            ("ALTER SEQUENCE \"a\".\"s\" OWNED BY \"a\".\"b\".\"x\"", Phase::Before),
            ("CREATE UNIQUE INDEX i ON a.b USING btree (x)", Phase::Loaded),
            ("ALTER TABLE \"a\".\"b\" ADD CONSTRAINT \"p\" PRIMARY KEY (x)", Phase::Loaded),
            ("ALTER TABLE \"a\".\"b\" ADD CONSTRAINT \" FOREIGN KEY\" CHECK ((x > 0))", Phase::Loaded),
            (
                "ALTER TABLE \"a\"\"\".\"b.\" ADD CONSTRAINT \"f\"\" \" FOREIGN KEY (x) REFERENCES a.c(x)",
                Phase::Foreign,
            ),
            ("/* last */ ALTER TABLE \"a\".\"b\" OWNER TO \"app\"", Phase::Last),
        ] {
            assert_eq!(Phase::of(statement), phase, "{statement}");
        }
    }
}
