//! Tables of which each site has its own, in a schema of its own (`[tables."tenant_{site}.issue"]`) or in a database of
//! its own (`site = "…"` of a shard).
//!
//! # Invariants
//! - The placeholder stands once, in the schema's name. What stands in its place is the bare site id, as it is; an id
//!   with a dot has no such schema, since the first dot ends the schema's name.
//! - No two patterns of a topology match one name, and a pattern does not match a table that is declared by its name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{Migration, TableConfig, Topology};
use crate::ids::{Kind, SiteId};
use crate::table::Owner;

/// Stands for the site in a pattern.
pub const PLACEHOLDER: &str = "{site}";

/// The name of a table of each site: `BEFORE{site}AFTER.TABLE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TablePattern {
    before: String,
    after: String,
    table: String,
}

/// What a pattern says of a name that is made like it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// The table of this site.
    Site(SiteId),
    /// What stands in the placeholder's place cannot be a site id; with the reason.
    NoSite(String),
}

impl TablePattern {
    /// A pattern from its text; none if there is no placeholder in it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let (before, rest) = text.split_once(PLACEHOLDER)?;
        Some(match rest.split_once('.') {
            _ if rest.contains(PLACEHOLDER) => Err("has two placeholders"),
            _ if before.contains('.') => Err("has its placeholder in the table's name"),
            None => Err("has a placeholder and no schema"),
            Some((_, "")) => Err("names a schema and no table"),
            Some((after, table)) => {
                Ok(Self { before: before.to_owned(), after: after.to_owned(), table: table.to_owned() })
            }
        })
    }

    /// Whose table `name` is by this pattern; none for a name that is not made like it.
    pub fn named(&self, name: &str) -> Option<Named> {
        let (schema, table) = name.split_once('.')?;
        if table != self.table {
            return None;
        }
        let site = schema.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        Some(match SiteId::new(site) {
            Ok(site) => Named::Site(site),
            Err(error) => Named::NoSite(error.to_string()),
        })
    }

    /// The pattern for another table of the same schemas, if `name` is in one of them.
    pub(super) fn beside(&self, name: &str) -> Option<Self> {
        let (schema, table) = name.split_once('.')?;
        let other = Self { table: table.to_owned(), ..self.clone() };
        matches!(other.named(&format!("{schema}.{table}")), Some(Named::Site(_))).then_some(other)
    }

    /// Whether there is a name that both match.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let ends = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
        let reversed = |text: &str| text.chars().rev().collect::<String>();
        self.table == other.table
            && ends(&self.before, &other.before)
            && ends(&reversed(&self.after), &reversed(&other.after))
    }
}

impl std::fmt::Display for TablePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{PLACEHOLDER}{}.{}", self.before, self.after, self.table)
    }
}

/// A declared table of each site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteTable {
    /// Its name.
    pub pattern: TablePattern,
    /// The kind that its rows are part of.
    pub kind: Kind,
    /// As [`TableConfig::migrations`].
    pub migrations: Vec<Migration>,
    /// As [`TableConfig::harmless_triggers`].
    pub harmless_triggers: Vec<String>,
}

/// A declared table in databases of single sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseTable {
    /// The kind that its rows are part of.
    pub kind: Kind,
    /// As [`TableConfig::migrations`].
    pub migrations: Vec<Migration>,
    /// As [`TableConfig::harmless_triggers`].
    pub harmless_triggers: Vec<String>,
}

impl From<TableConfig> for DatabaseTable {
    /// In the database of one site its owner goes without saying.
    fn from(config: TableConfig) -> Self {
        let TableConfig { kind, owner: _, migrations, harmless_triggers } = config;
        Self { kind, migrations, harmless_triggers }
    }
}

/// The tables that are declared for one shard, by their live names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Those declared by their name.
    named: BTreeMap<String, TableConfig>,
    /// Those of each site.
    of_sites: Vec<SiteTable>,
    /// Those of the one site whose database it is.
    of_database: Option<(SiteId, BTreeMap<String, DatabaseTable>)>,
}

impl From<BTreeMap<String, TableConfig>> for Declared {
    fn from(named: BTreeMap<String, TableConfig>) -> Self {
        Self { named, ..Self::default() }
    }
}

impl Declared {
    /// Tables by name, and those of each site.
    pub fn new(named: BTreeMap<String, TableConfig>, of_sites: Vec<SiteTable>) -> Self {
        Self { named, of_sites, of_database: None }
    }

    /// Tables of a database of `site` alone.
    pub fn of_database(site: SiteId, tables: BTreeMap<String, DatabaseTable>) -> Self {
        Self { of_database: Some((site, tables)), ..Self::default() }
    }

    /// Whether they are those of a database of one site.
    pub fn is_of_database(&self) -> bool {
        self.of_database.is_some()
    }

    /// The declaration of a live table.
    pub fn get(&self, name: &str) -> Option<Cow<'_, TableConfig>> {
        if let Some(config) = self.named.get(name) {
            return Some(Cow::Borrowed(config));
        }
        if let Some((site, tables)) = &self.of_database {
            let owner = Owner::Site { site: site.clone() };
            let DatabaseTable { kind, migrations, harmless_triggers } = tables.get(name)?.clone();
            return Some(Cow::Owned(TableConfig { kind, owner, migrations, harmless_triggers }));
        }
        self.of_sites.iter().find_map(|table| match table.pattern.named(name)? {
            Named::Site(site) => {
                let owner = Owner::Site { site };
                let (kind, migrations) = (table.kind.clone(), table.migrations.clone());
                let harmless_triggers = table.harmless_triggers.clone();
                Some(Cow::Owned(TableConfig { kind, owner, migrations, harmless_triggers }))
            }
            Named::NoSite(_) => None,
        })
    }

    /// Tables declared by their name.
    pub fn named(&self) -> &BTreeMap<String, TableConfig> {
        &self.named
    }

    /// Why a table that is named like those of sites is none; nothing for other tables.
    pub fn misnamed(&self, name: &str) -> Option<String> {
        self.of_sites.iter().find_map(|table| match table.pattern.named(name)? {
            Named::NoSite(reason) => Some(format!("it is named like `{}`, and {reason}", table.pattern)),
            Named::Site(_) => None,
        })
    }

    /// Whether each site has tables of its own of this kind.
    pub fn has_site_tables(&self, kind: &Kind) -> bool {
        self.of_sites.iter().any(|table| table.kind == *kind)
    }

    /// Kinds of all of them.
    pub fn kinds(&self) -> BTreeSet<&Kind> {
        let named = self.named.values().map(|config| &config.kind);
        let of_database = self.of_database.iter().flat_map(|(_, tables)| tables.values());
        let of_database = of_database.map(|table| &table.kind);
        named.chain(self.of_sites.iter().map(|table| &table.kind)).chain(of_database).collect()
    }
}

impl Topology {
    /// Whether a table of this name is declared, in whatever shard.
    pub fn declares(&self, name: &str) -> bool {
        let own = |table: &SiteTable| matches!(table.pattern.named(name), Some(Named::Site(_)));
        self.is_named(name) || self.site_tables.iter().any(own)
    }

    fn is_named(&self, name: &str) -> bool {
        self.tables.contains_key(name) || self.database_tables.contains_key(name)
    }

    /// Whether a table of this name is declared, in whatever shard, and can hold rows of `site`.
    pub fn is_declared_for(&self, name: &str, site: &SiteId) -> bool {
        let own = |table: &SiteTable| table.pattern.named(name) == Some(Named::Site(site.clone()));
        self.is_named(name) || self.site_tables.iter().any(own)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use super::*;

    fn pattern(text: &str) -> TablePattern {
        TablePattern::parse(text).unwrap().unwrap()
    }

    #[test]
    fn a_name_tells_its_site() {
        let issue = pattern("tenant_{site}_eu.issue");
        let site = SiteId::new("a-1").unwrap();
        assert_eq!(issue.named("tenant_a-1_eu.issue"), Some(Named::Site(site)));
        assert_eq!(issue.to_string(), "tenant_{site}_eu.issue");
        for other in
            ["tenant_a_eu.issues", "tenant_a.issue", "issue", "x_tenant_a_eu.issue", "tenant_eu.issue"]
        {
            assert_eq!(issue.named(other), None, "{other}");
        }
        for none in ["tenant__eu.issue", "tenant_a b_eu.issue"] {
            assert!(matches!(issue.named(none), Some(Named::NoSite(_))), "{none}");
        }
    }

    #[test]
    fn patterns_that_match_one_name_meet() {
        let meets = |one: &str, other: &str| pattern(one).meets(&pattern(other));
        assert!(meets("t_{site}.x", "t_{site}_eu.x"));
        assert!(meets("{site}.x", "t_{site}.x"));
        assert!(!meets("t_{site}.x", "t_{site}.y"));
        assert!(!meets("t_{site}.x", "u_{site}.x"));
        assert!(!meets("t_{site}_a.x", "t_{site}_b.x"));
    }
}
