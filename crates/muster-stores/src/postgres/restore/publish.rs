//! Staged rows become live in one transaction.
//!
//! # Invariants
//! - The epoch row is locked first and held to the commit; claim and definitions are held as well.
//! - Nobody else's statement waits for more than the rows that a publish inserts, deletes or refers to; there is no DDL
//!   on live tables; tables of a site's own that are gone are created again, see `recreate`. Nor does the publish wait long for others: its locks have a time limit.
//! - Rows are only inserted; under `overwrite` the site's own rows are saved and deleted before.
//! - The application's ordinary triggers and foreign keys do not act (`session_replication_role = replica`); what
//!   foreign keys demand is checked here. Setting it takes a superuser, or GRANT SET ON PARAMETER from version 15 on.
//! - Before the commit, the site's rows read back from the live tables are exactly those expected, and the server has
//!   counted no other change of any table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use muster_engine::driver::{DriverError, StoreWork};
use muster_types::journal::{Published, TableDigest};
use muster_types::table::TableDef;
use muster_types::{Position, Timestamp};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error};

use super::conflict::{shortened, taken_key};
use super::effects::{self, Count, Counts};
use super::errors::is_out_of_time;
use super::fence::{await_others, check_claim, check_epoch, insert_record, record_of};
use super::live::{self, KindTable};
use super::overwrite::{Replaced, check_left_behind, replace};
use super::owner::column_list;
use super::recreate::Recreation;
use super::shard::{Catalog, Shard};
use super::stage::{self, Staged, StagedRows, of_attempt, table_name};
use super::{copy, references, sequences};
use crate::postgres::system::MARK_PREFIX;

/// Longest wait for another transaction's row: the step is tried again, and meanwhile nobody queues behind it. For
/// tables it is shorter.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// A publish whose engine fell silent is rolled back by the server after this.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Publishes a store, or returns what an earlier attempt of the run did.
pub(super) async fn publish(
    shard: &Shard,
    work: &StoreWork,
    expected: &BTreeMap<String, TableDigest>,
) -> Result<Published, DriverError> {
    let session = shard.session().await?;
    if shard.known().is_none() {
        live::look_ahead(shard, &session).await;
    }
    let bound = work.writer_block_milliseconds_max.map(Duration::from_millis);
    let publication = Publication { shard, client: &session, work, expected, bound };
    publication.begin().await.map_err(|error| {
        let standby = shard.standby_error(&format!("publish {}", work.store), &error);
        standby.unwrap_or_else(|| publication.failed("begin", &error))
    })?;
    let since = Instant::now();
    let outcome = match publication.run(since).await {
        Ok(Done::Earlier(published)) => publication
            .client
            .batch_execute("ROLLBACK")
            .await
            .map(|()| published)
            .map_err(|error| publication.failed("end the transaction", &error))?,
        Ok(Done::Now(published, since)) => publication.commit(published, since).await?,
        // A dropped session is rolled back by the server.
        Err(error) => return Err(error),
    };
    session.keep();
    Ok(outcome)
}

/// Longest wait for another transaction's row in a publish with this bound: well within it, so that such a wait is told
/// from a publish that takes too long.
pub(super) fn lock_wait(bound: Option<Duration>) -> Duration {
    bound.map_or(LOCK_WAIT, |bound| (bound / 2).min(LOCK_WAIT)).max(Duration::from_millis(1))
}

/// Begins a publish transaction.
pub(super) async fn begin(client: &Client, bound: Option<Duration>) -> Result<(), Error> {
    let statement = bound.map_or(0, |bound| bound.as_millis().max(1));
    client
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {}; \
             SET LOCAL statement_timeout = {statement}; SET LOCAL idle_in_transaction_session_timeout = {}; \
             SET LOCAL session_replication_role = replica",
            lock_wait(bound).as_millis(),
            IDLE_MAX.as_millis(),
        ))
        .await
}

/// Commits, and gives the end of the log behind it, whatever else was written since; the records are read the same way.
pub(super) async fn commit(client: &Client) -> Result<Position, Error> {
    let (committed, end) = tokio::join!(
        client.batch_execute("COMMIT"),
        client.query_typed_one("SELECT pg_current_wal_insert_lsn()", &[]),
    );
    committed?;
    Ok(Position(end?.get::<_, PgLsn>(0).into()))
}

enum Done {
    Earlier(Published),
    /// Not yet committed, and since when others may have waited.
    Now(Published, Instant),
}

/// One attempt.
struct Publication<'a> {
    shard: &'a Shard,
    client: &'a Client,
    work: &'a StoreWork,
    expected: &'a BTreeMap<String, TableDigest>,
    bound: Option<Duration>,
}

impl Publication<'_> {
    fn lock_wait(&self) -> Duration {
        lock_wait(self.bound)
    }

    async fn begin(&self) -> Result<(), Error> {
        begin(self.client, self.bound).await
    }

    /// Everything up to the commit.
    async fn run(&self, since: Instant) -> Result<Done, DriverError> {
        let (shard, client, work) = (self.shard, self.client, self.work);
        let failed = |error: Error| self.failed("read its records", &error);
        if let Some(done) = self.admit().await? {
            return Ok(Done::Earlier(done));
        }
        let catalog = live::hold(shard, client, work, self.lock_wait()).await?;
        live::check(shard, &catalog, work)?;
        let mut recreation = Recreation::of(&catalog, work);
        let catalog = recreation.begin(shard, client, work, catalog).await?;
        let tables = live::work_tables(shard, &catalog, work);
        let (staged, dead, before, marked) = tokio::join!(
            stage::existing(shard, client, work),
            self.check_dead(&tables),
            effects::counts(client, &catalog),
            self.mark(),
        );
        let staged = staged?;
        dead?;
        let before = before.map_err(failed)?;
        marked?;
        let replaced =
            if work.overwrite { replace(shard, client, work, &tables).await? } else { Replaced::new() };
        let (sites, attempts, of) = ([&work.store.site], [staged.attempt], work.store.to_string());
        let own = StagedRows { run: &work.run, sites: &sites, attempts: &attempts, of: &of };
        sequences::advance(shard, client, &own, &tables).await?;
        let rows = self.insert_all(&tables, &staged, &recreation).await?;
        recreation.index(shard, client, work).await?;
        if recreation.is_whole() {
            // Nobody else sees these tables before the commit. Foreign keys lock others that writers use: what takes as
            // long as there are rows comes before.
            self.check_live(&tables, &staged).await?;
        }
        let since = recreation.bind(shard, client, work).await?.unwrap_or(since);
        references::check(shard, client, &own, &tables).await.map_err(|missing| missing.error)?;
        check_left_behind(shard, client, work, &catalog, &tables, &replaced).await?;
        if !recreation.is_whole() {
            self.check_live(&tables, &staged).await?;
        }
        self.check_effects(&catalog, &before, &replaced).await?;
        self.check_bound(since)?;
        let published = self.record(rows, replaced.values().sum(), since).await.map_err(failed)?;
        Ok(Done::Now(published, since))
    }

    /// Holds epoch, step and claim; what an earlier attempt did, if it did.
    async fn admit(&self) -> Result<Option<Published>, DriverError> {
        let (shard, client, work) = (self.shard, self.client, self.work);
        // Sent together and done in this order; of several errors the first is the cause.
        let (epoch, others, record, claim) = tokio::join!(
            check_epoch(shard, client, work),
            await_others(client, work),
            record_of(client, work),
            check_claim(shard, client, work),
        );
        epoch?;
        others.map_err(|error| {
            let doing = format!("publish {}: wait for an earlier attempt", work.store);
            shard.busy_error(&doing, &error)
        })?;
        match record.map_err(|error| self.failed("read its records", &error))? {
            Some(done) => Ok(Some(done)),
            None => claim.map(|()| None),
        }
    }

    /// Writes the record, last of all.
    async fn record(&self, rows: u64, replaced: u64, since: Instant) -> Result<Published, Error> {
        let blocked_micros = micros(since.elapsed());
        let at = Timestamp::from_micros(0);
        let mut published = Published { rows, replaced, positions: None, blocked_micros, at };
        let (first, at) = insert_record(self.client, self.work, &published).await?;
        published.positions = first.map(|first| (Position(first.into()), Position(first.into())));
        published.at = at;
        Ok(published)
    }

    async fn commit(&self, mut published: Published, since: Instant) -> Result<Published, DriverError> {
        let doing = format!("commit the publish of {}", self.work.store);
        let end = commit(self.client).await.map_err(|error| self.shard.commit_error(&doing, &error))?;
        published.blocked_micros = micros(since.elapsed());
        if let Some((_, last)) = &mut published.positions {
            *last = end;
        }
        Ok(published)
    }

    async fn check_dead(&self, tables: &[KindTable<'_>]) -> Result<(), DriverError> {
        if self.work.overwrite {
            return Ok(());
        }
        let asked: Vec<(&KindTable<'_>, String)> = tables
            .iter()
            .filter_map(|table| {
                let rows = table.way.as_ref()?.rows_of(&self.work.store.site);
                // Counted: for a first row, the server would walk through the whole parent table.
                Some((table, format!("SELECT count(*) FROM {} t WHERE {rows}", table.now.rows_of())))
            })
            .collect();
        let counted = asked.iter().map(|(_, sql)| self.client.query_typed_one(sql, &[]));
        for ((table, _), alive) in asked.iter().zip(join_all(counted).await) {
            if alive.map_err(|error| self.failed("look for live rows", &error))?.get::<_, i64>(0) > 0 {
                return Err(self.alive(table));
            }
        }
        Ok(())
    }

    fn alive(&self, table: &KindTable<'_>) -> DriverError {
        self.shard.permanent(
            format!("{} is alive: table `{}` holds rows of it", self.work.store, table.name()),
            "look at them with `muster diff`; if they are to be replaced, plan with --overwrite for this site",
        )
    }

    /// Before the first change, so that whoever reads the log knows the mark when the changes come.
    async fn mark(&self) -> Result<(), DriverError> {
        // A mark is texts and a number: JSON can hold it.
        let mark = serde_json::to_string(&self.work.mark()).unwrap_or_default();
        let sql = "SELECT pg_logical_emit_message(true, $1, $2::text)";
        let arguments: [(&(dyn ToSql + Sync), Type); 2] = [(&MARK_PREFIX, Type::TEXT), (&mark, Type::TEXT)];
        let emitted = self.client.query_typed_one(sql, &arguments).await;
        emitted.map(drop).map_err(|error| self.failed("write its mark", &error))
    }

    async fn insert_all(
        &self,
        tables: &[KindTable<'_>],
        staged: &Staged,
        recreation: &Recreation<'_>,
    ) -> Result<u64, DriverError> {
        let inserts = self.inserts(tables, staged, recreation);
        // Sent together: behind the first that fails, the server does none.
        let sent = inserts.iter().map(|(_, _, sql)| async move {
            let (saved, inserted) = tokio::join!(
                self.client.batch_execute("SAVEPOINT muster_insert"),
                self.client.execute_typed(sql, &[]),
            );
            saved.and(inserted)
        });
        let mut rows = 0;
        for ((table, then, _), answer) in inserts.iter().zip(join_all(sent).await) {
            let inserted = match answer {
                Ok(inserted) => inserted,
                Err(error) => return Err(self.refused(table, staged, &error).await),
            };
            let wanted = self.expected_rows(&then.name);
            if inserted < wanted {
                // Staging tables are emptied by a restart after a crash.
                let what = format!("{inserted} of {wanted} staged rows of table `{}` are there", then.name);
                return Err(stage::lost(self.shard, self.work, &what));
            }
            rows += inserted;
        }
        Ok(rows)
    }

    /// The statements that make the staged rows live, with their tables.
    fn inserts<'t>(
        &self,
        tables: &'t [KindTable<'t>],
        staged: &Staged,
        recreation: &Recreation<'_>,
    ) -> Vec<(&'t KindTable<'t>, &'t TableDef, String)> {
        tables
            .iter()
            .filter_map(|table| Some((table, table.then?)))
            .filter(|(_, then)| self.expected_rows(&then.name) > 0)
            .map(|(table, then)| {
                let sql = format!(
                    "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} s WHERE {}",
                    table.now.qualified(),
                    column_list("", table.restored_columns()),
                    recreation.column_list(then),
                    table_name(&self.work.run, then),
                    of_attempt(staged.attempt),
                );
                (table, then, sql)
            })
            .collect()
    }

    fn expected_rows(&self, table: &str) -> u64 {
        self.expected.get(table).map_or(0, |digest| digest.rows)
    }

    /// The error for rows that the live table did not take.
    async fn refused(&self, table: &KindTable<'_>, staged: &Staged, error: &Error) -> DriverError {
        let plain = self
            .violated(table, error)
            .unwrap_or_else(|| self.failed(&format!("insert into `{}`", table.name()), error));
        if error.code() != Some(&SqlState::UNIQUE_VIOLATION) {
            return plain;
        }
        if self.client.batch_execute("ROLLBACK TO muster_insert").await.is_err() {
            return plain;
        }
        let taken = taken_key(self.shard, self.client, self.work, table, staged.attempt).await;
        taken.ok().flatten().unwrap_or(plain)
    }

    /// The error for rows that a constraint of the live table does not permit: it came after them, most likely.
    fn violated(&self, table: &KindTable<'_>, error: &Error) -> Option<DriverError> {
        let answer = error.as_db_error().filter(|answer| answer.code().code().starts_with("23"))?;
        let by = match (answer.constraint(), answer.column()) {
            (Some(constraint), _) => format!("constraint `{constraint}`"),
            (None, Some(column)) => format!("column `{column}`, which is NOT NULL,"),
            (None, None) => "a constraint".to_owned(),
        };
        let detail = answer.detail().map_or_else(String::new, |detail| format!(": {}", shortened(detail)));
        Some(self.shard.permanent(
            format!(
                "{}: {by} of live table `{}` does not permit a restored row{detail}",
                self.work.store,
                table.name()
            ),
            format!(
                "bring the rows into line with a migration ([[tables.{:?}.migrations]] in the topology) and plan again, \
                 or change the constraint",
                table.name()
            ),
        ))
    }

    /// The site's live rows, read back, are those expected.
    async fn check_live(&self, tables: &[KindTable<'_>], staged: &Staged) -> Result<(), DriverError> {
        let doing = format!("publish {}: read its rows back", self.work.store);
        let mut read = Vec::with_capacity(tables.len());
        for table in tables {
            let Some(then) = table.then else { continue };
            match &table.way {
                Some(way) => {
                    let columns = column_list("t", table.restored_columns());
                    let rows = way.rows_of(&self.work.store.site);
                    let select = format!("SELECT {columns} FROM {} t WHERE {rows}", table.now.rows_of());
                    read.push((table, then, select));
                }
                // A reference table of the kind: none of its rows are a site's.
                None if self.expected_rows(&then.name) == 0 => {}
                None => return Err(self.nobodys(table)),
            }
        }
        let selects = read.iter().map(|(_, _, select)| select.clone());
        let mut queries = copy::Queries::send(self.shard, self.client, &doing, selects).await?;
        let mut unlike = Vec::new();
        for (_, then, select) in &read {
            let rows = queries.next().await?;
            let name = table_name(&self.work.run, then);
            // They are as they were sent, and so was what is expected; or digests decide.
            let sent = self.shard.sent.of(&self.work.store, staged.attempt, &name);
            match sent.filter(|sent| sent.lines() == self.expected_rows(&then.name)) {
                Some(sent) => {
                    if rows.lines().await? != sent {
                        unlike.push((then, select));
                    }
                }
                None => self.compare(then, rows.digest(&then.name).await?)?,
            }
        }
        drop(queries);
        for (then, select) in unlike {
            let found = copy::digest(self.shard, self.client, &doing, &then.name, select).await?;
            self.compare(then, found)?;
        }
        for (table, _, _) in read {
            self.check_deferrable(table).await?;
        }
        Ok(())
    }

    fn compare(&self, then: &TableDef, found: TableDigest) -> Result<(), DriverError> {
        let nothing = TableDigest { rows: 0, digest: muster_rows::RowsDigest::new().finish() };
        let wanted = self.expected.get(&then.name).copied().unwrap_or(nothing);
        if found == wanted {
            return Ok(());
        }
        Err(self.stray(&format!(
            "table `{}` would have {} rows of the site (digest {}) instead of {} (digest {})",
            then.name,
            found.rows,
            found.digest.short(),
            wanted.rows,
            wanted.digest.short(),
        )))
    }

    fn nobodys(&self, table: &KindTable<'_>) -> DriverError {
        self.shard.permanent(
            format!("{}: whose the rows of table `{}` are cannot be told", self.work.store, table.name()),
            "declare the table's owner in the topology, then plan again",
        )
    }

    /// Deferrable unique keys are checked by a trigger that does not fire in a publish.
    async fn check_deferrable(&self, table: &KindTable<'_>) -> Result<(), DriverError> {
        for key in table.now.keys.iter().filter(|key| key.deferrable) {
            let Some(way) = &table.way else { continue };
            let names: Vec<&str> = key.columns.iter().flatten().map(String::as_str).collect();
            let equal: Vec<String> =
                names.iter().map(|name| table.now.equal_in(key, name, "o", "t")).collect();
            let sql = format!(
                "SELECT concat_ws(', ', {}) FROM {live} t WHERE {} AND (SELECT count(*) FROM {live} o WHERE {}) > 1 LIMIT 1",
                column_list("t", names.iter().copied()),
                way.rows_of(&self.work.store.site),
                equal.join(" AND "),
                live = table.now.rows_of(),
            );
            let found = self.client.query_opt(&sql, &[]).await;
            if let Some(row) = found.map_err(|error| self.failed("check its keys", &error))? {
                return Err(self.shard.permanent(
                    format!(
                        "{}: key ({}) = ({}) of table `{}` is held by another row",
                        self.work.store,
                        names.join(", "),
                        row.get::<_, &str>(0),
                        table.name()
                    ),
                    "decide who keeps the key, change or remove the other row, then resume the run",
                ));
            }
        }
        Ok(())
    }

    async fn check_effects(
        &self,
        catalog: &Catalog,
        before: &Counts,
        replaced: &Replaced,
    ) -> Result<(), DriverError> {
        let failed = |error: Error| self.failed("count what changed", &error);
        let Some(after) = effects::counted(self.client, catalog).await.map_err(failed)? else {
            return Ok(());
        };
        let mut wanted = Counts::new();
        for (table, digest) in self.expected.iter().filter(|(_, digest)| digest.rows > 0) {
            wanted.insert(table.clone(), Count { inserted: digest.rows.cast_signed(), ..Count::default() });
        }
        for (table, rows) in replaced {
            wanted.entry(table.clone()).or_default().deleted = rows.cast_signed();
        }
        match effects::difference(before, &after, &wanted) {
            None => Ok(()),
            Some(difference) => Err(self.stray(&difference)),
        }
    }

    fn stray(&self, difference: &str) -> DriverError {
        self.shard.permanent(
            format!("stray write: publishing {} was undone because {difference}", self.work.store),
            "nothing was changed; look at the site with `muster diff`, then resume the run, and report this if it stays",
        )
    }

    fn check_bound(&self, since: Instant) -> Result<(), DriverError> {
        match self.bound {
            Some(bound) if since.elapsed() > bound => Err(self.too_long(bound)),
            _ => Ok(()),
        }
    }

    fn too_long(&self, bound: Duration) -> DriverError {
        self.shard.permanent(
            format!(
                "publishing {} was undone because it held its locks for longer than {} ms",
                self.work.store,
                bound.as_millis()
            ),
            "give the run up with `muster abandon`, then plan the site again with --accept-block for this store, or \
             with a higher writer_block_milliseconds_max of its shard",
        )
    }

    fn failed(&self, doing: &str, error: &Error) -> DriverError {
        if let Some(bound) = self.bound.filter(|_| is_out_of_time(error)) {
            return self.too_long(bound);
        }
        let mut failed = self.shard.error(&format!("publish {}: {doing}", self.work.store), error);
        if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            failed.hint =
                "publishing needs the right to write to the tables, and to set session_replication_role: a \
                           superuser, or GRANT SET ON PARAMETER session_replication_role TO the role"
                    .into();
        }
        failed
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
