//! Loading and reading back the stores of a group.

use std::collections::BTreeMap;

use muster_engine::driver::{DriverError, GroupRows, StoreWork};
use muster_rows::RowsDigest;
use muster_types::RunId;
use muster_types::journal::TableDigest;
use muster_types::table::CapturedTable;
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
    while let Some(delivered) = load.next(rows).await? {
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
    let mut digests: Digests =
        staged.iter().map(|staged| staged.as_ref().map(|_| BTreeMap::new()).map_err(Clone::clone)).collect();
    let doing = format!("read back what is staged of {}", described(works));
    let mut queries = copy::Queries::send(shard, client, &doing, selects(works, &staged)).await?;
    for table in tables(works, &staged) {
        let def = &table.def;
        let mut found = queries.next().await?.digest_by(&def.name).await?;
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

/// Whether what is staged of each are the very rows that this process has sent; none where the stores do not fit together.
pub(in super::super) async fn is_as_sent(
    shard: &Shard,
    works: &[StoreWork],
) -> Option<Vec<Result<bool, DriverError>>> {
    if !fit_together(works.iter()) {
        return None;
    }
    let read = async {
        let session = shard.session().await?;
        let found = compare_lines(shard, &session, works).await?;
        session.keep();
        Ok(found)
    };
    Some(read.await.unwrap_or_else(|error: DriverError| all(works.len(), &error)))
}

async fn compare_lines(
    shard: &Shard,
    client: &Client,
    works: &[StoreWork],
) -> Result<Vec<Result<bool, DriverError>>, DriverError> {
    let staged = existing_all(shard, client, works.iter()).await?;
    let mut same: Vec<Result<bool, DriverError>> =
        staged.iter().map(|staged| staged.as_ref().map(|_| true).map_err(Clone::clone)).collect();
    let doing = format!("read back what is staged of {}", described(works));
    let mut queries = copy::Queries::send(shard, client, &doing, selects(works, &staged)).await?;
    for table in tables(works, &staged) {
        let mut found = queries.next().await?.lines_by().await?;
        for ((work, staged), same) in works.iter().zip(&staged).zip(&mut same) {
            let (Ok(staged), Ok(same)) = (staged, same) else { continue };
            let found = found.remove(&staged.attempt.to_string()).unwrap_or_default();
            let name = table_name(&work.run, &table.def);
            *same &= shard.sent.of(&work.store, staged.attempt, &name) == Some(found);
        }
    }
    Ok(same)
}

/// The tables to read, if anything is staged; those of one store are those of all.
fn tables<'w>(
    works: &'w [StoreWork],
    staged: &[Result<Staged, DriverError>],
) -> impl Iterator<Item = &'w CapturedTable> + use<'w> {
    let some = works.first().filter(|_| staged.iter().any(Result::is_ok));
    some.into_iter().flat_map(|first| first.tables.iter())
}

/// The queries of the staged rows by table, with their attempts.
fn selects(works: &[StoreWork], staged: &[Result<Staged, DriverError>]) -> Vec<String> {
    let attempts: Vec<i64> = staged.iter().flatten().map(|staged| staged.attempt).collect();
    let run = works.first().map(|first| &first.run);
    let select = |(table, run): (&CapturedTable, &RunId)| {
        let columns = column_list("s", table.def.stored_columns().map(|column| column.name.as_str()));
        let name = table_name(run, &table.def);
        format!("SELECT s.{ATTEMPT}, {columns} FROM {name} s WHERE {}", of_attempts(&attempts))
    };
    tables(works, staged).filter_map(|table| Some((table, run?))).map(select).collect()
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
