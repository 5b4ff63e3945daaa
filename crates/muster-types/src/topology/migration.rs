//! Declared migrations: what brings rows of an older definition into the shape of today's.

use super::raw::{At, Findings, Section, listed};
use crate::table::{ColumnDef, TableDef};

/// Stands for the rows in the statements of a migration.
pub const STAGED: &str = "{staged}";

/// How a statement of a migration may begin; what follows is [`STAGED`].
const BEGINNINGS: [&str; 4] = ["ALTER TABLE", "UPDATE", "DELETE FROM", "INSERT INTO"];

/// SQL on the staged rows of one table and store, between their proof and their publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// For plans, journals and messages.
    pub name: String,
    /// It applies to rows of a definition with all of these columns, each `NAME`, or `NAME TYPE` in the server's words,
    pub has_columns: Vec<String>,
    /// and none of those.
    pub lacks_columns: Vec<String>,
    /// Statements, in order; [`STAGED`] in them is the rows' table.
    pub sql: Vec<String>,
}

impl Migration {
    /// Whether rows with these columns need it.
    pub fn applies(&self, def: &TableDef) -> bool {
        let is = |column: &ColumnDef, text: &String| {
            column.name == *text || format!("{} {}", column.name, column.declared_type) == *text
        };
        let has = |text: &String| def.stored_columns().any(|column| is(column, text));
        self.has_columns.iter().all(has) && !self.lacks_columns.iter().any(has)
    }
}

/// `[[tables.X.migrations]]`
pub(super) fn migrations(findings: &mut Findings<'_>, table: &mut Section<'_>) -> Vec<Migration> {
    let mut found: Vec<Migration> = Vec::new();
    for mut section in table.section_list(findings, "migrations") {
        let at = section.at();
        let hint = "add `name = \"...\"`: plans, journals and messages call it so";
        let name = section.required_text(findings, "name", hint);
        let mut columns = |findings: &mut Findings<'_>, key| {
            let found = section.texts(findings, key).map(|found| found.value).unwrap_or_default();
            found.into_iter().map(|column| column.value).collect::<Vec<_>>()
        };
        let has_columns = columns(findings, "has_columns");
        let lacks_columns = columns(findings, "lacks_columns");
        let sql = section.texts(findings, "sql").map(|sql| sql.value).unwrap_or_default();
        if has_columns.is_empty() && lacks_columns.is_empty() {
            findings.add(
                at,
                format!("{} would apply to every definition", section.name()),
                "say which by `has_columns` and `lacks_columns`: names of columns that rows had and had not then",
            );
        }
        if sql.is_empty() {
            findings.add(
                at,
                format!("{} has no `sql`", section.name()),
                "add `sql = [\"ALTER TABLE {staged} ...\"]`",
            );
        }
        sql.iter().for_each(|statement| check(findings, statement));
        section.close(findings);
        let Some(name) = name else { continue };
        if found.iter().any(|other| other.name == name.value) {
            let what = format!("there are two migrations `{}`", name.value);
            findings.add(name.at, what, "give each a name of its own");
        }
        let sql = sql.into_iter().map(|statement| statement.value).collect();
        found.push(Migration { name: name.value, has_columns, lacks_columns, sql });
    }
    found
}

/// A statement changes the staged rows, and ends no transaction.
fn check(findings: &mut Findings<'_>, statement: &At<String>) {
    let words: Vec<&str> = statement.value.split_whitespace().collect();
    let begins = |beginning: &str| {
        let wanted: Vec<&str> = beginning.split(' ').collect();
        let matches = wanted.iter().zip(&words).all(|(wanted, word)| word.eq_ignore_ascii_case(wanted));
        matches && words.get(wanted.len()).is_some_and(|word| word.starts_with(STAGED))
    };
    if !BEGINNINGS.iter().any(|beginning| begins(beginning)) {
        let ways: Vec<String> = BEGINNINGS.iter().map(|beginning| format!("{beginning} {STAGED}")).collect();
        let what = format!("`{}` does not begin by naming the staged rows", statement.value);
        findings.add(statement.at, what, format!("begin with one of {}", listed(&ways)));
    }
}
