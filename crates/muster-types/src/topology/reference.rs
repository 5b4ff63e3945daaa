//! `[[references]]`: columns that refer to rows of other stores.

use std::collections::BTreeMap;

use super::declare::{OwnerlessEntry, SiteTableEntry, TableEntry};
use super::error::suggestion;
use super::raw::{At, Findings, Section};
use crate::ids::Kind;
use crate::reference::{ColumnRef, Reference};
use crate::table::Owner;

/// `[[references]]`
pub(super) struct ReferenceEntry {
    at: usize,
    from: At<String>,
    to: At<String>,
    from_where: BTreeMap<String, String>,
    to_where: BTreeMap<String, String>,
}

/// Reads `[[references]]`.
pub(super) fn read(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Vec<ReferenceEntry> {
    let sections = root.section_list(findings, "references");
    sections.into_iter().filter_map(|section| one(findings, section)).collect()
}

fn one(findings: &mut Findings<'_>, mut section: Section<'_>) -> Option<ReferenceEntry> {
    let at = section.at();
    let hint = "add `from = \"KIND.TABLE.COLUMN\"`, which holds the keys";
    let from = section.required_text(findings, "from", hint);
    let hint = "add `to = \"KIND.TABLE.COLUMN\"`, which has them";
    let to = section.required_text(findings, "to", hint);
    let from_where = section.text_map(findings, "from_where");
    let to_where = section.text_map(findings, "to_where");
    section.close(findings);
    Some(ReferenceEntry { at, from: from?, to: to?, from_where, to_where })
}

/// Declared tables: name, kind, and whether its rows belong to sites.
struct Tables<'t>(Vec<(String, &'t Kind, bool)>);

impl<'t> Tables<'t> {
    fn of(named: &'t [TableEntry], of_sites: &'t [SiteTableEntry], ownerless: &'t [OwnerlessEntry]) -> Self {
        let named = named
            .iter()
            .map(|table| (table.name.value.clone(), &table.kind.value, table.owner != Owner::Reference));
        let of_sites =
            of_sites.iter().map(|table| (table.pattern.value.to_string(), &table.kind.value, true));
        let ownerless = ownerless.iter().map(|table| (table.name.value.clone(), &table.kind.value, true));
        Self(named.chain(of_sites).chain(ownerless).collect())
    }

    /// The column that a text names. Kinds and tables may have dots in their names, so that it is read by what is declared.
    fn column(&self, findings: &mut Findings<'_>, key: &str, text: &At<String>) -> Option<ColumnRef> {
        let named = |(table, kind, _): &&(String, &Kind, bool)| {
            let column = text.value.strip_prefix(kind.as_str())?.strip_prefix('.')?;
            let column = column.strip_prefix(table.as_str())?.strip_prefix('.')?;
            (!column.is_empty()).then(|| column.to_owned())
        };
        // Of `a` and `a.b` the longer one is meant: a column has no dot as a rule.
        let found = self.0.iter().filter(|entry| named(entry).is_some());
        let Some(found) = found.max_by_key(|(table, kind, _)| table.len() + kind.as_str().len()) else {
            let (what, hint) = self.unknown(&text.value);
            findings.add(text.at, format!("`{key}` of a reference is `{}`: {what}", text.value), hint);
            return None;
        };
        let (table, kind, of_sites) = found;
        if !of_sites {
            let what = format!(
                "`{key}` of a reference is `{}`: table `{table}` is a reference table, whose rows belong to no site",
                text.value
            );
            findings.add(text.at, what, "name a table of sites; a foreign key guards what all sites share");
            return None;
        }
        Some(ColumnRef { kind: (*kind).clone(), table: table.clone(), column: named(&found)? })
    }

    /// What of a text is not declared.
    fn unknown(&self, text: &str) -> (String, String) {
        let of_kind =
            |kind: &&Kind| text.strip_prefix(kind.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let kind =
            self.0.iter().map(|(_, kind, _)| *kind).filter(of_kind).max_by_key(|kind| kind.as_str().len());
        let Some(kind) = kind else {
            let named = text.split('.').next().unwrap_or_default();
            let kinds = self.0.iter().map(|(_, kind, _)| kind.as_str());
            let hint =
                format!("{}write KIND.TABLE.COLUMN with a kind that has tables", suggestion(named, kinds));
            return (format!("no table is declared for kind `{named}`"), hint);
        };
        let rest = text[kind.as_str().len() + 1..].to_owned();
        let table = rest.rsplit_once('.').map_or(rest.as_str(), |(table, _)| table);
        let tables = || self.0.iter().filter(|(_, of, _)| *of == kind).map(|(table, ..)| table.as_str());
        if tables().any(|known| known == rest || known == table) {
            return ("it names no column".to_owned(), "write KIND.TABLE.COLUMN".to_owned());
        }
        let hint = format!("{}declare it, or name another table of `{kind}`", suggestion(table, tables()));
        (format!("kind `{kind}` has no table `{table}`"), hint)
    }
}

/// Holds them against the declared tables.
pub(super) fn resolve(
    findings: &mut Findings<'_>,
    entries: &[ReferenceEntry],
    named: &[TableEntry],
    (of_sites, ownerless): (&[SiteTableEntry], &[OwnerlessEntry]),
) -> Vec<Reference> {
    let tables = Tables::of(named, of_sites, ownerless);
    let mut references: Vec<Reference> = Vec::new();
    for entry in entries {
        let from = tables.column(findings, "from", &entry.from);
        let to = tables.column(findings, "to", &entry.to);
        let (Some(from), Some(to)) = (from, to) else { continue };
        let reference =
            Reference { from, to, from_where: entry.from_where.clone(), to_where: entry.to_where.clone() };
        if references.contains(&reference) {
            findings.add(
                entry.at,
                format!("the reference {reference} is declared twice"),
                "remove one of the two",
            );
            continue;
        }
        references.push(reference);
    }
    references
}
