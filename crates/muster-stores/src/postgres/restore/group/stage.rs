//! Loading and reading back the stores of a group.

use std::collections::BTreeMap;

use muster_engine::driver::{DriverError, GroupRows, StoreWork};
use muster_rows::RowsDigest;
use muster_types::journal::TableDigest;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::super::copy;
use super::super::owner::column_list;
use super::super::shard::Shard;
use super::super::stage::{ATTEMPT, Load, Staged, described, existing_all, lost, of_attempts, table_name};
use super::{all, fit_together};

/// Digests by table of each store.
type Digests = Vec<Result<BTreeMap<String, TableDigest>, DriverError>>;

/// Loads what `rows` delivers; none where the stores do not fit together, and nothing was taken of `rows`.
pub(in super::super) async fn stage(
    shard: &Shard,
    works: &[StoreWork],
    rows: &mut mpsc::Receiver<GroupRows>,
) -> Option<Vec<Result<(), DriverError>>> {
    if !fit_together(works.iter()) {
        return None;
    }
    Some(match load(shard, works, rows).await {
        Ok(()) => works.iter().map(|_| Ok(())).collect(),
        Err(error) => all(works.len(), &error),
    })
}

/// Rows of one table that follow each other go through one COPY.
async fn load(
    shard: &Shard,
    works: &[StoreWork],
    rows: &mut mpsc::Receiver<GroupRows>,
) -> Result<(), DriverError> {
    let session = shard.session().await?;
    let mut load = Load::begin(shard, &session, works).await?;
    let mut withdrawn = vec![false; works.len()];
    while let Some(delivered) = rows.recv().await {
        match delivered {
            GroupRows::Batch { store, batch } => {
                for row in &batch.rows {
                    load.row(store, batch.table, row).await?;
                }
            }
            // Rows of an attempt that does not count are as good as gone.
            GroupRows::Withdrawn { store } => {
                withdrawn.get_mut(store).into_iter().for_each(|withdrawn| *withdrawn = true);
            }
        }
    }
    let whole: Vec<usize> = (0..works.len()).filter(|&store| !withdrawn[store]).collect();
    load.end(&whole).await?;
    session.keep();
    Ok(())
}

/// Reads the staged rows back; none where the stores do not fit together.
pub(in super::super) async fn digest_staged(shard: &Shard, works: &[StoreWork]) -> Option<Digests> {
    if !fit_together(works.iter()) {
        return None;
    }
    let read = async {
        let session = shard.session().await?;
        let found = read_back(shard, &session, works).await?;
        session.keep();
        Ok(found)
    };
    Some(read.await.unwrap_or_else(|error: DriverError| all(works.len(), &error)))
}

async fn read_back(shard: &Shard, client: &Client, works: &[StoreWork]) -> Result<Digests, DriverError> {
    let staged = existing_all(shard, client, works.iter()).await?;
    let attempts: Vec<i64> = staged.iter().flatten().map(|staged| staged.attempt).collect();
    let mut digests: Digests =
        staged.iter().map(|staged| staged.as_ref().map(|_| BTreeMap::new()).map_err(Clone::clone)).collect();
    let (Some(first), false) = (works.first(), attempts.is_empty()) else { return Ok(digests) };
    let doing = format!("read back what is staged of {}", described(works));
    for table in first.tables.iter() {
        let def = &table.def;
        let columns = column_list("s", def.stored_columns().map(|column| column.name.as_str()));
        let name = table_name(&first.run, def);
        let select = format!("SELECT s.{ATTEMPT}, {columns} FROM {name} s WHERE {}", of_attempts(&attempts));
        let mut found = copy::digest_by(shard, client, &doing, &def.name, &select).await?;
        for ((work, staged), digests) in works.iter().zip(&staged).zip(&mut digests) {
            let (Ok(staged), Ok(of_store)) = (staged, &mut *digests) else { continue };
            let digest = found.remove(&staged.attempt.to_string()).unwrap_or_else(nothing);
            match too_few(shard, work, &def.name, staged, digest.rows) {
                Some(error) => *digests = Err(error),
                None => {
                    of_store.insert(def.name.clone(), digest);
                }
            }
        }
    }
    Ok(digests)
}

fn too_few(shard: &Shard, work: &StoreWork, table: &str, staged: &Staged, rows: u64) -> Option<DriverError> {
    let noted = staged.rows.get(table).copied().unwrap_or(0);
    (rows < noted)
        .then(|| lost(shard, work, &format!("{rows} of {noted} staged rows of table `{table}` are there")))
}

/// The digest of no rows.
pub(super) fn nothing() -> TableDigest {
    TableDigest { rows: 0, digest: RowsDigest::new().finish() }
}
