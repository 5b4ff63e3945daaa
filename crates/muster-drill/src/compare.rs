//! What came back, beside what the repository holds: every row of every table of every store.
//!
//! The repository is read anew, on the way by which people look at a site, and not by what the run read or noted. Of the made
//! shards, rows are read as they lie there.

use std::collections::BTreeMap;

use muster_engine::driver::{RowBatch, StoreProbe};
use muster_inspect::{InspectError, SiteAt, StoreAt};
use muster_repo::Repository;
use muster_rows::RowsDigest;
use muster_stores::sandbox::SandboxDrivers;
use muster_types::catalog::Catalog;
use muster_types::journal::TableDigest;
use muster_types::plan::{SitePlan, StorePlan};
use muster_types::request::Placement;
use muster_types::topology::Topology;
use tokio::sync::mpsc;

use crate::error::DrillError;

/// Batches between the driver and the digest.
const BATCHES_AHEAD: usize = 4;

/// Of one site: by place in its stores, the rows compared, or why they differ.
pub type Compared = Vec<Result<u64, String>>;

/// What everything is compared with.
#[derive(Clone, Copy)]
pub struct Truth<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The live topology.
    pub topology: &'a Topology,
    /// Read after the run.
    pub catalog: &'a Catalog,
    /// What of the sites was asked for.
    pub placement: &'a Placement,
}

/// Compares a site.
///
/// # Errors
/// What cannot be read; a difference is in the answer.
pub async fn compare(
    truth: Truth<'_>,
    drivers: &SandboxDrivers,
    site: &SitePlan,
) -> Result<Compared, DrillError> {
    let found = SiteAt::find(truth.topology, truth.catalog, &site.site, site.target)?;
    let wanted: Vec<&StoreAt> = found
        .stores
        .iter()
        .filter(|store| truth.placement.wants(&store.store.source, &store.store.store.kind))
        .collect();
    let mut compared = Vec::with_capacity(site.stores.len());
    for planned in &site.stores {
        compared.push(match wanted.iter().find(|store| store.store.store.kind == planned.kind) {
            Some(store) => one(truth, drivers, store, planned).await?,
            None => Err("the repository holds no such store at that moment".to_owned()),
        });
    }
    let there = |store: &&&StoreAt| site.stores.iter().any(|planned| planned.kind == store.store.store.kind);
    let missing = wanted.iter().filter(|store| !there(store));
    compared.extend(missing.map(|store| Err(format!("{} was not restored", store.store.store))));
    Ok(compared)
}

async fn one(
    truth: Truth<'_>,
    drivers: &SandboxDrivers,
    store: &StoreAt,
    planned: &StorePlan,
) -> Result<Result<u64, String>, DrillError> {
    let Some(driver) = drivers.get(&planned.shard) else {
        return Ok(Err(format!("shard `{}` is not the drill's", planned.shard)));
    };
    let probe = StoreProbe { store: store.store.store.clone(), tables: store.store.tables.clone() };
    let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
    let (read, came_back) = tokio::join!(driver.live_rows(&probe, sender), digests(&probe, batches));
    read?;
    let mut rows = 0;
    for table in store.tables() {
        let name = &table.def.name;
        let held = match store.rows(truth.repository, name, drop).await {
            Ok(held) => TableDigest { rows: held.rows, digest: held.digest },
            Err(InspectError::Repository(error)) if error.is_harm() => {
                return Ok(Err(format!("table `{name}` cannot be read from the repository: {error}")));
            }
            Err(error) => return Err(error.into()),
        };
        let nothing = TableDigest { rows: 0, digest: RowsDigest::new().finish() };
        let found = came_back.get(name).copied().unwrap_or(nothing);
        if held != found {
            return Ok(Err(format!(
                "table `{name}` has {} rows (digest {}) in the sandbox, and the repository holds {} (digest {})",
                found.rows,
                found.digest.short(),
                held.rows,
                held.digest.short()
            )));
        }
        rows += held.rows;
    }
    Ok(Ok(rows))
}

async fn digests(probe: &StoreProbe, mut batches: mpsc::Receiver<RowBatch>) -> BTreeMap<String, TableDigest> {
    let mut found: BTreeMap<&str, (u64, RowsDigest)> = BTreeMap::new();
    while let Some(batch) = batches.recv().await {
        let Some(table) = probe.tables.get(batch.table) else { continue };
        let name = table.def.name.as_str();
        let (rows, digest) = found.entry(name).or_default();
        *rows += batch.rows.len() as u64;
        batch.rows.iter().for_each(|row| digest.add(name, row));
    }
    let finish = |(name, (rows, digest)): (&str, (u64, RowsDigest))| {
        (name.to_owned(), TableDigest { rows, digest: digest.finish() })
    };
    found.into_iter().map(finish).collect()
}
