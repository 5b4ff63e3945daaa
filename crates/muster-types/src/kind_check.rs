//! The operator's own checks of a kind: what is asked of each site's store of it before the site is handed back.

use serde::{Deserialize, Serialize};

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCheck {
    /// Its name: in steps, journals, reports and messages.
    pub name: String,
    /// It may take so long; then it has failed.
    pub timeout_seconds: u64,
    /// What is asked.
    pub what: KindCheckWhat,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum KindCheckWhat {
    /// A statement, in a transaction that cannot write. `$1` in it is the bare site id, and `{site}` that text itself.
    Sql {
        /// The statement.
        sql: String,
        /// What it must give.
        expect: Expected,
    },
    /// A program with a JSON document on its input; it must end with 0.
    Program {
        /// Program and arguments; `{site}` stands for the bare site id.
        program: Vec<String>,
    },
}

/// What a statement must give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// One row of one column, with this text.
    Value(String),
    /// No row at all: what it gives are the culprits.
    NoRows,
}

impl KindCheck {
    /// The statement for a site, if it is one.
    pub fn sql_for(&self, site: &crate::ids::SiteId) -> Option<String> {
        match &self.what {
            KindCheckWhat::Sql { sql, .. } => Some(sql.replace(crate::topology::PLACEHOLDER, site.as_str())),
            KindCheckWhat::Program { .. } => None,
        }
    }
}
