//! References across stores: a column of one kind's rows holds keys of another kind's, in whatever shard those lie.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Kind, SiteId};
use crate::topology::PLACEHOLDER;

/// A column of a declared table; written `KIND.TABLE.COLUMN`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ColumnRef {
    /// The kind that the table is of.
    pub kind: Kind,
    /// The table, as it is declared: with `{site}` in it where each site has its own.
    pub table: String,
    /// The column.
    pub column: String,
}

impl ColumnRef {
    /// The name that the table has for a site.
    pub fn table_of(&self, site: &SiteId) -> String {
        self.table.replace(PLACEHOLDER, site.as_str())
    }
}

impl fmt::Display for ColumnRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.kind, self.table, self.column)
    }
}

/// Each row of a site whose `from` column is not NULL refers to a row of the same site with that text in `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reference {
    /// What refers.
    pub from: ColumnRef,
    /// What is referred to.
    pub to: ColumnRef,
    /// Only rows with these texts in these columns refer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub from_where: BTreeMap<String, String>,
    /// Only rows with these texts in these columns can be referred to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub to_where: BTreeMap<String, String>,
}

impl Reference {
    /// Its two ends, each with the columns whose texts say which rows count.
    pub fn ends(&self) -> [(&ColumnRef, &BTreeMap<String, String>); 2] {
        [(&self.from, &self.from_where), (&self.to, &self.to_where)]
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}
