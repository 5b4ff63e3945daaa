//! The live state of stores: rows, definitions, claims. Reads only.
//!
//! Thousands of stores are looked at together: their sites go into a temporary table, and each live table is joined
//! to it once, so that the cost is one pass (or one index search a site) for each table and not for each store.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_engine::driver::{DriverError, StoreProbe};
use muster_types::plan::LiveStore;
use muster_types::table::{Owner, TableDef};
use muster_types::{Kind, SiteId, StoreId};
use rusqlite::Connection;

use super::compare::compare;
use super::live::{kind_tables, read_definition};
use super::shard::Shard;
use super::sql::probed_rows;
use crate::comparison::definitions_digest;
use crate::sqlite::system;

/// Looks at stores in one read transaction.
pub(super) fn probe(shard: &Shard, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
    let conn = shard.reader()?;
    let failed = |error: rusqlite::Error| shard.error("look at its stores", &error);
    conn.pragma_update(None, "query_only", false).map_err(failed)?;
    fill_sites(&conn, stores).map_err(failed)?;
    conn.execute_batch("BEGIN").map_err(failed)?;
    let unwritable = shard.unwritable();
    let claims = claims(&conn).map_err(failed)?;
    let mut look = Look { shard, conn: &conn, definitions: BTreeMap::new(), counts: HashMap::new() };
    stores
        .iter()
        .map(|probe| {
            let mut live = look.store(probe)?;
            live.unwritable.clone_from(&unwritable);
            live.claimed_by = claims.get(&probe.store).cloned();
            Ok(live)
        })
        .collect()
}

/// Rows by site and then by table, for the tables of a kind.
type Counts = HashMap<SiteId, u64>;

struct Look<'a> {
    shard: &'a Shard,
    conn: &'a Connection,
    definitions: BTreeMap<String, Option<TableDef>>,
    counts: HashMap<Kind, Counts>,
}

impl Look<'_> {
    fn store(&mut self, probe: &StoreProbe) -> Result<LiveStore, DriverError> {
        let mut differences = Vec::new();
        let mut definitions = BTreeMap::new();
        for table in probe.tables.iter() {
            let live = self.definition(&table.def.name)?;
            differences.extend(compare(&table.def, live.as_ref()).texts());
            definitions.insert(table.def.name.clone(), live);
        }
        Ok(LiveStore {
            rows: self.rows(&probe.store, probe)?,
            definitions: Some(definitions_digest(
                definitions.iter().map(|(name, def)| (name.as_str(), def.as_ref())),
            )),
            differences,
            claimed_by: None,
            unwritable: None,
            full_proof_lacks: None,
        })
    }

    fn definition(&mut self, table: &str) -> Result<Option<TableDef>, DriverError> {
        if !self.definitions.contains_key(table) {
            let found = read_definition(self.shard, self.conn, table)?;
            self.definitions.insert(table.to_owned(), found);
        }
        Ok(self.definitions.get(table).cloned().flatten())
    }

    fn rows(&mut self, store: &StoreId, probe: &StoreProbe) -> Result<u64, DriverError> {
        if !self.counts.contains_key(&store.kind) {
            let mut counts = Counts::new();
            for (table, owner) in kind_tables(self.shard, &store.kind, &probe.tables) {
                if self.definition(&table)?.is_some() {
                    self.count(&table, &owner, &mut counts)?;
                }
            }
            self.counts.insert(store.kind.clone(), counts);
        }
        let counts = self.counts.get(&store.kind);
        Ok(counts.and_then(|counts| counts.get(&store.site)).copied().unwrap_or(0))
    }

    fn count(&self, table: &str, owner: &Owner, counts: &mut Counts) -> Result<(), DriverError> {
        let Some(sql) = probed_rows(table, owner) else { return Ok(()) };
        let failed = |error: rusqlite::Error| self.shard.error(&format!("count rows of `{table}`"), &error);
        let mut select = self.conn.prepare(&sql).map_err(failed)?;
        let mut rows = select.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let site: String = row.get(0).map_err(failed)?;
            let count: i64 = row.get(1).map_err(failed)?;
            if let Ok(site) = SiteId::new(site) {
                *counts.entry(site).or_default() += count.cast_unsigned();
            }
        }
        Ok(())
    }
}

fn fill_sites(conn: &Connection, stores: &[StoreProbe]) -> rusqlite::Result<()> {
    conn.execute_batch("CREATE TEMP TABLE probed (site TEXT PRIMARY KEY) WITHOUT ROWID; BEGIN;")?;
    let sites: BTreeSet<&SiteId> = stores.iter().map(|probe| &probe.store.site).collect();
    let mut insert = conn.prepare("INSERT INTO temp.probed VALUES (?1)")?;
    for site in sites {
        insert.execute([site.as_str()])?;
    }
    conn.execute_batch("COMMIT; ANALYZE temp.probed;")
}

fn claims(conn: &Connection) -> rusqlite::Result<BTreeMap<StoreId, String>> {
    let mut claims = BTreeMap::new();
    if !system::has_table(conn, "_muster_claim")? {
        return Ok(claims);
    }
    let mut select = conn.prepare("SELECT site, kind, run FROM main._muster_claim")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (site, kind, run): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Ok(store) = format!("site:{site}/{kind}").parse() {
            claims.insert(store, run);
        }
    }
    Ok(claims)
}
