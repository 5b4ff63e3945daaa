//! Definitions of captured tables.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Kind, SiteId};

/// One column, in the order of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDef {
    /// Its name.
    pub name: String,
    /// The type as declared; may be empty in SQLite.
    pub declared_type: String,
    /// Declared NOT NULL.
    pub not_null: bool,
    /// The default, as SQL.
    pub default_sql: Option<String>,
    /// Generated columns are computed by the shard: neither captured nor restored.
    pub generated: bool,
}

/// A primary or unique key: two live rows never agree in all of `columns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueKey {
    /// The index or constraint name, for messages.
    pub name: String,
    /// Column names, in index order.
    pub columns: Vec<String>,
    /// The predicate of a partial index, as SQL.
    pub predicate_sql: Option<String>,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Columns here.
    pub columns: Vec<String>,
    /// The table referred to.
    pub parent_table: String,
    /// Columns there.
    pub parent_columns: Vec<String>,
}

/// What a shard says about one of its tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDef {
    /// The table's name.
    pub name: String,
    /// All columns, in order.
    pub columns: Vec<ColumnDef>,
    /// Names of the columns that identify a row: the primary key.
    pub key: Vec<String>,
    /// Unique keys beside the primary one.
    pub unique: Vec<UniqueKey>,
    /// Foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// Statements that create the table and its indexes, without triggers, in order.
    pub create_sql: Vec<String>,
}

impl TableDef {
    /// The columns whose values are captured and restored, in order: all that are not generated.
    pub fn stored_columns(&self) -> impl Iterator<Item = &ColumnDef> {
        self.columns.iter().filter(|column| !column.generated)
    }

    /// Indexes of the key columns among [`Self::stored_columns`], in key order.
    ///
    /// Key columns that are not stored are left out; capture refuses such tables.
    pub fn key_indexes(&self) -> Vec<usize> {
        let position = |name: &String| self.stored_columns().position(|column| &column.name == name);
        self.key.iter().filter_map(position).collect()
    }

    /// Identifies this definition: tables with equal digests hold the same rows in the same text.
    pub fn digest(&self) -> Digest {
        // A struct of strings, booleans and lists has no value that JSON cannot hold.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// To whom the rows of a table belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Owner {
    /// `column` holds the bare site id.
    Tenant {
        /// The tenant column.
        column: String,
    },
    /// The site of the row of `table` whose `key` equals this row's `column`.
    Parent {
        /// The column here.
        column: String,
        /// The owning table, itself owned.
        table: String,
        /// The column there: a primary or unique key.
        key: String,
    },
    /// Every row is of this site: the table stands in a schema, or a database, of the site's own.
    Site {
        /// The site.
        site: SiteId,
    },
    /// Shared by all sites: captured, never restored over live rows.
    Reference,
}

/// A table as the topology and the shard describe it together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedTable {
    /// The kind that its rows are part of.
    pub kind: Kind,
    /// To whom rows belong.
    pub owner: Owner,
    /// Its definition.
    pub def: TableDef,
}
