//! Epochs, claims and publish records: the rows that make two engines on one run, and two runs on one store, safe.
//!
//! # Invariants
//! - All are read and written under the shard's write lock, so that an answer holds until the transaction ends.
//! - A publish record is written by the very transaction that publishes.

use muster_engine::driver::{ClaimRefusal, DriverError, ErrorClass, PublishRecord};
use muster_types::journal::Published;
use muster_types::{Epoch, Position, RunId, StoreId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::shard::Shard;
use super::stage;
use crate::sqlite::system;

/// Raises the run's epoch row and returns what the run has published here.
pub(super) fn fence(shard: &Shard, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError> {
    let writer = shard.writer()?;
    let failed = |error: rusqlite::Error| shard.error(&format!("fence run {run}"), &error);
    writer.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    system::ensure_run_tables(&writer).map_err(failed)?;
    check_not_fenced(shard, &writer, run, epoch)?;
    writer
        .execute(
            "INSERT INTO _muster_epoch (run, epoch) VALUES (?1, ?2) ON CONFLICT (run) DO UPDATE SET epoch = ?2",
            params![run.as_str(), number(epoch)],
        )
        .map_err(failed)?;
    let records = records_of(&writer, run).map_err(failed)?;
    writer.execute_batch("COMMIT").map_err(failed)?;
    writer.keep();
    Ok(records)
}

/// Fails unless the run's epoch row is exactly `epoch`. To be called in a write transaction.
pub(super) fn check_epoch(
    shard: &Shard,
    conn: &Connection,
    run: &RunId,
    epoch: Epoch,
) -> Result<(), DriverError> {
    let found = epoch_of(conn, run).map_err(|error| shard.error("read the run's epoch", &error))?;
    match found {
        Some(found) if found == epoch => Ok(()),
        Some(found) if found > epoch => Err(fenced(shard, run, epoch, found)),
        _ => Err(shard.permanent(
            format!("run {run} has not announced epoch {epoch} here"),
            "the shard was rewound during the run, perhaps: resume the run, which announces it again",
        )),
    }
}

/// Fails if a later epoch was raised. To be called in a write transaction.
fn check_not_fenced(shard: &Shard, conn: &Connection, run: &RunId, epoch: Epoch) -> Result<(), DriverError> {
    let found = epoch_of(conn, run).map_err(|error| shard.error("read the run's epoch", &error))?;
    match found.filter(|found| *found > epoch) {
        Some(found) => Err(fenced(shard, run, epoch, found)),
        None => Ok(()),
    }
}

fn fenced(shard: &Shard, run: &RunId, epoch: Epoch, found: Epoch) -> DriverError {
    DriverError::new(
        ErrorClass::Fenced,
        format!(
            "shard `{}`: run {run} is held under epoch {found}, and this engine has {epoch}",
            shard.name()
        ),
        "another engine took the run over: follow it with `muster status`",
    )
}

/// Claims stores for a run; returns those that another run holds.
pub(super) fn claim(
    shard: &Shard,
    run: &RunId,
    epoch: Epoch,
    stores: &[StoreId],
) -> Result<Vec<ClaimRefusal>, DriverError> {
    let writer = shard.writer()?;
    let failed = |error: rusqlite::Error| shard.error(&format!("claim stores for run {run}"), &error);
    writer.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    system::ensure_run_tables(&writer).map_err(failed)?;
    check_epoch(shard, &writer, run, epoch)?;
    let mut refused = Vec::new();
    for store in stores {
        match holder(&writer, store).map_err(failed)? {
            Some(other) if other != run.as_str() => {
                let held_by = RunId::new(other.clone()).map_err(|error| {
                    shard.permanent(
                        format!("a claim on {store} names no run: {error}"),
                        "remove that claim row",
                    )
                })?;
                refused.push(ClaimRefusal { store: store.clone(), held_by });
            }
            _ => insert_claim(&writer, store, run, epoch).map_err(failed)?,
        }
    }
    writer.execute_batch("COMMIT").map_err(failed)?;
    writer.keep();
    Ok(refused)
}

fn insert_claim(conn: &Connection, store: &StoreId, run: &RunId, epoch: Epoch) -> rusqlite::Result<()> {
    conn.prepare_cached(&format!(
        "INSERT INTO _muster_claim (site, kind, run, epoch, at_ms) VALUES (?1, ?2, ?3, ?4, {now}) \
         ON CONFLICT (site, kind) DO UPDATE SET epoch = ?4",
        now = system::NOW_MS
    ))?
    .execute(params![store.site.as_str(), store.kind.as_str(), run.as_str(), number(epoch)])?;
    Ok(())
}

/// The run that claims a store.
pub(super) fn holder(conn: &Connection, store: &StoreId) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT run FROM _muster_claim WHERE site = ?1 AND kind = ?2")?
        .query_row([store.site.as_str(), store.kind.as_str()], |row| row.get(0))
        .optional()
}

/// Fails unless `run` holds the claim on `store`. To be called in a write transaction.
pub(super) fn check_claim(
    shard: &Shard,
    conn: &Connection,
    run: &RunId,
    store: &StoreId,
) -> Result<(), DriverError> {
    let held_by = holder(conn, store).map_err(|error| shard.error("read its claims", &error))?;
    match held_by {
        Some(holder) if holder == run.as_str() => Ok(()),
        Some(holder) => Err(shard.permanent(
            format!("{store} is claimed by run {holder}"),
            format!("finish or abandon run {holder} first, then resume run {run}"),
        )),
        None => Err(shard.permanent(
            format!("{store} is not claimed by run {run}"),
            "resume the run, which claims its stores again",
        )),
    }
}

/// Releases claims of a run and removes what it staged, unless another engine has taken it over; claims of other runs
/// stay.
pub(super) fn release(
    shard: &Shard,
    run: &RunId,
    epoch: Epoch,
    stores: &[StoreId],
) -> Result<(), DriverError> {
    let writer = shard.writer()?;
    let failed = |error: rusqlite::Error| shard.error(&format!("release claims of run {run}"), &error);
    writer.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    system::ensure_run_tables(&writer).map_err(failed)?;
    check_not_fenced(shard, &writer, run, epoch)?;
    for store in stores {
        writer
            .prepare_cached("DELETE FROM _muster_claim WHERE site = ?1 AND kind = ?2 AND run = ?3")
            .and_then(|mut delete| delete.execute([store.site.as_str(), store.kind.as_str(), run.as_str()]))
            .map_err(failed)?;
    }
    // Under the lock, so that no later engine has staged meanwhile; large files are removed without it.
    let aside = stage::set_aside(shard, run, stores)?;
    writer.execute_batch("COMMIT").map_err(failed)?;
    writer.keep();
    stage::remove(shard, run, &aside)
}

fn epoch_of(conn: &Connection, run: &RunId) -> rusqlite::Result<Option<Epoch>> {
    conn.prepare_cached("SELECT epoch FROM _muster_epoch WHERE run = ?1")?
        .query_row([run.as_str()], |row| row.get::<_, i64>(0))
        .optional()
        .map(|found| found.map(|epoch| Epoch(epoch.cast_unsigned())))
}

const RECORD_COLUMNS: &str = "rows, replaced, first_seq, last_seq, blocked_us, at_us, site, kind";

fn records_of(conn: &Connection, run: &RunId) -> rusqlite::Result<Vec<PublishRecord>> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {RECORD_COLUMNS} FROM _muster_publish WHERE run = ?1 ORDER BY site, kind"
    ))?;
    let mut records = Vec::new();
    let mut rows = select.query([run.as_str()])?;
    while let Some(row) = rows.next()? {
        let text = format!("site:{}/{}", row.get::<_, String>(6)?, row.get::<_, String>(7)?);
        let store = text.parse().map_err(|error: muster_types::IdError| {
            rusqlite::Error::FromSqlConversionFailure(6, rusqlite::types::Type::Text, Box::new(error))
        })?;
        records.push(PublishRecord { store, published: published(row)? });
    }
    Ok(records)
}

/// What the run has published of a store.
pub(super) fn record_of(
    conn: &Connection,
    run: &RunId,
    store: &StoreId,
) -> rusqlite::Result<Option<Published>> {
    conn.prepare_cached(&format!(
        "SELECT {RECORD_COLUMNS} FROM _muster_publish WHERE run = ?1 AND site = ?2 AND kind = ?3"
    ))?
    .query_row([run.as_str(), store.site.as_str(), store.kind.as_str()], published)
    .optional()
}

fn published(row: &rusqlite::Row<'_>) -> rusqlite::Result<Published> {
    let count = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned);
    let position = |index: usize| {
        row.get::<_, Option<i64>>(index).map(|seq| seq.map(|seq| Position(seq.cast_unsigned())))
    };
    Ok(Published {
        rows: count(0)?,
        replaced: count(1)?,
        positions: position(2)?.zip(position(3)?),
        blocked_micros: count(4)?,
        at: Timestamp::from_micros(row.get(5)?),
    })
}

/// Writes the record of a publish into its transaction.
pub(super) fn insert_record(
    conn: &Connection,
    run: &RunId,
    epoch: Epoch,
    store: &StoreId,
    published: &Published,
) -> rusqlite::Result<()> {
    let positions = published.positions.map(|(first, last)| (first.0.cast_signed(), last.0.cast_signed()));
    conn.prepare_cached(
        "INSERT INTO _muster_publish \
         (run, site, kind, epoch, rows, replaced, first_seq, last_seq, blocked_us, at_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        run.as_str(),
        store.site.as_str(),
        store.kind.as_str(),
        number(epoch),
        published.rows.cast_signed(),
        published.replaced.cast_signed(),
        positions.map(|(first, _)| first),
        positions.map(|(_, last)| last),
        published.blocked_micros.cast_signed(),
        published.at.as_micros(),
    ])?;
    Ok(())
}

/// An epoch as SQLite stores it.
pub(super) fn number(epoch: Epoch) -> i64 {
    epoch.0.cast_signed()
}
