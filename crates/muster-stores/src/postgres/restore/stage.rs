//! Rows beside the live data: unlogged tables that a run's stores share, one for each table definition at the
//! recovery point.
//!
//! Columns have the types of that definition, and no constraints. So the server reads every value before the publish
//! transaction and not in it, and what is read back proves the very values that will be inserted.
//!
//! # Invariants
//! - Each attempt to stage a store has a number of its own, which its rows bear. The logged row in `muster.staged` names
//!   the attempt that counts: rows of any other are as good as gone, whoever left them.
//! - That row also says how many rows there are: an unlogged table that the server has emptied after a crash is noticed.
//! - Staging tables go when the run has no claim left in the shard.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures::SinkExt;
use muster_engine::driver::{DriverError, ErrorClass, RowBatch, StoreWork};
use muster_rows::Row;
use muster_types::journal::TableDigest;
use muster_types::table::TableDef;
use muster_types::{Digest, RunId, StoreId};
use tokio::sync::mpsc;
use tokio_postgres::{Client, CopyInSink, Error};

use super::fence::{check_epoch, number};
use super::owner::column_list;
use super::shard::Shard;
use super::{copy, recreate};
use crate::postgres::schema::quote;
use crate::postgres::system::DDL_LOCK;

/// The column that rows of one attempt share; no application names a column so.
const ATTEMPT: &str = "\"muster:attempt\"";

/// Bytes handed to the connection at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes of one COPY, which is a transaction: bounds what it holds back of vacuum and of slots that begin.
const COPY_BYTES: usize = 64 * 1024 * 1024;

/// What lies in the staging tables of a store.
pub(super) struct Staged {
    /// The attempt whose rows count.
    pub(super) attempt: i64,
    /// Rows by table.
    pub(super) rows: BTreeMap<String, u64>,
}

/// The staging table of `def`, qualified.
pub(super) fn table_name(run: &RunId, def: &TableDef) -> String {
    format!("muster.{}", bare_name(run, def))
}

fn bare_name(run: &RunId, def: &TableDef) -> String {
    let digest = Digest::of(format!("{run}\n{}\n{}", def.name, def.digest()).as_bytes());
    let text = digest.to_string();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    format!("stage_{}", &hex[hex.len().saturating_sub(32)..])
}

/// The condition for rows `s` of an attempt.
pub(super) fn of_attempt(attempt: i64) -> String {
    format!("s.{ATTEMPT} = {attempt}")
}

/// Loads what `rows` delivers.
pub(super) async fn stage(
    shard: &Shard,
    work: &StoreWork,
    mut rows: mpsc::Receiver<RowBatch>,
) -> Result<(), DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error(&format!("stage {}", work.store), &error);
    for table in work.tables.iter() {
        ensure_table(&session, &work.run, &table.def).await.map_err(failed)?;
    }
    let row = session.query_one("SELECT nextval('muster.attempt')", &[]).await.map_err(failed)?;
    let mut load = Load {
        shard,
        client: &session,
        work,
        attempt: row.get(0),
        open: None,
        counts: work.tables.iter().map(|table| (table.def.name.clone(), 0)).collect(),
    };
    while let Some(batch) = rows.recv().await {
        for row in &batch.rows {
            load.row(batch.table, row).await?;
        }
    }
    load.close().await?;
    let (attempt, counts) = (load.attempt, load.counts);
    let former = record(shard, &session, work, attempt, &counts).await?;
    if let Some(former) = former {
        for table in work.tables.iter() {
            let name = table_name(&work.run, &table.def);
            let sql = format!("DELETE FROM {name} s WHERE {}", of_attempt(former));
            session.execute(&sql, &[]).await.map_err(failed)?;
        }
    }
    session.keep();
    Ok(())
}

async fn ensure_table(client: &Client, run: &RunId, def: &TableDef) -> Result<(), Error> {
    let (name, bare) = (table_name(run, def), bare_name(run, def));
    if client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&name]).await?.get(0) {
        return Ok(());
    }
    let mut columns = String::new();
    for column in def.stored_columns() {
        let staged = recreate::staged_type(client, &column.declared_type).await?;
        columns.push_str(&format!(", {} {staged}", quote(&column.name)));
    }
    let literal = |text: &str| crate::postgres::schema::literal(text);
    let sql = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({DDL_LOCK}); \
         CREATE UNLOGGED TABLE IF NOT EXISTS {name} ({ATTEMPT} bigint NOT NULL{columns}); \
         CREATE INDEX IF NOT EXISTS {bare}_attempt ON {name} ({ATTEMPT}); \
         INSERT INTO muster.staging (run, name, tbl) VALUES ({run}, {bare_text}, {table}) ON CONFLICT DO NOTHING; COMMIT",
        run = literal(run.as_str()),
        bare_text = literal(&bare),
        table = literal(&def.name),
    );
    client.batch_execute(&sql).await
}

/// Makes the attempt the one that counts, unless the run was taken over; returns the one before.
async fn record(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    attempt: i64,
    counts: &BTreeMap<String, u64>,
) -> Result<Option<i64>, DriverError> {
    let failed = |error: Error| shard.error(&format!("note what is staged of {}", work.store), &error);
    let former = read_staged(client, &work.run, &work.store).await.map_err(failed)?;
    let rows = serde_json::to_string(counts).unwrap_or_default();
    client.batch_execute("BEGIN").await.map_err(failed)?;
    check_epoch(shard, client, work).await?;
    let store = &work.store;
    client
        .execute(
            "INSERT INTO muster.staged (run, site, kind, epoch, attempt, rows) \
             VALUES ($1, $2, $3, $4, $5, $6::text::jsonb) \
             ON CONFLICT (run, site, kind) DO UPDATE SET epoch = $4, attempt = $5, rows = $6::text::jsonb",
            &[
                &work.run.as_str(),
                &store.site.as_str(),
                &store.kind.as_str(),
                &number(work.epoch),
                &attempt,
                &rows,
            ],
        )
        .await
        .map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(former.map(|former| former.attempt))
}

async fn read_staged(client: &Client, run: &RunId, store: &StoreId) -> Result<Option<Staged>, Error> {
    let found = client
        .query_opt(
            "SELECT attempt, rows::text FROM muster.staged WHERE run = $1 AND site = $2 AND kind = $3",
            &[&run.as_str(), &store.site.as_str(), &store.kind.as_str()],
        )
        .await?;
    Ok(found.map(|row| Staged {
        attempt: row.get(0),
        // What cannot be read counts as nothing staged, and is staged again.
        rows: serde_json::from_str(row.get(1)).unwrap_or_default(),
    }))
}

/// What is staged of a store; an error where nothing is.
pub(super) async fn existing(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
) -> Result<Staged, DriverError> {
    let found = read_staged(client, &work.run, &work.store).await;
    let found =
        found.map_err(|error| shard.error(&format!("find what is staged of {}", work.store), &error))?;
    let Some(staged) = found else { return Err(lost(shard, work, "nothing of it is staged")) };
    for table in work.tables.iter() {
        let name = table_name(&work.run, &table.def);
        let there = client
            .query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&name])
            .await
            .map_err(|error| shard.error("look for staging tables", &error))?;
        if !there.get::<_, bool>(0) {
            return Err(lost(shard, work, &format!("staging table {name} is gone")));
        }
    }
    Ok(staged)
}

/// What was staged is not there any more.
pub(super) fn lost(shard: &Shard, work: &StoreWork, what: &str) -> DriverError {
    DriverError::new(
        ErrorClass::StagingLost,
        format!("shard `{}`: {}: {what}", shard.name(), work.store),
        "the server was restarted after a crash, perhaps, which empties staging tables: the store is staged and \
         verified again",
    )
}

/// Rows and digest of each staged table.
pub(super) async fn digest_staged(
    shard: &Shard,
    work: &StoreWork,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    let session = shard.session().await?;
    let staged = existing(shard, &session, work).await?;
    let doing = format!("read back what is staged of {}", work.store);
    let mut digests = BTreeMap::new();
    for table in work.tables.iter() {
        let def = &table.def;
        let columns = column_list("s", def.stored_columns().map(|column| column.name.as_str()));
        let name = table_name(&work.run, def);
        let select = format!("SELECT {columns} FROM {name} s WHERE {}", of_attempt(staged.attempt));
        let found = copy::digest(shard, &session, &doing, &def.name, &select).await?;
        let noted = staged.rows.get(&def.name).copied().unwrap_or(0);
        if found.rows < noted {
            let what = format!("{} of {noted} staged rows of table `{}` are there", found.rows, def.name);
            return Err(lost(shard, work, &what));
        }
        digests.insert(def.name.clone(), found);
    }
    session.keep();
    Ok(digests)
}

/// Forgets what is staged of stores, and drops the staging tables of a run that has no claim left.
pub(super) async fn remove(
    shard: &Shard,
    client: &Client,
    run: &RunId,
    stores: &[StoreId],
) -> Result<(), DriverError> {
    let failed = |error: Error| shard.error(&format!("remove the staging of run {run}"), &error);
    let (sites, kinds): (Vec<&str>, Vec<&str>) =
        stores.iter().map(|store| (store.site.as_str(), store.kind.as_str())).unzip();
    client
        .execute(
            "DELETE FROM muster.staged g USING unnest($1::text[], $2::text[]) s(site, kind) \
             WHERE g.site = s.site AND g.kind = s.kind AND g.run = $3",
            &[&sites, &kinds, &run.as_str()],
        )
        .await
        .map_err(failed)?;
    let tables = client
        .query(
            "SELECT name FROM muster.staging WHERE run = $1 \
             AND NOT EXISTS (SELECT FROM muster.claim WHERE run = $1) ORDER BY name",
            &[&run.as_str()],
        )
        .await
        .map_err(failed)?;
    for row in tables {
        let name: String = row.get(0);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '10s'; SELECT pg_advisory_xact_lock({DDL_LOCK}); \
             DROP TABLE IF EXISTS muster.{}; DELETE FROM muster.staging WHERE name = {}; COMMIT",
            quote(&name),
            crate::postgres::schema::literal(&name),
        );
        client.batch_execute(&sql).await.map_err(failed)?;
    }
    Ok(())
}

/// One attempt under way.
struct Load<'a> {
    shard: &'a Shard,
    client: &'a Client,
    work: &'a StoreWork,
    attempt: i64,
    open: Option<OpenCopy>,
    counts: BTreeMap<String, u64>,
}

struct OpenCopy {
    table: usize,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    chunk: Vec<u8>,
    sent_bytes: usize,
}

impl Load<'_> {
    async fn row(&mut self, table: usize, row: &Row) -> Result<(), DriverError> {
        if self.open.as_ref().is_some_and(|open| open.table != table || open.sent_bytes > COPY_BYTES) {
            self.close().await?;
        }
        let Some(captured) = self.work.tables.get(table) else {
            return Err(self.misfit(&format!("rows of table number {table}, which the plan does not have")));
        };
        let (name, wanted) = (&captured.def.name, captured.def.stored_columns().count());
        if row.len() != wanted {
            let what = format!("a row of table `{name}` has {} fields instead of {wanted}", row.len());
            return Err(self.misfit(&what));
        }
        let prefix = if wanted == 0 { format!("{}", self.attempt) } else { format!("{}\t", self.attempt) };
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(table).await?,
        };
        copy::encode(&prefix, row, &mut open.chunk).map_err(|(field, class)| {
            self.misfit(&format!(
                "field {field} of a row of table `{name}` is {class:?}, no value of PostgreSQL"
            ))
        })?;
        if open.chunk.len() >= CHUNK_BYTES {
            self.send(&mut open).await?;
        }
        self.open = Some(open);
        if let Some(count) = self.counts.get_mut(name) {
            *count += 1;
        }
        Ok(())
    }

    async fn begin(&self, table: usize) -> Result<OpenCopy, DriverError> {
        let sql = format!("COPY {} FROM STDIN", table_name(&self.work.run, &self.work.tables[table].def));
        let sink = self.client.copy_in(&sql).await.map_err(|error| self.failed(table, &error))?;
        Ok(OpenCopy { table, sink: Box::pin(sink), chunk: Vec::with_capacity(CHUNK_BYTES), sent_bytes: 0 })
    }

    async fn send(&self, open: &mut OpenCopy) -> Result<(), DriverError> {
        let chunk = std::mem::replace(&mut open.chunk, Vec::with_capacity(CHUNK_BYTES));
        open.sent_bytes += chunk.len();
        let sent = open.sink.send(Bytes::from(chunk)).await;
        if let Err(error) = sent {
            // The connection knows that the server gave up; why is in its answer.
            let reason = open.sink.as_mut().finish().await.err().unwrap_or(error);
            return Err(self.failed(open.table, &reason));
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), DriverError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        self.send(&mut open).await?;
        open.sink.as_mut().finish().await.map(drop).map_err(|error| self.failed(open.table, &error))
    }

    fn failed(&self, table: usize, error: &Error) -> DriverError {
        let name = &self.work.tables[table].def.name;
        self.shard.error(&format!("stage {}: load rows of table `{name}`", self.work.store), error)
    }

    fn misfit(&self, what: &str) -> DriverError {
        self.shard.permanent(
            format!("staging {}: {what}", self.work.store),
            "the repository's rows do not fit their own definition: run `muster check` on it",
        )
    }
}
