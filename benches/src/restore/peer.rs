//! The peer: prepared INSERTs of rows in memory, one transaction a store, synced at each commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use muster_repo::{RangeLimits, RangeReader, rows};
use muster_rows::Row;
use muster_stores::sqlite::schema::quote;
use muster_stores::sqlite::value::bind;
use muster_types::ShardName;
use muster_types::plan::{Plan, StorePlan};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, Value};
use rusqlite::{Connection, params_from_iter};

use crate::measure::{Lap, Stopwatch};
use crate::reads::wanted;
use crate::world::{Keeping, World};

/// Memory of one fold.
const FOLD_BYTES: u64 = 32 * 1024 * 1024;

/// How many threads insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    One,
    PerShard,
}

/// One store's rows, as values.
struct Store {
    /// The INSERT of each table and its rows, parents first.
    tables: Vec<(String, Vec<Vec<Value>>)>,
    rows: u64,
}

/// All rows of a plan, by shard.
pub(crate) struct Payload(BTreeMap<ShardName, Vec<Store>>);

impl Payload {
    /// Reads what the plan restores.
    pub(crate) async fn read(world: &World) -> Result<Self> {
        let plan = &world.plan;
        let objects = Arc::clone(world.repository.objects());
        let reader = RangeReader::new(objects, wanted(plan), RangeLimits::default());
        let mut shards: BTreeMap<ShardName, Vec<Store>> = BTreeMap::new();
        for store in plan.sites.iter().flat_map(|site| &site.stores) {
            shards.entry(store.shard.clone()).or_default().push(read_store(&reader, plan, store).await?);
        }
        Ok(Self(shards))
    }

    pub(crate) fn rows(&self) -> u64 {
        self.0.values().flatten().map(|store| store.rows).sum()
    }

    pub(crate) fn stores(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Inserts everything into the files at `paths`.
    pub(crate) fn insert(
        &self,
        paths: &BTreeMap<ShardName, PathBuf>,
        keeping: Keeping,
        threads: Threads,
    ) -> Result<Lap> {
        let watch = Stopwatch::start()?;
        let inserted: u64 = match threads {
            Threads::One => self
                .0
                .iter()
                .map(|(shard, stores)| fill(&paths[shard], keeping, stores))
                .sum::<Result<u64>>()?,
            Threads::PerShard => std::thread::scope(|scope| {
                let mut threads = Vec::new();
                for (shard, stores) in &self.0 {
                    let path = &paths[shard];
                    threads.push(scope.spawn(move || fill(path, keeping, stores)));
                }
                let ended =
                    threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?);
                ended.sum::<Result<u64>>()
            })?,
        };
        let lap = watch.lap()?;
        ensure!(inserted == self.rows(), "{inserted} rows were inserted instead of {}", self.rows());
        Ok(lap)
    }
}

async fn read_store(reader: &RangeReader, plan: &Plan, store: &StorePlan) -> Result<Store> {
    let (mut tables, mut total) = (Vec::new(), 0);
    for input in &store.tables {
        let table = &plan.tables[input.table as usize];
        let columns: Vec<String> = table.def.stored_columns().map(|column| quote(&column.name)).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES ({marks})", quote(&table.def.name), columns.join(", "));
        let mut stream = rows::open(reader, table, input, &plan.objects, FOLD_BYTES);
        let mut values = Vec::new();
        while let Some(batch) = stream.next().await {
            values.extend(
                batch.iter().map(row_values).collect::<Option<Vec<_>>>().context("a field is no value")?,
            );
        }
        total += stream.finish().await?.rows;
        tables.push((sql, values));
    }
    Ok(Store { tables, rows: total })
}

fn row_values(row: &Row) -> Option<Vec<Value>> {
    let value = |bound: ToSqlOutput<'_>| match bound {
        ToSqlOutput::Owned(value) => Some(value),
        ToSqlOutput::Borrowed(value) => Value::try_from(value).ok(),
        _ => None,
    };
    row.fields().map(|field| value(bind(field)?)).collect()
}

fn fill(path: &Path, keeping: Keeping, stores: &[Store]) -> Result<u64> {
    let conn = Connection::open(path)?;
    conn.execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")?;
    // A bulk load runs without the application's triggers; the log needs capture's.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, keeping == Keeping::Captured)?;
    conn.set_prepared_statement_cache_capacity(128);
    let mut inserted = 0;
    for store in stores {
        conn.execute_batch("BEGIN IMMEDIATE; PRAGMA defer_foreign_keys=ON;")?;
        for (sql, rows) in &store.tables {
            let mut insert = conn.prepare_cached(sql)?;
            for row in rows {
                inserted += insert.execute(params_from_iter(row))? as u64;
            }
        }
        conn.execute_batch("COMMIT")?;
    }
    Ok(inserted)
}
