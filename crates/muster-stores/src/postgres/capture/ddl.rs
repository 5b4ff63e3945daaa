//! DDL as the log tells it, and what it means for reading on.
//!
//! Pure. The messages are those of `note_ddl.sql`.
//!
//! # Invariants
//! - Any role may write such a message: one that is a lie costs a recovery point, never a row.

use serde::Deserialize;

use super::layout::{Captured, Layout};
use crate::postgres::schema::{self, ReplicaIdentity};

/// Prefix of the messages.
pub(super) const DDL: &str = "muster.ddl";

/// What one DDL did to tables.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Ddl {
    /// The command, as PostgreSQL names it.
    pub(super) tag: String,
    /// Tables that it made or altered, as they were after it.
    #[serde(default)]
    pub(super) tables: Vec<Touched>,
    /// Tables that it dropped.
    #[serde(default)]
    pub(super) dropped: Vec<Gone>,
    /// Why it could not be told what it did.
    #[serde(default)]
    pub(super) failed: Option<String>,
}

/// A table after a DDL; of a partition, the table that it is part of.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Touched {
    pub(super) oid: u32,
    schema: String,
    name: String,
    persistence: String,
    /// The relations that were named: itself, or partitions.
    touched: Vec<u32>,
    columns: Vec<Column>,
    key: Vec<String>,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Deserialize)]
struct Column {
    name: String,
    type_oid: u32,
    type_modifier: i32,
    generated: bool,
}

/// A relation that holds rows.
#[derive(Clone, Debug, Deserialize)]
struct Part {
    oid: u32,
    file: u32,
    replica_identity: String,
    identity_columns: Option<Vec<String>>,
}

/// A table that is gone.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Gone {
    pub(super) oid: u32,
}

/// What a DDL means for whoever reads the log with a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: no captured table, or nothing about one that rows depend on.
    None,
    /// Captured tables are gone; nothing changes for the others.
    Drops,
    /// Behind it the layout does not fit any more.
    Reshapes,
}

impl Ddl {
    /// Reads a message; what is none of ours did something that is not known.
    pub(super) fn read(content: &[u8]) -> Self {
        serde_json::from_slice(content)
            .unwrap_or_else(|error| Self { failed: Some(error.to_string()), ..Self::default() })
    }

    /// For the tables of `layout`. `was_emptied` by a truncation that the log has told of: such a table has another file.
    pub(super) fn effect(
        &self,
        layout: &Layout,
        declared: impl Fn(&str) -> bool,
        was_emptied: impl Fn(usize) -> bool,
    ) -> Effect {
        if self.failed.is_some() {
            return Effect::Reshapes;
        }
        let reshapes = |table: &Touched| match layout.by_oid(table.oid) {
            Some(number) => !table.is_as(&layout.tables[number], was_emptied(number)),
            None => {
                declared(&table.topology_name()) || table.parts.iter().any(|part| layout.has_part(part.oid))
            }
        };
        if self.tables.iter().any(reshapes) {
            return Effect::Reshapes;
        }
        let dropped = || self.dropped.iter().map(|gone| gone.oid);
        let drops = dropped().any(|oid| layout.by_oid(oid).is_some());
        // A partition that goes without its table takes rows with it.
        let parts = dropped().filter(|oid| layout.by_oid(*oid).is_none());
        let mut roots = parts.filter_map(|oid| layout.root_of(oid));
        match (roots.any(|root| !dropped().any(|oid| oid == root)), drops) {
            (true, _) => Effect::Reshapes,
            (false, true) => Effect::Drops,
            (false, false) => Effect::None,
        }
    }

    /// Every relation that it names.
    pub(super) fn relations(&self) -> impl Iterator<Item = u32> {
        let touched = self.tables.iter().flat_map(|table| table.touched.iter().copied().chain([table.oid]));
        touched.chain(self.dropped.iter().map(|gone| gone.oid))
    }

    /// Partitions that it made, empty.
    pub(super) fn new_partitions(&self) -> impl Iterator<Item = u32> {
        let tables = self.tables.iter().filter(|_| self.tag == "CREATE TABLE");
        tables.flat_map(|table| table.touched.iter().copied().filter(|oid| *oid != table.oid))
    }
}

impl Touched {
    /// Under the name that a topology has for it.
    pub(super) fn topology_name(&self) -> String {
        schema::topology_name(&self.schema, &self.name)
    }

    /// Rows of it lie in this relation.
    pub(super) fn has_part(&self, oid: u32) -> bool {
        self.parts.iter().any(|part| part.oid == oid)
    }

    /// Rows of `captured`, and what the log says of them, are as they were.
    fn is_as(&self, captured: &Captured, emptied: bool) -> bool {
        let live = &captured.live;
        let columns = self.columns.iter().filter(|column| !column.generated);
        let columns = columns.map(|column| (column.name.as_str(), column.type_oid, column.type_modifier));
        let files = self.parts.iter().map(|part| (part.oid, part.file));
        (&self.schema, &self.name) == (&live.schema, &live.name)
            && self.persistence == "p"
            && self.key == captured.table.def.key
            && captured.has_columns(columns)
            && captured.signature.has_files(files, emptied)
            && self.parts.iter().all(|part| part.is_identified_as(captured))
    }
}

impl Part {
    fn is_identified_as(&self, captured: &Captured) -> bool {
        let live = &captured.live;
        let partition = live.partitions.iter().find(|partition| partition.oid == self.oid);
        match partition.map_or(&live.replica_identity, |partition| &partition.replica_identity) {
            ReplicaIdentity::Default => self.replica_identity == "d",
            ReplicaIdentity::Full => self.replica_identity == "f",
            ReplicaIdentity::Nothing => self.replica_identity == "n",
            ReplicaIdentity::Index { columns, .. } => {
                self.replica_identity == "i" && self.identity_columns.as_ref() == Some(columns)
            }
        }
    }
}
