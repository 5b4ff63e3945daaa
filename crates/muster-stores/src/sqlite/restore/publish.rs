//! Staged rows become live in one transaction.
//!
//! # Invariants
//! - Everything that the publish rests on is checked under the shard's write lock: epoch, claim, definitions, that
//!   the site is not alive.
//! - Rows are only inserted, and abort the publish where they meet another row, whatever the table's own conflict
//!   clause says; under `overwrite` the site's own rows are saved and deleted before.
//! - Before the commit, the rows that appeared and went, as they were seen one by one, are exactly those that were to.
//! - The same transaction holds the change rows, the mark and the publish record.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use muster_engine::driver::{DriverError, ErrorClass, StoreWork};
use muster_types::journal::{Published, TableDigest};
use muster_types::{Position, Timestamp};
use rusqlite::{Connection, OptionalExtension};

use super::conflict::{missing_parent, refused};
use super::effects::{Effects, Watch};
use super::errors::{is_foreign_key_violation, is_interrupted};
use super::fault::Fault;
use super::fence::{check_claim, check_epoch, insert_record, record_of};
use super::live::{LiveTable, LiveTables, schema_version};
use super::log::{adopt_inserted, insert_mark, log_inserted, own_inserted};
use super::overwrite::{Replaced, replace};
use super::shard::{Shard, Writer};
use super::sql::{column_list, rows_of_site};
use super::stage;
use crate::sqlite::schema::{affinity_of, quote};
use crate::sqlite::system::last_position;

/// Virtual machine steps between two looks at the clock: about a tenth of a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 4096;

/// Publishes a store, or returns what an earlier attempt of the run did.
pub(super) fn publish(
    shard: &Shard,
    work: &StoreWork,
    expected: &BTreeMap<String, TableDigest>,
    fault: Option<&Fault>,
) -> Result<Published, DriverError> {
    let mut writer = shard.writer()?;
    let failed = |error: rusqlite::Error| shard.error(&format!("publish {}", work.store), &error);
    check_epoch(shard, &writer, &work.run, work.epoch)?;
    if let Some(done) = record_of(&writer, &work.run, &work.store).map_err(failed)? {
        writer.keep();
        return Ok(done);
    }
    let path = stage::existing(shard, work)?;
    let live = writer.live_tables(work)?;
    writer.ensure_watch(live.schema_version).map_err(failed)?;
    writer.execute("ATTACH ?1 AS stage", [path.to_string_lossy()]).map_err(failed)?;
    prepare(&writer, work, &live).map_err(failed)?;
    if let Some(watch) = writer.watch() {
        watch.begin(live.tables.iter().map(|table| (table.name().to_owned(), table.watched())).collect());
    }
    let published = in_transaction(&mut writer, &Publication { shard, work, live: &live, expected, fault });
    // A connection that is not in order again is closed, not kept.
    if writer.is_autocommit() && writer.execute_batch("DETACH stage").is_ok() {
        writer.keep();
    }
    published
}

/// What needs no write lock: columns that are new since get their defaults in the staging file.
fn prepare(conn: &Connection, work: &StoreWork, live: &LiveTables) -> rusqlite::Result<()> {
    conn.execute_batch("PRAGMA stage.journal_mode=OFF; PRAGMA stage.synchronous=OFF;")?;
    // Foreign keys act on rows of other stores when a parent is deleted; a replacement checks them itself instead.
    // Setting them, even to what they are, makes every prepared statement be parsed again.
    if conn.pragma_query_value(None, "foreign_keys", |row| row.get::<_, bool>(0))? == work.overwrite {
        conn.pragma_update(None, "foreign_keys", !work.overwrite)?;
    }
    for table in live.tables.iter().filter(|table| table.then.is_some()) {
        let name = quote(table.name());
        for column in &table.added {
            let (column_name, default) =
                (quote(&column.name), column.default_sql.as_deref().unwrap_or("NULL"));
            let there = conn
                .query_row(
                    "SELECT 1 FROM pragma_table_info(?1, 'stage') WHERE name = ?2",
                    [table.name(), column.name.as_str()],
                    |_| Ok(()),
                )
                .optional()?;
            if there.is_none() {
                let kept_as = affinity_of(&column.declared_type);
                conn.execute_batch(&format!("ALTER TABLE stage.{name} ADD COLUMN {column_name} {kept_as}"))?;
            }
            conn.execute_batch(&format!("UPDATE stage.{name} SET {column_name} = ({default})"))?;
        }
    }
    Ok(())
}

/// One attempt.
struct Publication<'a> {
    shard: &'a Shard,
    work: &'a StoreWork,
    live: &'a LiveTables,
    expected: &'a BTreeMap<String, TableDigest>,
    fault: Option<&'a Fault>,
}

fn in_transaction(writer: &mut Writer<'_>, publication: &Publication<'_>) -> Result<Published, DriverError> {
    let bound = publication.work.writer_block_milliseconds_max.map(Duration::from_millis);
    let locked = Arc::new(OnceLock::new());
    let failed = |error: rusqlite::Error| publication.failed("begin", &error);
    writer.progress_handler(STEPS_BETWEEN_LOOKS, deadline(&locked, bound)).map_err(failed)?;
    writer.execute_batch("BEGIN IMMEDIATE; PRAGMA defer_foreign_keys=ON;").map_err(failed)?;
    let since = *locked.get_or_init(Instant::now);
    let outcome = publication.run(writer, since);
    let outcome = match outcome {
        Ok((published, true)) => publication.commit(writer, published, since),
        Ok((published, false)) => Ok(published),
        Err(error) => Err(error),
    };
    if !writer.is_autocommit() {
        // What fails here is rolled back when the connection closes: it is not kept.
        let _ = writer.execute_batch("ROLLBACK");
    }
    writer.progress_handler(0, None::<fn() -> bool>).map_err(failed)?;
    outcome
}

fn deadline(
    locked: &Arc<OnceLock<Instant>>,
    bound: Option<Duration>,
) -> Option<impl FnMut() -> bool + Send + 'static> {
    let locked = Arc::clone(locked);
    bound.map(|bound| move || locked.get().is_some_and(|since| since.elapsed() > bound))
}

impl Publication<'_> {
    /// Everything up to the commit; false if there is nothing to commit.
    fn run(&self, conn: &Writer<'_>, since: Instant) -> Result<(Published, bool), DriverError> {
        let (shard, work) = (self.shard, self.work);
        check_epoch(shard, conn, &work.run, work.epoch)?;
        let failed = |error: rusqlite::Error| self.failed("write its records", &error);
        if let Some(done) = record_of(conn, &work.run, &work.store).map_err(failed)? {
            return Ok((done, false));
        }
        check_claim(shard, conn, &work.run, &work.store)?;
        self.check_definitions(conn)?;
        self.check_dead(conn)?;
        let before = last_position(conn).map_err(failed)?;
        let mark = insert_mark(conn, &work.mark()).map_err(failed)?;
        let replaced = if work.overwrite {
            replace(self.shard, conn, work, self.live, mark)?
        } else {
            Replaced::default()
        };
        let rows = self.insert_all(conn, mark)?;
        if let Some(fault) = self.fault {
            fault.strike(conn, mark).map_err(failed)?;
        }
        self.check_effects(conn, &replaced)?;
        if work.overwrite {
            self.check_references(conn, &replaced)?;
        }
        let after = last_position(conn).map_err(failed)?;
        let published = Published {
            rows,
            replaced: replaced.rows(),
            positions: (after > before).then_some((Position(before.0 + 1), after)),
            blocked_micros: micros(since.elapsed()),
            at: now(),
        };
        insert_record(conn, &work.run, work.epoch, &work.store, &published).map_err(failed)?;
        self.check_bound(since)?;
        Ok((published, true))
    }

    fn commit(
        &self,
        conn: &Connection,
        mut published: Published,
        since: Instant,
    ) -> Result<Published, DriverError> {
        if self.fault.is_some_and(Fault::abandons) {
            return Err(DriverError::new(ErrorClass::Ambiguous, "abandoned before the commit", "try again"));
        }
        if let Err(error) = conn.execute_batch("COMMIT") {
            let of_key = is_foreign_key_violation(&error);
            let missing = self
                .staged()
                .filter(|_| of_key)
                .find_map(|table| missing_parent(self.shard, conn, self.work, table));
            return Err(missing.unwrap_or_else(|| {
                self.shard.commit_error(&format!("commit the publish of {}", self.work.store), &error)
            }));
        }
        // The record says how long until the commit; the commit's own sync is known only now.
        published.blocked_micros = micros(since.elapsed());
        Ok(published)
    }

    fn staged(&self) -> impl Iterator<Item = &LiveTable> {
        self.live.tables.iter().filter(|table| table.then.is_some())
    }

    fn check_definitions(&self, conn: &Connection) -> Result<(), DriverError> {
        let version = schema_version(conn).map_err(|error| self.failed("read the definitions", &error))?;
        if version != self.live.schema_version {
            return Err(DriverError::new(
                ErrorClass::Transient,
                format!(
                    "shard `{}`: a definition changed while {} was prepared",
                    self.shard.name(),
                    self.work.store
                ),
                "the step is tried again",
            ));
        }
        if self.work.definitions.is_some_and(|planned| planned != self.live.definitions) {
            return Err(self.shard.permanent(
                format!("the live definitions of {} changed after the plan was made", self.work.store),
                "make a new plan: it shows what the new definitions mean for the restored rows",
            ));
        }
        Ok(())
    }

    fn check_dead(&self, conn: &Connection) -> Result<(), DriverError> {
        if self.work.overwrite {
            return Ok(());
        }
        for table in &self.live.tables {
            let Some(condition) = rows_of_site(&table.owner) else { continue };
            let alive = conn
                .prepare_cached(&format!(
                    "SELECT 1 FROM main.{} t WHERE {condition} LIMIT 1",
                    quote(table.name())
                ))
                .and_then(|mut select| select.exists([self.work.store.site.as_str()]))
                .map_err(|error| self.failed("look for live rows", &error))?;
            if alive {
                return Err(self.shard.permanent(
                    format!("{} is alive: table `{}` holds rows of it", self.work.store, table.name()),
                    "look at them with `muster diff`; if they are to be replaced, plan with --overwrite for this site",
                ));
            }
        }
        Ok(())
    }

    fn insert_all(&self, conn: &Connection, mark: i64) -> Result<u64, DriverError> {
        let mut rows = 0;
        for table in self.staged() {
            let inserted = self.insert(conn, table)?;
            if inserted == 0 {
                continue;
            }
            let site = &self.work.store.site;
            log_inserted(conn, table, site, mark)
                .and_then(|()| own_inserted(conn, table, site))
                .map_err(|error| self.failed(&format!("log the rows of `{}`", table.name()), &error))?;
            self.adopt(conn, table)?;
            rows += inserted;
        }
        Ok(rows)
    }

    fn adopt(&self, conn: &Connection, table: &LiveTable) -> Result<(), DriverError> {
        let stranger = adopt_inserted(conn, table, &self.work.store.site).map_err(|error| {
            self.failed(&format!("find whose the rows of `{}` are", table.name()), &error)
        })?;
        let Some((key, holder)) = stranger else { return Ok(()) };
        let holder = holder.map_or_else(|| "nobody".to_owned(), |site| format!("site:{site}"));
        Err(self.shard.permanent(
            format!(
                "{}: a row of table `{}` is owned through the key {key}, which belongs to {holder} now",
                self.work.store,
                table.name()
            ),
            format!("decide with {holder} who keeps the key, then resume the run"),
        ))
    }

    fn insert(&self, conn: &Connection, table: &LiveTable) -> Result<u64, DriverError> {
        let (name, columns) = (quote(table.name()), column_list("", table.columns()));
        // ABORT overrides a conflict clause of the table's own, which could remove a neighbour's row.
        let sql = format!("INSERT OR ABORT INTO main.{name} ({columns}) SELECT {columns} FROM stage.{name}");
        match conn.execute(&sql, []) {
            Ok(rows) => Ok(rows as u64),
            Err(error) if is_interrupted(&error) => Err(self.too_long()),
            Err(error) => Err(refused(self.shard, conn, self.work, table, &error)),
        }
    }

    fn check_effects(&self, writer: &Writer<'_>, replaced: &Replaced) -> Result<(), DriverError> {
        if self.fault.is_some_and(Fault::blinds) {
            return Ok(());
        }
        let expected = Effects {
            inserted: self.expected.clone(),
            deleted: replaced.tables.clone(),
            other: BTreeMap::new(),
        };
        let seen = writer.watch().map(Watch::seen).unwrap_or_default();
        match seen.difference(&expected) {
            None => Ok(()),
            Some(difference) => Err(self.shard.permanent(
                format!("stray write: publishing {} was undone because {difference}", self.work.store),
                "nothing was changed; check the staging with `muster resume`, and report this if it stays",
            )),
        }
    }

    fn check_references(&self, conn: &Connection, replaced: &Replaced) -> Result<(), DriverError> {
        if let Some(error) =
            self.staged().find_map(|table| missing_parent(self.shard, conn, self.work, table))
        {
            return Err(error);
        }
        replaced.check_left_behind(self.shard, conn, self.work, self.live)
    }

    fn check_bound(&self, since: Instant) -> Result<(), DriverError> {
        let bound = self.work.writer_block_milliseconds_max.map(Duration::from_millis);
        match bound {
            Some(bound) if since.elapsed() > bound => Err(self.too_long()),
            _ => Ok(()),
        }
    }

    fn too_long(&self) -> DriverError {
        let bound = self.work.writer_block_milliseconds_max.unwrap_or_default();
        self.shard.permanent(
            format!(
                "publishing {} was undone because it blocked other writers for longer than {bound} ms",
                self.work.store
            ),
            "give the run up with `muster abandon`, then plan the site again with --accept-block for this store, or with a \
             higher writer_block_milliseconds_max of its shard",
        )
    }

    fn failed(&self, doing: &str, error: &rusqlite::Error) -> DriverError {
        if is_interrupted(error) {
            return self.too_long();
        }
        self.shard.error(&format!("publish {}: {doing}", self.work.store), error)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
