//! Tables of the fleet: whose they are, how they are made.
//!
//! They look like those of small real products, and between them have what makes restoring hard: rows without a
//! tenant column up to three levels deep, cascades, `SET NULL`, self-references, secondary unique keys, tables without
//! rowids, text keys, an untyped column, blobs and reals, reference tables, and triggers of the application.

mod core;
mod identity;
mod jira;
mod ops;
mod wiki;

use crate::kind::{Kind, Role};

/// To whom the rows of a table belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This column holds the site's id.
    Tenant(&'static str),
    /// The site of the row of `table` whose `key` is in `column`.
    Parent {
        /// The column here.
        column: &'static str,
        /// The table there.
        table: &'static str,
        /// Its key.
        key: &'static str,
    },
    /// Shared by all sites.
    Reference,
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name, unique in the fleet.
    pub name: &'static str,
    /// The kind that it is part of.
    pub kind: Kind,
    /// Whose its rows are.
    pub owner: Owner,
    /// Its primary key.
    pub key: &'static [&'static str],
    /// Its columns' definitions and constraints, and table options.
    pub body: &'static str,
    /// Statements run once the table is filled: indexes and triggers.
    pub then: &'static [&'static str],
}

/// Every table of a shard with this role, parents first.
pub fn tables(role: Role) -> &'static [Table] {
    match role {
        Role::Core => core::TABLES,
        Role::Identity => identity::TABLES,
        Role::Jira => jira::TABLES,
        Role::Wiki => wiki::TABLES,
        Role::Ops => ops::TABLES,
    }
}

/// Every table of the fleet.
pub fn all_tables() -> impl Iterator<Item = &'static Table> {
    Role::ALL.into_iter().flat_map(|role| tables(role).iter())
}

/// The table with this name.
pub(crate) fn table(name: &str) -> Option<&'static Table> {
    all_tables().find(|table| table.name == name)
}
