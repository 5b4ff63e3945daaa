//! The live tables of a store, as a publish meets them.

use std::collections::BTreeMap;

use muster_engine::driver::{DriverError, ErrorClass, StoreWork};
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{Digest, Kind};
use rusqlite::Connection;

use super::compare::compare;
use super::effects::Watched;
use super::log::{Installed, installed, maps_of};
use super::shard::Shard;
use crate::comparison::{Comparison, definitions_digest};
use crate::sqlite::schema;
use crate::sqlite::system::OwnerMap;

/// One live table of the store's kind.
#[derive(Debug)]
pub(super) struct LiveTable {
    /// Its live definition.
    pub(super) now: TableDef,
    /// To whom its rows belong.
    pub(super) owner: Owner,
    /// Its place in the change log.
    pub(super) installed: Installed,
    /// Maps that other tables are owned through by its rows.
    pub(super) maps: Vec<OwnerMap>,
    /// Its definition at the recovery point; none for a table that was not there.
    pub(super) then: Option<TableDef>,
    /// Columns that restored rows get by default.
    pub(super) added: Vec<ColumnDef>,
}

impl LiveTable {
    pub(super) fn name(&self) -> &str {
        &self.now.name
    }

    /// Names of the stored columns, in the live order.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.now.stored_columns().map(|column| column.name.as_str())
    }

    /// Which columns of changed rows count.
    pub(super) fn watched(&self) -> Watched {
        let index = |name: &str| self.columns().position(|column| column.eq_ignore_ascii_case(name));
        let of = |def: &TableDef| def.stored_columns().filter_map(|column| index(&column.name)).collect();
        Watched { inserted: of(self.then.as_ref().unwrap_or(&self.now)), deleted: of(&self.now) }
    }
}

/// All live tables of a store's kind, those of the work first and in its order.
#[derive(Debug)]
pub(super) struct LiveTables {
    /// The tables.
    pub(super) tables: Vec<LiveTable>,
    /// Digest of the definitions of the work's tables.
    pub(super) definitions: Digest,
    /// Changes whenever any definition in the shard does.
    pub(super) schema_version: i64,
}

/// Reads one live definition.
pub(super) fn read_definition(
    shard: &Shard,
    conn: &Connection,
    table: &str,
) -> Result<Option<TableDef>, DriverError> {
    schema::read_table(conn, table)
        .map_err(|error| shard.error(&format!("read the definition of `{table}`"), &error))
}

/// The shard's tables of a kind with their owners: the declared ones and `also`.
pub(super) fn kind_tables(shard: &Shard, kind: &Kind, also: &[CapturedTable]) -> BTreeMap<String, Owner> {
    let declared = shard.tables().iter().filter(|(_, config)| &config.kind == kind);
    let mut tables: BTreeMap<String, Owner> =
        also.iter().map(|table| (table.def.name.clone(), table.owner.clone())).collect();
    tables.extend(declared.map(|(name, config)| (name.clone(), config.owner.clone())));
    tables
}

/// Number that changes with any definition.
pub(super) fn schema_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.pragma_query_value(Some("main"), "schema_version", |row| row.get(0))
}

/// Reads the live tables of the work's store in one read transaction, and refuses rows that they cannot take.
pub(super) fn load(shard: &Shard, conn: &Connection, work: &StoreWork) -> Result<LiveTables, DriverError> {
    let failed = |error: rusqlite::Error| shard.error("read its definitions", &error);
    conn.execute_batch("BEGIN").map_err(failed)?;
    let loaded = load_in_transaction(shard, conn, work);
    conn.execute_batch("COMMIT").map_err(failed)?;
    loaded
}

fn load_in_transaction(
    shard: &Shard,
    conn: &Connection,
    work: &StoreWork,
) -> Result<LiveTables, DriverError> {
    let failed = |error: rusqlite::Error| shard.error("read its definitions", &error);
    let schema_version = schema_version(conn).map_err(failed)?;
    let mut owners = kind_tables(shard, &work.store.kind, &work.tables);
    let mut by_name = BTreeMap::new();
    let mut tables = Vec::new();
    let mut obstacles = Vec::new();
    for table in work.tables.iter() {
        let owner = owners.remove(&table.def.name).unwrap_or_else(|| table.owner.clone());
        let now = read_definition(shard, conn, &table.def.name)?;
        let Comparison { obstacles: found, added, .. } = compare(&table.def, now.as_ref());
        obstacles.extend(found);
        by_name.insert(table.def.name.clone(), now.clone());
        if let Some(now) = now {
            let installed = known_to_capture(shard, conn, &now)?;
            let maps = declared_maps(shard, work, &now.name);
            tables.push(LiveTable { now, owner, installed, maps, then: Some(table.def.clone()), added });
        }
    }
    if !obstacles.is_empty() {
        return Err(shard.permanent(
            format!("{} does not fit the live tables: {}", work.store, obstacles.join("; ")),
            "bring the definitions back, or export the store with `muster export` and load it by hand",
        ));
    }
    for (name, owner) in owners {
        if let Some(now) = read_definition(shard, conn, &name)? {
            let installed = known_to_capture(shard, conn, &now)?;
            let maps = declared_maps(shard, work, &name);
            tables.push(LiveTable { now, owner, installed, maps, then: None, added: Vec::new() });
        }
    }
    let definitions = definitions_digest(by_name.iter().map(|(name, def)| (name.as_str(), def.as_ref())));
    Ok(LiveTables { tables, definitions, schema_version })
}

fn declared_maps(shard: &Shard, work: &StoreWork, table: &str) -> Vec<OwnerMap> {
    let declared = shard.tables().values().map(|config| &config.owner);
    maps_of(table, declared.chain(work.tables.iter().map(|table| &table.owner)))
}

/// What is published must be captured again, under the definition that capture knows.
fn known_to_capture(shard: &Shard, conn: &Connection, now: &TableDef) -> Result<Installed, DriverError> {
    let found = installed(conn, &now.name)
        .map_err(|error| shard.error(&format!("read how `{}` is captured", now.name), &error))?;
    match found {
        Some(installed) if installed.definition == now.digest() => Ok(installed),
        Some(_) => Err(DriverError::new(
            ErrorClass::Transient,
            format!(
                "shard `{}`: capture has not seen the new definition of table `{}` yet",
                shard.name(),
                now.name
            ),
            "let `muster capture` poll the shard once; the step is tried again",
        )),
        None => Err(shard.permanent(
            format!("table `{}` is not captured", now.name),
            "run `muster capture init` for the shard, then resume the run",
        )),
    }
}
