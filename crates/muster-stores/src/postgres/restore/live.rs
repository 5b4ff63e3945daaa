//! The live tables of a store, as a publish meets them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_engine::driver::{DriverError, StoreWork};
use muster_types::table::{CapturedTable, Owner, TableDef};
use muster_types::{Digest, Kind, SiteId};
use tokio_postgres::Client;

use super::compare::compare;
use super::errors::judge;
use super::migrate;
use super::owner::{Owners, Way};
use super::shard::{Catalog, Shard};
use crate::comparison::definitions_digest;
use crate::postgres::schema::{self, LiveTable};

/// Longest wait for the lock of a table, where writers to it queue behind the publish: less than the server's usual
/// `deadlock_timeout` of 1 s, at which those would begin to be looked at as a deadlock.
pub(super) const TABLE_LOCK_WAIT: Duration = Duration::from_millis(800);

/// One live table of a kind.
pub(super) struct KindTable<'a> {
    /// Its live definition.
    pub(super) now: &'a LiveTable,
    /// From its rows to their site; none for reference tables.
    pub(super) way: Option<Way<'a>>,
    /// Its definition at the recovery point; none for a table that was not there.
    pub(super) then: Option<&'a TableDef>,
}

impl<'a> KindTable<'a> {
    pub(super) fn name(&self) -> &'a str {
        &self.now.def.name
    }

    /// Names of the columns that restored rows have; none for a table that was not there.
    pub(super) fn restored_columns(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.then.into_iter().flat_map(TableDef::stored_columns).map(|column| column.name.as_str())
    }
}

/// The live tables of a kind: those at the recovery point first and in their order, then those that are new. With a
/// `site`, tables of other sites alone are left out.
pub(super) fn kind_tables<'a>(
    shard: &'a Shard,
    catalog: &'a Catalog,
    kind: &Kind,
    tables: &'a [CapturedTable],
    site: Option<&SiteId>,
) -> Vec<KindTable<'a>> {
    let also = tables.iter().map(|table| (table.def.name.as_str(), &table.owner)).collect();
    let owners = Owners { shard, catalog, also };
    let named = shard.tables().named();
    let declared = |name: &str| named.get(name).map(|config| &config.owner);
    let make = |name: &str, owner: &'a Owner, then: Option<&'a TableDef>| {
        let now = catalog.tables.get(name)?;
        Some(KindTable { now, way: owners.way(now, owner), then })
    };
    let then = tables.iter().filter_map(|table| {
        let name = table.def.name.as_str();
        make(name, declared(name).unwrap_or(&table.owner), Some(&table.def))
    });
    let known = |name: &str| tables.iter().any(|table| table.def.name == name);
    let new = named.iter().filter_map(|(name, config)| {
        (&config.kind == kind && !known(name)).then(|| make(name, &config.owner, None)).flatten()
    });
    let own = catalog.tables.values().filter_map(|now| {
        let config = shard.tables().get(&now.def.name)?;
        let Owner::Site { site: of } = &config.owner else { return None };
        let wanted = &config.kind == kind && site.is_none_or(|site| site == of) && !known(&now.def.name);
        wanted.then(|| KindTable { now, way: Some(Way::of_site(now, of.clone())), then: None })
    });
    then.chain(new).chain(own).collect()
}

/// The live tables that a publish of `work` touches.
pub(super) fn work_tables<'a>(
    shard: &'a Shard,
    catalog: &'a Catalog,
    work: &'a StoreWork,
) -> Vec<KindTable<'a>> {
    kind_tables(shard, catalog, &work.store.kind, &work.tables, Some(&work.store.site))
}

/// Digest of the live definitions of the plan's tables.
pub(super) fn definitions(catalog: &Catalog, tables: &[CapturedTable]) -> Digest {
    let live: BTreeMap<&str, Option<&LiveTable>> =
        tables.iter().map(|table| (table.def.name.as_str(), catalog.tables.get(&table.def.name))).collect();
    definitions_digest(live.into_iter().map(|(name, table)| (name, table.map(|table| &table.def))))
}

/// Reads the definitions before a publish holds any lock: of thousands of tables it takes seconds. What keeps it from that
/// is met again, and told, by the publish itself.
pub(super) async fn look_ahead(shard: &Shard, client: &Client) {
    let begin = format!("BEGIN READ ONLY; SET LOCAL lock_timeout = {}", TABLE_LOCK_WAIT.as_millis());
    let read = async {
        client.batch_execute(&begin).await?;
        Catalog::read(client).await
    };
    let found = read.await;
    let ended = client.batch_execute("ROLLBACK").await;
    if let (Ok(catalog), Ok(())) = (found, ended) {
        shard.learn(catalog);
    }
}

/// Holds the definitions of the work's tables until the transaction ends, and tells them.
pub(super) async fn hold(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    lock_wait: Duration,
) -> Result<Arc<Catalog>, DriverError> {
    let failed = |error: tokio_postgres::Error| shard.error("read its definitions", &error);
    let known = match shard.known() {
        Some(known) => known,
        None => shard.catalog(client).await?,
    };
    let tables = work_tables(shard, &known, work);
    let oids = oids_of(&tables);
    // Sent together: the version is that under the locks.
    let (locked, version) =
        tokio::join!(lock(shard, client, work, &tables, lock_wait), schema::version(client, &oids));
    locked?;
    let version = version.map_err(failed)?;
    if known.versions.get(&oids) == Some(&version) {
        return Ok(known);
    }
    // Where these tables are as they were known, so is the rest, as far as it matters: a whole reading takes long.
    let mut fresh = known.with(client, &oids).await.map_err(failed)?;
    if fresh.tables != known.tables {
        fresh = Catalog::read(client).await.map_err(failed)?;
        fresh.versions.clone_from(&known.versions);
    }
    fresh.versions.insert(oids.clone(), version);
    let fresh = shard.learn(fresh);
    if oids_of(&work_tables(shard, &fresh, work)) != oids {
        return Err(shard.transient(
            format!("a table of {} was made, dropped or renamed meanwhile", work.store),
            "the step is tried again",
        ));
    }
    Ok(fresh)
}

async fn lock(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    tables: &[KindTable<'_>],
    lock_wait: Duration,
) -> Result<(), DriverError> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut locks: Vec<(u32, String)> = tables.iter().map(|table| lock_of(table.now)).collect();
    // In one order, so that two publishes never wait for each other in a circle.
    locks.sort();
    let sql: Vec<String> = locks.into_iter().map(|(_, sql)| sql).collect();
    let sql = format!(
        "SET LOCAL lock_timeout = {}; {}; SET LOCAL lock_timeout = {}",
        lock_wait.min(TABLE_LOCK_WAIT).as_millis(),
        sql.join("; "),
        lock_wait.as_millis(),
    );
    client.batch_execute(&sql).await.map_err(|error| {
        let code = error.code().map(|code| code.code());
        if matches!(code, Some("42P01" | "3F000")) {
            // What is gone by now would be looked for again.
            shard.forget();
        }
        let (class, _) = judge(code);
        let mut error = shard.error(&format!("publish {}: lock its tables", work.store), &error);
        if class == muster_engine::driver::ErrorClass::Transient {
            error.hint = "a definition is being changed, or was: the step is tried again".into();
        }
        error
    })
}

/// Under a deferrable unique key, two transactions that insert at once do not see each other, and a publish has no
/// check at the commit: nobody else may write meanwhile.
fn lock_of(table: &LiveTable) -> (u32, String) {
    let sql = if table.keys.iter().any(|key| key.deferrable) {
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", table.qualified())
    } else {
        format!("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE", table.qualified())
    };
    (table.oid, sql)
}

fn oids_of(tables: &[KindTable<'_>]) -> Vec<u32> {
    let mut oids: Vec<u32> = tables
        .iter()
        .flat_map(|table| {
            let partitions = table.now.partitions.iter().map(|partition| partition.oid);
            std::iter::once(table.now.oid).chain(partitions)
        })
        .collect();
    oids.sort_unstable();
    oids
}

/// Fails where restored rows do not fit, or where the definitions are not those of the plan.
pub(super) fn check(shard: &Shard, catalog: &Catalog, work: &StoreWork) -> Result<(), DriverError> {
    let compared = work
        .tables
        .iter()
        .map(|table| (&table.def, compare(shard.tables(), table, catalog.tables.get(&table.def.name))));
    let compared: Vec<_> = compared.collect();
    let obstacles: Vec<&str> =
        compared.iter().flat_map(|(_, found)| found.obstacles.iter().map(String::as_str)).collect();
    if !obstacles.is_empty() {
        let reshaped = compared.iter().find(|(_, found)| found.column_obstacles > 0);
        let migration = reshaped
            .map(|(def, _)| migrate::section_hint(def, catalog.tables.get(&def.name).map(|live| &live.def)));
        return Err(shard.permanent(
            format!("{} does not fit the live tables: {}", work.store, obstacles.join("; ")),
            format!(
                "{}bring the definitions back, or export the store with `muster export` and load it by hand",
                migration.unwrap_or_default()
            ),
        ));
    }
    if work.definitions.is_some_and(|planned| planned != definitions(catalog, &work.tables)) {
        return Err(shard.permanent(
            format!("the live definitions of {} changed after the plan was made", work.store),
            "make a new plan: it shows what the new definitions mean for the restored rows",
        ));
    }
    Ok(())
}
