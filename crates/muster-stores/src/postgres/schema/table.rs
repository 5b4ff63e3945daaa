//! A table as the server describes it: the portable definition, and what else capture and restore depend on.

use std::collections::BTreeMap;

use muster_types::table::TableDef;
use serde::{Deserialize, Serialize};

use super::name::{qualified, quote};

/// One table of the database. A partitioned table is one, with its partitions inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveTable {
    /// Its number in the catalog; a table made anew has another.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name within the schema.
    pub name: String,
    /// The portable definition, under the name that the topology uses.
    pub def: TableDef,
    /// Identity columns; they are stored, and restored with their values.
    pub identity: BTreeMap<String, Identity>,
    /// How values of a column are compared for equality, as an operator in SQL, where it is not that of `pg_catalog`: a
    /// session of Muster would not find it by its name, or find one of another type.
    pub equality: BTreeMap<String, String>,
    /// The primary key first, then all unique keys, those over expressions too.
    pub keys: Vec<LiveKey>,
    /// Names of deferrable constraints, on the table or on partitions alone, that are no key of the table as a whole:
    /// exclusion constraints, and keys of single partitions.
    pub deferrable_others: Vec<String>,
    /// As `def.foreign_keys`, in the same order, with what is not portable.
    pub foreign_keys: Vec<LiveForeignKey>,
    /// What a logged delete or update says of the old row; of the table itself, not of its partitions.
    pub replica_identity: ReplicaIdentity,
    /// Triggers of the application, on the table and its partitions.
    pub triggers: Vec<LiveTrigger>,
    /// Rewrite rules.
    pub rules: Vec<LiveTrigger>,
    /// Whether it is partitioned: it has no rows of its own.
    pub partitioned: bool,
    /// Its partitions that hold rows, at any depth.
    pub partitions: Vec<Partition>,
    /// Row-level security is on.
    pub row_security: bool,
    /// Not in the log: cannot be captured.
    pub unlogged: bool,
    /// Sequences that columns own.
    pub sequences: Vec<OwnedSequence>,
}

impl LiveTable {
    /// `"schema"."name"`.
    pub fn qualified(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// The table's own rows, for FROM, UPDATE and DELETE: tables that merely inherit from it are tables of their own.
    pub fn rows_of(&self) -> String {
        if self.partitioned { self.qualified() } else { format!("ONLY {}", self.qualified()) }
    }

    /// The condition that `one` and `other`, values of `column` or of what refers to it, are equal.
    pub fn equal(&self, column: &str, one: &str, other: &str) -> String {
        let operator = self.equality.get(column).map_or("=", String::as_str);
        format!("{one} {operator} {other}")
    }

    /// The condition that the rows `one` and `other` have the same `column` in the sense of `key`.
    pub fn equal_in(&self, key: &LiveKey, column: &str, one: &str, other: &str) -> String {
        let of = |alias: &str| format!("{alias}.{}", quote(column));
        if key.nulls_not_distinct {
            self.same(column, &of(one), &of(other))
        } else {
            self.equal(column, &of(one), &of(other))
        }
    }

    /// As [`Self::equal`], where NULL equals NULL.
    fn same(&self, column: &str, one: &str, other: &str) -> String {
        match self.equality.get(column) {
            Some(operator) => {
                format!("(({one} {operator} {other}) IS TRUE OR ({one} IS NULL AND {other} IS NULL))")
            }
            None => format!("{one} IS NOT DISTINCT FROM {other}"),
        }
    }

    /// Whether a logged delete of any row carries the whole old row.
    pub fn logs_full_rows(&self) -> bool {
        self.identities().all(|identity| identity == &ReplicaIdentity::Full)
    }

    /// Columns that a logged delete carries of every row; none where some rows cannot be deleted at all.
    pub fn logged_old_columns(&self) -> Vec<String> {
        let all = || self.def.stored_columns().map(|column| column.name.clone()).collect::<Vec<_>>();
        let of = |identity: &ReplicaIdentity| match identity {
            ReplicaIdentity::Default => self.def.key.clone(),
            ReplicaIdentity::Nothing => Vec::new(),
            ReplicaIdentity::Full => all(),
            ReplicaIdentity::Index { columns, .. } => columns.clone(),
        };
        let mut common = all();
        for identity in self.identities() {
            let columns = of(identity);
            common.retain(|column| columns.contains(column));
        }
        common
    }

    /// Those that count: of the relations that hold the rows.
    fn identities(&self) -> impl Iterator<Item = &ReplicaIdentity> {
        let own = (!self.partitioned).then_some(&self.replica_identity);
        own.into_iter().chain(self.partitions.iter().map(|partition| &partition.replica_identity))
    }
}

/// How an identity column takes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Only under OVERRIDING SYSTEM VALUE.
    Always,
    /// From anybody.
    ByDefault,
}

/// A primary or unique key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveKey {
    /// Of the index, and of the constraint if there is one.
    pub name: String,
    /// Is the primary key.
    pub primary: bool,
    /// Names; `None` for an expression.
    pub columns: Vec<Option<String>>,
    /// Of a partial index.
    pub predicate_sql: Option<String>,
    /// Two rows with NULL in the same column count as equal.
    pub nulls_not_distinct: bool,
    /// Can be checked at the commit only.
    pub deferrable: bool,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveForeignKey {
    /// Of the constraint.
    pub name: String,
    /// Columns here.
    pub columns: Vec<String>,
    /// The oid of the table referred to.
    pub parent_oid: u32,
    /// As `schema`.`name` in SQL; without ONLY, since it may be partitioned.
    pub parent_sql: String,
    /// Name of the table referred to, as in the topology.
    pub parent_table: String,
    /// Columns there.
    pub parent_columns: Vec<String>,
    /// By column, the operator of a row there and one here.
    pub operators: Vec<String>,
    /// By column, the operator of two rows there.
    pub parent_operators: Vec<String>,
    /// MATCH FULL: either all columns are NULL or none is.
    pub match_full: bool,
    /// Can be checked at the commit only.
    pub deferrable: bool,
    /// What the server does to rows here when one there goes; NO ACTION and RESTRICT are none.
    pub acts_on_delete: bool,
}

/// What the log says of an old row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing: updates and deletes fail while the table is published.
    Nothing,
    /// All columns.
    Full,
    /// The columns of a unique index.
    Index {
        /// Of the index.
        name: String,
        /// Its columns.
        columns: Vec<String>,
    },
}

/// When a trigger or rule fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Firing {
    /// For ordinary sessions: not for a publish.
    Origin,
    /// Always, also for a publish.
    Always,
    /// For replication, and so for a publish.
    Replica,
    /// Never.
    Disabled,
}

impl Firing {
    /// From the catalog's letter.
    pub(super) fn from_letter(letter: &str) -> Self {
        match letter {
            "A" => Self::Always,
            "R" => Self::Replica,
            "D" => Self::Disabled,
            _ => Self::Origin,
        }
    }

    /// Whether it acts under `session_replication_role = replica`.
    pub fn in_replica_role(self) -> bool {
        matches!(self, Self::Always | Self::Replica)
    }
}

/// A trigger or rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LiveTrigger {
    /// Its name.
    pub name: String,
    /// When it fires.
    pub firing: Firing,
}

/// A partition that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number in the catalog.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name within the schema.
    pub name: String,
    /// What the log says of its old rows.
    pub replica_identity: ReplicaIdentity,
    /// Not in the log.
    pub unlogged: bool,
}

/// A sequence that a serial or identity column owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedSequence {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The column.
    pub column: String,
    /// Of an identity column: the server makes it with the column.
    pub of_identity: bool,
    /// The step; negative sequences go down.
    pub increment: i64,
    /// Options for CREATE SEQUENCE.
    pub options_sql: String,
}
