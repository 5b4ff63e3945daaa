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
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use muster_engine::driver::{DriverError, ErrorClass, RowBatch, StoreWork};
use muster_rows::Row;
use muster_types::journal::TableDigest;
use muster_types::table::{CapturedTable, TableDef};
use muster_types::{Digest, Epoch, RunId, SiteId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, CopyInSink, Error};

use super::fence::{check_epoch, number};
use super::lines::LinesSum;
use super::owner::column_list;
use super::shard::Shard;
use super::{copy, recreate};
use crate::postgres::schema::{literal, quote};
use crate::postgres::system::DDL_LOCK;

/// The column that rows of one attempt share; no application names a column so.
pub(super) const ATTEMPT: &str = "\"muster:attempt\"";

/// Bytes handed to the connection at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes of one COPY, which is a transaction: bounds what it holds back of vacuum and of slots that begin.
const COPY_BYTES: usize = 64 * 1024 * 1024;

/// Longest that one COPY is open, for rows that come slowly: of a transaction that holds back vacuum, and slots that begin,
/// nobody notices so much.
const COPY_TIME: Duration = Duration::from_secs(10);

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
    of_attempts(&[attempt])
}

/// The condition for rows `s` of any of these attempts.
pub(super) fn of_attempts(attempts: &[i64]) -> String {
    match attempts {
        [one] => format!("s.{ATTEMPT} = {one}"),
        many => format!("s.{ATTEMPT} = ANY ('{{{}}}'::bigint[])", numbers(many)),
    }
}

fn numbers(of: &[i64]) -> String {
    of.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The staged rows of stores that are published together.
pub(super) struct StagedRows<'a> {
    pub(super) run: &'a RunId,
    pub(super) sites: &'a [&'a SiteId],
    /// By site.
    pub(super) attempts: &'a [i64],
    /// The stores, in words.
    pub(super) of: &'a str,
}

/// Loads what `rows` delivers.
pub(super) async fn stage(
    shard: &Shard,
    work: &StoreWork,
    mut rows: mpsc::Receiver<RowBatch>,
) -> Result<(), DriverError> {
    let session = shard.session().await?;
    let mut load = Load::begin(shard, &session, std::slice::from_ref(work)).await?;
    while let Some(batch) = load.next(&mut rows).await? {
        for row in &batch.rows {
            load.row(0, batch.table, row).await?;
        }
    }
    load.end(&[0]).await?;
    session.keep();
    Ok(())
}

/// Creates the staging tables that are not there yet; those that were are known until some are removed.
async fn ensure_tables(
    shard: &Shard,
    client: &Client,
    run: &RunId,
    tables: &[CapturedTable],
) -> Result<Vec<String>, Error> {
    let names: Vec<String> = tables.iter().map(|table| table_name(run, &table.def)).collect();
    if shard.knows_staging(&names) {
        return Ok(names);
    }
    let there = client
        .query("SELECT to_regclass(name) IS NOT NULL FROM unnest($1::text[]) WITH ORDINALITY n(name, nth) ORDER BY nth", &[&names])
        .await?;
    for (table, there) in tables.iter().zip(there) {
        if !there.get::<_, bool>(0) {
            create_table(client, run, &table.def).await?;
        }
    }
    shard.learn_staging(&names);
    Ok(names)
}

async fn create_table(client: &Client, run: &RunId, def: &TableDef) -> Result<(), Error> {
    let (name, bare) = (table_name(run, def), bare_name(run, def));
    let mut columns = String::new();
    for column in def.stored_columns() {
        let staged = recreate::staged_type(client, &column.declared_type).await?;
        columns.push_str(&format!(", {} {staged}", quote(&column.name)));
    }
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

/// What is staged of stores of one run, in their order.
async fn read_staged<'w>(
    client: &Client,
    works: impl Iterator<Item = &'w StoreWork> + Clone,
) -> Result<Vec<Option<Staged>>, Error> {
    let sites: Vec<&str> = works.clone().map(|work| work.store.site.as_str()).collect();
    let kinds: Vec<&str> = works.clone().map(|work| work.store.kind.as_str()).collect();
    let run = works.clone().next().map_or("", |work| work.run.as_str());
    let rows = client
        .query_typed(
            "SELECT g.attempt, g.rows::text FROM unnest($2::text[], $3::text[]) WITH ORDINALITY s(site, kind, nth) \
             LEFT JOIN muster.staged g ON g.run = $1 AND g.site = s.site AND g.kind = s.kind ORDER BY nth",
            &[(&run, Type::TEXT), (&sites, Type::TEXT_ARRAY), (&kinds, Type::TEXT_ARRAY)],
        )
        .await?;
    let staged = |row: &tokio_postgres::Row| {
        Some(Staged {
            attempt: row.get::<_, Option<i64>>(0)?,
            // What cannot be read counts as nothing staged, and is staged again.
            rows: serde_json::from_str(row.get(1)).unwrap_or_default(),
        })
    };
    Ok(rows.iter().map(staged).collect())
}

/// What is staged of a store; an error where nothing is.
pub(super) async fn existing(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
) -> Result<Staged, DriverError> {
    let found = existing_all(shard, client, std::iter::once(work)).await?.pop();
    found.unwrap_or_else(|| Err(lost(shard, work, "nothing of it is staged")))
}

/// What is staged of stores that have the tables of the first of them, in their order; an error for each of which nothing is.
pub(super) async fn existing_all<'w>(
    shard: &Shard,
    client: &Client,
    works: impl Iterator<Item = &'w StoreWork> + Clone,
) -> Result<Vec<Result<Staged, DriverError>>, DriverError> {
    let Some(first) = works.clone().next() else { return Ok(Vec::new()) };
    let failed = |error: Error| shard.error(&format!("find what is staged of {}", first.store), &error);
    let names: Vec<String> = first.tables.iter().map(|table| table_name(&first.run, &table.def)).collect();
    let names: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let gone = client.query_typed_opt(
        "SELECT name FROM unnest($1::text[]) name WHERE to_regclass(name) IS NULL LIMIT 1",
        &names,
    );
    let (found, gone) = tokio::try_join!(read_staged(client, works.clone()), gone).map_err(failed)?;
    let judge = |(work, staged): (&StoreWork, Option<Staged>)| match (staged, &gone) {
        (Some(staged), None) => Ok(staged),
        (None, _) => Err(lost(shard, work, "nothing of it is staged")),
        (_, Some(gone)) => {
            Err(lost(shard, work, &format!("staging table {} is gone", gone.get::<_, &str>(0))))
        }
    };
    Ok(works.zip(found).map(judge).collect())
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

/// Whether what is staged are the very rows that this process has sent; where it says no, they may be.
pub(super) async fn is_as_sent(shard: &Shard, work: &StoreWork) -> Result<bool, DriverError> {
    let session = shard.session().await?;
    let staged = existing(shard, &session, work).await?;
    let sent: Option<Vec<LinesSum>> = work
        .tables
        .iter()
        .map(|table| shard.sent.of(&work.store, staged.attempt, &table_name(&work.run, &table.def)))
        .collect();
    let Some(sent) = sent else {
        session.keep();
        return Ok(false);
    };
    let (doing, selects) = read_back(work, &staged);
    let mut queries = copy::Queries::send(shard, &session, &doing, selects).await?;
    let mut same = true;
    for sent in sent {
        same &= queries.next().await?.lines().await? == sent;
    }
    drop(queries);
    session.keep();
    Ok(same)
}

/// Rows and digest of each staged table.
pub(super) async fn digest_staged(
    shard: &Shard,
    work: &StoreWork,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    let session = shard.session().await?;
    let staged = existing(shard, &session, work).await?;
    let (doing, selects) = read_back(work, &staged);
    let mut queries = copy::Queries::send(shard, &session, &doing, selects).await?;
    let mut digests = BTreeMap::new();
    for table in work.tables.iter() {
        let def = &table.def;
        let found = queries.next().await?.digest(&def.name).await?;
        let noted = staged.rows.get(&def.name).copied().unwrap_or(0);
        if found.rows < noted {
            let what = format!("{} of {noted} staged rows of table `{}` are there", found.rows, def.name);
            return Err(lost(shard, work, &what));
        }
        digests.insert(def.name.clone(), found);
    }
    drop(queries);
    session.keep();
    Ok(digests)
}

/// What is done, and the queries of a store's staged rows by table.
fn read_back(work: &StoreWork, staged: &Staged) -> (String, Vec<String>) {
    let select = |table: &CapturedTable| {
        let columns = column_list("s", table.def.stored_columns().map(|column| column.name.as_str()));
        let name = table_name(&work.run, &table.def);
        format!("SELECT {columns} FROM {name} s WHERE {}", of_attempt(staged.attempt))
    };
    (format!("read back what is staged of {}", work.store), work.tables.iter().map(select).collect())
}

/// Drops the staging tables of a run that has no claim left, unless another engine has taken it over.
pub(super) async fn drop_unclaimed(
    shard: &Shard,
    client: &Client,
    run: &RunId,
    epoch: Epoch,
) -> Result<(), DriverError> {
    let failed = |error: Error| shard.error(&format!("remove the staging of run {run}"), &error);
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
        drop_table(client, &name, run, epoch).await.map_err(failed)?;
        shard.forget_staging();
    }
    Ok(())
}

async fn drop_table(client: &Client, name: &str, run: &RunId, epoch: Epoch) -> Result<(), Error> {
    let (table, name_text, run) = (quote(name), literal(name), literal(run.as_str()));
    // Nobody raises the epoch while its row is held, and only who has raised it claims and stages.
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '10s'; SELECT pg_advisory_xact_lock({DDL_LOCK}); \
         DO $muster$ BEGIN \
         PERFORM FROM muster.epoch WHERE run = {run} FOR SHARE; \
         IF NOT EXISTS (SELECT FROM muster.epoch WHERE run = {run} AND epoch > {epoch}) \
            AND NOT EXISTS (SELECT FROM muster.claim WHERE run = {run}) THEN \
         DROP TABLE IF EXISTS muster.{table}; DELETE FROM muster.staging WHERE name = {name_text}; \
         END IF; END $muster$; COMMIT",
        epoch = epoch.0,
    );
    match client.batch_execute(&sql).await {
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            client.batch_execute("ROLLBACK").await?;
            end_holders(client, name).await?;
            client.batch_execute(&sql).await
        }
        dropped => dropped,
    }
}

/// Ends the sessions of Muster that hold a staging table which no claim needs any more: they are of an engine that froze or
/// lost its network in the middle of a COPY, which no timeout of the server ends.
async fn end_holders(client: &Client, name: &str) -> Result<(), Error> {
    let ended = client
        .execute_typed(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
             WHERE l.relation = to_regclass('muster.' || quote_ident($1)) AND l.granted \
             AND a.datname = current_database() AND a.usename = current_user \
             AND a.application_name = 'muster' AND l.pid <> pg_backend_pid()",
            &[(&name, Type::TEXT)],
        )
        .await?;
    tracing::warn!(table = name, ended, "ended sessions of an earlier engine that held a staging table");
    Ok(())
}

/// The stores of a group, for messages: the first by name.
pub(super) fn described(works: &[StoreWork]) -> String {
    match works {
        [] => "no store".to_owned(),
        [one] => one.store.to_string(),
        [first, others @ ..] => format!("{} and {} more", first.store, others.len()),
    }
}

/// Attempts at stores of one run and with the same tables.
pub(super) struct Load<'a> {
    shard: &'a Shard,
    client: &'a Client,
    works: &'a [StoreWork],
    /// Staging tables.
    names: Vec<String>,
    /// By store.
    prefixes: Vec<Prefix>,
    open: Option<OpenCopy>,
}

/// What each row of a store begins with.
struct Prefix {
    attempt: i64,
    text: String,
    /// What was sent, by number of the table.
    sums: Vec<LinesSum>,
}

struct OpenCopy {
    table: usize,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    chunk: Vec<u8>,
    sent_bytes: usize,
    /// When it is to be closed, whatever is still to come.
    until: Instant,
}

impl<'a> Load<'a> {
    /// Begins with staging tables and numbers of its attempts.
    pub(super) async fn begin(
        shard: &'a Shard,
        client: &'a Client,
        works: &'a [StoreWork],
    ) -> Result<Self, DriverError> {
        let of = described(works);
        let failed = |error: Error| shard.error(&format!("stage {of}"), &error);
        let (run, tables) = match works {
            [first, ..] => (&first.run, &first.tables),
            [] => return Err(shard.permanent("a group without stores was to be staged", "report this")),
        };
        let names = ensure_tables(shard, client, run, tables).await.map_err(failed)?;
        let count = i64::try_from(works.len()).unwrap_or(i64::MAX);
        let rows = client
            .query_typed(
                "SELECT nextval('muster.attempt') FROM generate_series(1, $1::bigint)",
                &[(&count, Type::INT8)],
            )
            .await
            .map_err(failed)?;
        let prefix = |row: &tokio_postgres::Row| {
            let attempt: i64 = row.get(0);
            Prefix { attempt, text: format!("{attempt}\t"), sums: vec![LinesSum::default(); tables.len()] }
        };
        Ok(Self { shard, client, works, names, prefixes: rows.iter().map(prefix).collect(), open: None })
    }

    /// Makes the attempts at these stores those that count, unless the run was taken over, and removes what earlier ones
    /// left.
    pub(super) async fn end(mut self, stores: &[usize]) -> Result<(), DriverError> {
        self.close().await?;
        let Some(first) = self.works.first().filter(|_| !stores.is_empty()) else { return Ok(()) };
        let (shard, client, of) = (self.shard, self.client, described(self.works));
        let failed = |error: Error| shard.error(&format!("note what is staged of {of}"), &error);
        let works = stores.iter().map(|&store| &self.works[store]);
        // What an unlogged table holds goes with a crash of the server as well as a note that is not on disk yet.
        let begin =
            async { client.batch_execute("BEGIN; SET LOCAL synchronous_commit = off").await.map_err(failed) };
        let former = async { read_staged(client, works.clone()).await.map_err(failed) };
        let (former, (), ()) = tokio::try_join!(former, begin, check_epoch(shard, client, first))?;
        let sites: Vec<&str> = works.clone().map(|work| work.store.site.as_str()).collect();
        let kinds: Vec<&str> = works.map(|work| work.store.kind.as_str()).collect();
        let attempts: Vec<i64> = stores.iter().map(|&store| self.prefixes[store].attempt).collect();
        let rows: Vec<String> = stores.iter().map(|&store| self.counted(store)).collect();
        client
            .execute_typed(
                "INSERT INTO muster.staged AS g (run, site, kind, epoch, attempt, rows) \
                 SELECT $1, site, kind, $2, attempt, rows::jsonb \
                 FROM unnest($3::text[], $4::text[], $5::bigint[], $6::text[]) s(site, kind, attempt, rows) \
                 ON CONFLICT (run, site, kind) DO UPDATE SET epoch = excluded.epoch, attempt = excluded.attempt, \
                 rows = excluded.rows",
                &[
                    (&first.run.as_str(), Type::TEXT),
                    (&number(first.epoch), Type::INT8),
                    (&sites, Type::TEXT_ARRAY),
                    (&kinds, Type::TEXT_ARRAY),
                    (&attempts, Type::INT8_ARRAY),
                    (&rows, Type::TEXT_ARRAY),
                ],
            )
            .await
            .map_err(failed)?;
        client.batch_execute("COMMIT").await.map_err(failed)?;
        for &store in stores {
            let Prefix { attempt, sums, .. } = &self.prefixes[store];
            let sums = self.names.iter().cloned().zip(sums.iter().copied()).collect();
            shard.sent.learn(&self.works[store].store, *attempt, sums);
        }
        let former: Vec<i64> = former.into_iter().flatten().map(|former| former.attempt).collect();
        if !former.is_empty() {
            for name in &self.names {
                let sql = format!("DELETE FROM {name} s WHERE {}", of_attempts(&former));
                client.execute_typed(&sql, &[]).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Rows by name of the table, as JSON.
    fn counted(&self, store: usize) -> String {
        let tables = self.works[store].tables.iter().map(|table| table.def.name.as_str());
        let counts: BTreeMap<&str, u64> =
            tables.zip(self.prefixes[store].sums.iter().map(LinesSum::lines)).collect();
        // Names and numbers: JSON can hold them.
        serde_json::to_string(&counts).unwrap_or_default()
    }

    /// What `rows` delivers next. No COPY stays open for the time that it takes to come.
    pub(super) async fn next<T>(&mut self, rows: &mut mpsc::Receiver<T>) -> Result<Option<T>, DriverError> {
        let until = self.open.as_ref().map(|open| open.until);
        if let Some(until) = until {
            if Instant::now() < until
                && let Ok(delivered) = tokio::time::timeout_at(until, rows.recv()).await
            {
                return Ok(delivered);
            }
            self.close().await?;
        }
        Ok(rows.recv().await)
    }

    pub(super) async fn row(&mut self, store: usize, table: usize, row: &Row) -> Result<(), DriverError> {
        if self.open.as_ref().is_some_and(|open| open.table != table || open.sent_bytes > COPY_BYTES) {
            self.close().await?;
        }
        let (Some(work), Some(prefix)) = (self.works.get(store), self.prefixes.get(store)) else {
            return Err(self.shard.permanent("rows of a store that is not in the group came", "report this"));
        };
        let Some(captured) = work.tables.get(table) else {
            let what = format!("rows of table number {table}, which the plan does not have");
            return Err(self.misfit(work, &what));
        };
        let (name, wanted) = (&captured.def.name, captured.def.stored_columns().count());
        if row.len() != wanted {
            let what = format!("a row of table `{name}` has {} fields instead of {wanted}", row.len());
            return Err(self.misfit(work, &what));
        }
        let text = if wanted == 0 { prefix.text.trim_end() } else { &prefix.text };
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_copy(table).await?,
        };
        let line = open.chunk.len() + text.len();
        copy::encode(text, row, &mut open.chunk).map_err(|(field, class)| {
            let what =
                format!("field {field} of a row of table `{name}` is {class:?}, no value of PostgreSQL");
            self.misfit(work, &what)
        })?;
        // Without its end, which is one byte.
        let line = open.chunk.get(line..open.chunk.len() - 1).unwrap_or_default();
        self.prefixes[store].sums[table].add(self.shard.lines_key(), line);
        if open.chunk.len() >= CHUNK_BYTES {
            self.send(&mut open).await?;
        }
        self.open = Some(open);
        Ok(())
    }

    async fn open_copy(&self, table: usize) -> Result<OpenCopy, DriverError> {
        let sql = format!("COPY {} FROM STDIN", self.names[table]);
        let sink = self.client.copy_in(&sql).await.map_err(|error| self.failed(table, &error))?;
        let (chunk, until) = (Vec::with_capacity(CHUNK_BYTES), Instant::now() + COPY_TIME);
        Ok(OpenCopy { table, sink: Box::pin(sink), chunk, sent_bytes: 0, until })
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
        // A staging table may have gone with the run's last claim, and be made anew.
        self.shard.forget_staging();
        let name = self.works.first().map_or("", |work| work.tables[table].def.name.as_str());
        self.shard.error(&format!("stage {}: load rows of table `{name}`", described(self.works)), error)
    }

    fn misfit(&self, work: &StoreWork, what: &str) -> DriverError {
        self.shard.permanent(
            format!("staging {}: {what}", work.store),
            "the repository's rows do not fit their own definition: run `muster check` on it",
        )
    }
}
