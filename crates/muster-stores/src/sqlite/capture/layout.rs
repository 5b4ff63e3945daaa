//! What is captured, and the objects that capture needs in the shard for it.
//!
//! # Invariants
//! - Tables are in the order (kind, name), which is the order of slices and frames within a site.
//! - Triggers of a table name that table and Muster's own tables only: SQLite refuses the usual rebuild of a table
//!   (create, copy, drop, rename) while a trigger elsewhere names it.

use std::collections::BTreeMap;

use muster_types::table::{CapturedTable, Owner};

use super::{evict, owner_map, triggers};
use crate::sqlite::schema::Shape;
use crate::sqlite::system::{self, OwnerMap};

/// One captured table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// Its number in the change table.
    pub(crate) id: i64,
    /// As the repository knows it.
    pub(crate) table: CapturedTable,
    /// As SQLite knows it.
    pub(crate) shape: Shape,
}

impl Captured {
    pub(crate) fn name(&self) -> &str {
        &self.table.def.name
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.table.owner
    }

    /// Stored columns, in order.
    pub(crate) fn columns(&self) -> Vec<&str> {
        self.table.def.stored_columns().map(|column| column.name.as_str()).collect()
    }

    /// The primary key: index among the stored columns, name, and the collation that makes keys equal.
    pub(crate) fn key(&self) -> Vec<(usize, &str, &str)> {
        let columns = self.columns();
        let primary = self.shape.keys.iter().find(|key| key.primary);
        let collation = |name: &str| {
            let named = |(column, _): &&(Option<String>, String)| column.as_deref() == Some(name);
            let found = primary.and_then(|key| key.columns.iter().find(named));
            found.map_or("BINARY", |(_, collation)| collation.as_str())
        };
        let one = |name: &'_ String| {
            let index = columns.iter().position(|column| column == name)?;
            Some((index, columns[index], index))
        };
        let found: Vec<(usize, &str, usize)> = self.table.def.key.iter().filter_map(one).collect();
        found.into_iter().map(|(index, name, _)| (index, name, collation(name))).collect()
    }

    /// The column `vN` that holds `column` in the change table.
    pub(crate) fn value_column(&self, column: &str) -> Option<String> {
        self.columns().iter().position(|name| *name == column).map(|index| format!("v{index}"))
    }
}

/// What kind of object of the shard's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectKind {
    Table,
    Index,
    Trigger,
}

/// A table, index or trigger of capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: ObjectKind,
    pub(crate) name: String,
    /// As it stands in `sqlite_schema`.
    pub(crate) sql: String,
}

impl Object {
    pub(crate) fn new(kind: ObjectKind, name: impl Into<String>, sql: impl Into<String>) -> Self {
        Self { kind, name: name.into(), sql: sql.into() }
    }
}

/// All captured tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) tables: Vec<Captured>,
}

impl Layout {
    pub(crate) fn new(mut tables: Vec<Captured>) -> Self {
        tables.sort_by(|a, b| (&a.table.kind, a.name()).cmp(&(&b.table.kind, b.name())));
        Self { tables }
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Captured> {
        self.tables.iter().find(|table| table.name() == name)
    }

    /// Maps that are keyed by a column of `table`.
    pub(crate) fn maps_of(&self, table: &str) -> Vec<OwnerMap> {
        let all = system::owner_maps(self.tables.iter().map(Captured::owner));
        all.into_iter().filter(|map| map.table == table).collect()
    }

    /// Tables owned through a map.
    pub(crate) fn children_of(&self, map: &OwnerMap) -> Vec<&Captured> {
        self.tables.iter().filter(|table| system::owner_map(table.owner()).as_ref() == Some(map)).collect()
    }

    /// Tables in an order in which owners come before what they own.
    pub(crate) fn owners_first(&self) -> Vec<&Captured> {
        let mut depths: Vec<(usize, &Captured)> =
            self.tables.iter().map(|table| (self.depth(table), table)).collect();
        depths.sort_by_key(|(depth, table)| (*depth, table.id));
        depths.into_iter().map(|(_, table)| table).collect()
    }

    /// Owners above a table; at most the number of tables, should they form a cycle.
    pub(crate) fn depth(&self, table: &Captured) -> usize {
        let (mut depth, mut at) = (0, table);
        while let Some(parent) = system::owner_map(at.owner()).and_then(|map| self.by_name(&map.table)) {
            depth += 1;
            if depth > self.tables.len() {
                break;
            }
            at = parent;
        }
        depth
    }

    /// Widest row.
    pub(crate) fn columns_max(&self) -> usize {
        self.tables.iter().map(|table| table.columns().len()).max().unwrap_or(0)
    }

    /// The objects that each table needs, by table id; tables before indexes before triggers.
    pub(crate) fn objects(&self) -> BTreeMap<i64, Vec<Object>> {
        self.tables.iter().map(|table| (table.id, self.objects_of(table))).collect()
    }

    fn objects_of(&self, table: &Captured) -> Vec<Object> {
        let mut objects = evict::objects(table);
        for map in self.maps_of(table.name()) {
            objects.extend(owner_map::objects(self, table, &map));
        }
        objects.extend(triggers::objects(self, table));
        objects.sort_by_key(|object| object.kind);
        objects
    }
}
