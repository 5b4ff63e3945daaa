//! Ids that scripts are handed: what they name, and what a deletion of it takes away.
//!
//! `site:ID` needs no declaration: it is a row of the directory. Whatever else has ids of its own, an installed app say,
//! is declared, so that a list of ids can be held against the rows that are there.

use std::collections::BTreeMap;

use super::check::{Kinds, is_of_sites};
use super::declare::{SiteTableEntry, TableEntry, pattern};
use super::error::suggestion;
use super::order::Pattern;
use super::raw::{At, Findings, Section};
use crate::ids::Kind;
use crate::table::Owner;

/// The type of sites' ids, which every topology has.
pub const SITE_ID_TYPE: &str = "site";

/// A type of ids: each is a row of a table, and stands for one store of the row's site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdType {
    /// The table with a row for each.
    pub table: String,
    /// The kind of that table.
    pub table_kind: Kind,
    /// Holds the id.
    pub column: String,
    /// Holds the row's site.
    pub tenant_column: String,
    /// Names the kind of the store that a deletion takes away.
    pub kind_column: String,
    /// Rows of other kinds are not of this type.
    pub kinds: Vec<Kind>,
}

/// `[ids.NAME]`
pub(super) struct IdTypeEntry {
    name: At<String>,
    table: At<String>,
    column: String,
    kind_column: String,
    kinds: Vec<At<Pattern>>,
}

/// Reads `[ids]`.
pub(super) fn read(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Vec<IdTypeEntry> {
    let sections = root.sections(findings, "ids");
    sections
        .into_iter()
        .filter_map(|At { value: (name, section), at }| one(findings, name, at, section))
        .collect()
}

fn one(
    findings: &mut Findings<'_>,
    name: String,
    at: usize,
    mut section: Section<'_>,
) -> Option<IdTypeEntry> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(plain) {
        findings.add(at, format!("`{name}` is no type of ids"), "use letters, digits, `-` and `_`");
    }
    if name == SITE_ID_TYPE {
        let hint = "remove the section: a site's id is that of its row in the [directory]";
        findings.add(at, "the ids of sites are declared twice", hint);
    }
    let table =
        section.required_text(findings, "table", "add `table = \"...\"`, the table with a row for each id");
    let column = section.required_text(findings, "column", "add `column = \"...\"`, which holds the id");
    let kind_hint = "add `kind_column = \"...\"`, which names the kind of the store that the id stands for";
    let kind_column = section.required_text(findings, "kind_column", kind_hint);
    let kinds = section.texts(findings, "kinds");
    if kinds.as_ref().is_none_or(|kinds| kinds.value.is_empty()) {
        let hint = "add `kinds = [...]`, such as \"app:*\": rows of other kinds are not of this type";
        findings.add(at, format!("{} has no kinds", section.name()), hint);
    }
    let kinds = kinds.map(|kinds| kinds.value).unwrap_or_default();
    let kinds = kinds.iter().filter_map(|kind| pattern(findings, kind)).collect();
    section.close(findings);
    let (column, kind_column) = (column?.value, kind_column?.value);
    Some(IdTypeEntry { name: At { value: name, at }, table: table?, column, kind_column, kinds })
}

/// Holds them against the declared tables.
pub(super) fn resolve(
    findings: &mut Findings<'_>,
    entries: Vec<IdTypeEntry>,
    (tables, of_sites): (&[TableEntry], &[SiteTableEntry]),
    kinds: &Kinds<'_>,
) -> BTreeMap<String, IdType> {
    let mut types = BTreeMap::new();
    for entry in entries {
        let section = format!("[ids.{}]", entry.name.value);
        let (name, at) = (&entry.table.value, entry.table.at);
        if is_of_sites(findings, at, &section, name, of_sites) {
            continue;
        }
        let Some(table) = tables.iter().find(|table| table.name.value == *name) else {
            let known = tables.iter().map(|table| table.name.value.as_str());
            let hint = format!("{}declare it, or name another table", suggestion(name, known));
            findings.add(at, format!("{section} names table `{name}`, which is not declared"), hint);
            continue;
        };
        let Owner::Tenant { column: tenant_column } = &table.owner else {
            let hint = "name a table whose rows have a `tenant` column, so that the site of an id is known";
            findings.add(at, format!("{section} names table `{name}`, which has no tenant column"), hint);
            continue;
        };
        let matching = |kind: &&Kind| entry.kinds.iter().any(|pattern| pattern.value.matches(kind));
        let id_type = IdType {
            table: entry.table.value.clone(),
            table_kind: table.kind.value.clone(),
            column: entry.column,
            tenant_column: tenant_column.clone(),
            kind_column: entry.kind_column,
            kinds: kinds.configs.keys().filter(matching).cloned().collect(),
        };
        types.insert(entry.name.value, id_type);
    }
    types
}
