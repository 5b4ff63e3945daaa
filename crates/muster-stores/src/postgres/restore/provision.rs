//! An empty database is given schemas, types, functions, extensions, tables, reference rows, and what comes with them.
//!
//! # Invariants
//! - One transaction, which also records that the run did it. Before its commit the reference rows are read back.
//! - A database that has a table of an application is not touched.
//! - Sequences are never brought back: they stand at the snapshot's numbers or further on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::SinkExt;
use muster_engine::driver::{DriverError, ErrorClass, ProvisionWork, ReferenceRows};
use muster_types::journal::TableDigest;
use muster_types::plan::ShardSurvey;
use muster_types::table::{CapturedTable, TableDef};
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::copy;
use super::fence::{epoch_of, fenced};
use super::owner::column_list;
use super::shard::Shard;
use crate::postgres::schema::{self, Phase, qualified, quote, roles_of};

/// Bytes handed to the connection at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// What is there, without tables of single sites, and which roles are not.
pub(super) async fn survey(shard: &Shard, wanted: &[CapturedTable]) -> Result<ShardSurvey, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error("read its definitions", &error);
    let of_site = |name: &str| {
        let config = shard.tables().get(name);
        config.is_some_and(|config| matches!(config.owner, muster_types::table::Owner::Site { .. }))
    };
    let tables = schema::read(&*session).await.map_err(failed)?;
    let tables = tables.into_iter().map(|table| table.def).filter(|def| !of_site(&def.name)).collect();
    let roles: BTreeSet<String> =
        wanted.iter().flat_map(|table| &table.def.create_sql).flat_map(|sql| roles_of(sql)).collect();
    let roles: Vec<String> = roles.into_iter().collect();
    let missing = "SELECT name FROM unnest($1::text[]) w(name) \
        WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = w.name) ORDER BY 1";
    let rows = session.query(missing, &[&roles]).await.map_err(failed)?;
    let missing_roles = rows.iter().map(|row| row.get(0)).collect();
    session.keep();
    Ok(ShardSurvey { tables, missing_roles })
}

/// See the module.
pub(super) async fn provision(
    shard: &Shard,
    work: &ProvisionWork,
    mut rows: mpsc::Receiver<ReferenceRows>,
) -> Result<(), DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error("give it its definitions", &error);
    shard.ensure_run_tables(&session).await.map_err(failed)?;
    session
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS muster.provisioned (run text PRIMARY KEY); BEGIN; \
             SET LOCAL check_function_bodies = off",
        )
        .await
        .map_err(failed)?;
    match epoch_of(&session, &work.run, "FOR SHARE").await.map_err(failed)? {
        Some(found) if found == work.epoch => {}
        found => return Err(fenced(shard, &work.run, work.epoch, found.unwrap_or_default())),
    }
    let noted = "INSERT INTO muster.provisioned (run) VALUES ($1) ON CONFLICT DO NOTHING";
    if session.execute(noted, &[&work.run.as_str()]).await.map_err(failed)? == 0 {
        session.batch_execute("ROLLBACK").await.map_err(failed)?;
        session.keep();
        return Ok(());
    }
    if let Some(table) = schema::read(&*session).await.map_err(failed)?.first() {
        return Err(shard.permanent(
            format!("it is not empty any more: it has a table `{}`", table.def.name),
            "plan again: its definitions are compared then; or name an empty shard with --to-shard",
        ));
    }
    let making = Making { shard, client: &session, work };
    making.schemas().await?;
    making.run(Phase::Before).await?;
    let wanted = making.load(&mut rows).await?;
    making.compare(&wanted).await?;
    for phase in [Phase::Loaded, Phase::Foreign, Phase::Last, Phase::Schema] {
        making.run(phase).await?;
    }
    making.sequences().await.map_err(failed)?;
    session.batch_execute("COMMIT").await.map_err(failed)?;
    shard.forget();
    session.keep();
    Ok(())
}

struct Making<'a> {
    shard: &'a Shard,
    client: &'a Client,
    work: &'a ProvisionWork,
}

impl Making<'_> {
    async fn schemas(&self) -> Result<(), DriverError> {
        let names = self.work.tables.iter().map(|table| parts(&table.def.name).0);
        let names: BTreeSet<&str> = names.collect();
        for name in names {
            let sql = format!("CREATE SCHEMA IF NOT EXISTS {}", quote(name));
            self.client.batch_execute(&sql).await.map_err(|error| self.failed(&sql, &error))?;
        }
        Ok(())
    }

    /// Statements of one phase, table by table; what a table needs is made with the first that needs it.
    async fn run(&self, phase: Phase) -> Result<(), DriverError> {
        let all = self.work.tables.iter().flat_map(|table| &table.def.create_sql);
        let mut done = BTreeSet::new();
        for statement in all.filter(|sql| Phase::of(sql) == phase && self.has_its_roles(sql)) {
            if !done.insert(statement) {
                continue;
            }
            self.client.batch_execute(statement).await.map_err(|error| self.failed(statement, &error))?;
        }
        Ok(())
    }

    fn has_its_roles(&self, statement: &str) -> bool {
        roles_of(statement).iter().all(|role| !self.work.without_roles.contains(role))
    }

    async fn load(
        &self,
        rows: &mut mpsc::Receiver<ReferenceRows>,
    ) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        loop {
            match rows.recv().await {
                Some(ReferenceRows::Batch(batch)) => {
                    let Some(table) = self.work.tables.get(batch.table) else { continue };
                    chunk.clear();
                    for row in &batch.rows {
                        copy::encode("", row, &mut chunk).map_err(|(column, class)| {
                            self.shard.permanent(
                                format!(
                                    "column {column} of reference table `{}` holds a {class:?}, which PostgreSQL has not",
                                    table.def.name
                                ),
                                "name a shard of the driver that the rows were captured from",
                            )
                        })?;
                    }
                    let copied = self.copy(&table.def, std::mem::take(&mut chunk)).await;
                    copied.map_err(|error| self.shard.error("load its reference rows", &error))?;
                }
                Some(ReferenceRows::End(wanted)) => return Ok(wanted),
                None => {
                    let what = "its reference rows did not come to their end";
                    return Err(self.shard.transient(what, "the step is tried again"));
                }
            }
        }
    }

    async fn copy(&self, def: &TableDef, lines: Vec<u8>) -> Result<(), Error> {
        let columns = column_list("", def.stored_columns().map(|column| column.name.as_str()));
        let sql = format!("COPY {} ({columns}) FROM STDIN", sql_name(&def.name));
        let mut sink = Box::pin(self.client.copy_in::<_, Bytes>(&sql).await?);
        sink.send(lines.into()).await?;
        sink.as_mut().finish().await.map(drop)
    }

    async fn compare(&self, wanted: &BTreeMap<String, TableDigest>) -> Result<(), DriverError> {
        for table in self.work.tables.iter() {
            let Some(wanted) = wanted.get(&table.def.name) else { continue };
            let columns = column_list("t", table.def.stored_columns().map(|column| column.name.as_str()));
            let select = format!("SELECT {columns} FROM {} t", sql_name(&table.def.name));
            let doing = "read its reference rows back";
            let found = copy::digest(self.shard, self.client, doing, &table.def.name, &select).await?;
            if found != *wanted {
                return Err(self.shard.permanent(
                    format!(
                        "reference table `{}` has {} rows (digest {}) instead of {} (digest {}); nothing was kept",
                        table.def.name,
                        found.rows,
                        found.digest.short(),
                        wanted.rows,
                        wanted.digest.short()
                    ),
                    "check the shard, then resume the run",
                ));
            }
        }
        Ok(())
    }

    /// Sequences that are there are brought to where they were.
    async fn sequences(&self) -> Result<(), Error> {
        let (names, last): (Vec<&str>, Vec<i64>) =
            self.work.beside.sequences.iter().map(|(name, last)| (name.as_str(), *last)).unzip();
        let sql = "SELECT setval(s.seqrelid, w.last) FROM unnest($1::text[], $2::bigint[]) w(name, last) \
            JOIN pg_sequence s ON s.seqrelid = to_regclass(w.name) \
            WHERE w.last BETWEEN s.seqmin AND s.seqmax";
        self.client.query(sql, &[&names, &last]).await.map(drop)
    }

    fn failed(&self, statement: &str, error: &Error) -> DriverError {
        let shown: String = statement.chars().take(200).collect();
        let mut failed = self.shard.error(&format!("run `{shown}`"), error);
        let unknown = [SqlState::UNDEFINED_OBJECT, SqlState::UNDEFINED_FILE, SqlState::FEATURE_NOT_SUPPORTED];
        if error.code().is_some_and(|code| unknown.contains(code)) {
            failed.class = ErrorClass::Permanent;
            failed.hint = "install what the statement asks for on the server (an extension, or a role), then resume the \
                           run; or make the tables by hand in the empty shard and plan again"
                .into();
        }
        failed
    }
}

/// Schema and name of a table by its topology name.
fn parts(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

fn sql_name(name: &str) -> String {
    let (schema, name) = parts(name);
    qualified(schema, name)
}
