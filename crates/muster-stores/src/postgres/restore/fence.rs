//! Epochs, claims and publish records: what keeps two engines on one run and two runs on one store apart.

use std::collections::BTreeMap;

use muster_engine::driver::{ClaimRefusal, DriverError, ErrorClass, PublishRecord, StoreWork};
use muster_types::journal::Published;
use muster_types::{Epoch, Position, RunId, StoreId, Timestamp};
use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{Client, Error, Row};

use super::shard::Shard;
use crate::postgres::system;

/// How long raising an epoch waits for one open publish transaction before it says so; the engine asks again.
const FENCE_WAIT: &str = "30s";

/// Raises the epoch, and returns what the run has published.
pub(super) async fn fence(
    shard: &Shard,
    run: &RunId,
    epoch: Epoch,
) -> Result<Vec<PublishRecord>, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error(&format!("raise the epoch of run {run}"), &error);
    system::ensure_run_tables(&*session).await.map_err(failed)?;
    session
        .batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '{FENCE_WAIT}'"))
        .await
        .map_err(failed)?;
    let raised = session
        .execute(
            "INSERT INTO muster.epoch AS e (run, epoch) VALUES ($1, $2) \
             ON CONFLICT (run) DO UPDATE SET epoch = $2 WHERE e.epoch <= $2",
            &[&run.as_str(), &number(epoch)],
        )
        .await
        .map_err(failed)?;
    if raised == 0 {
        let found = epoch_of(&session, run, "").await.map_err(failed)?.unwrap_or(epoch);
        return Err(fenced(shard, run, epoch, found));
    }
    session.batch_execute("COMMIT").await.map_err(failed)?;
    let sql = format!("{RECORD} WHERE run = $1 ORDER BY site, kind");
    let rows = session.query(&sql, &[&run.as_str()]).await.map_err(failed)?;
    let records = rows.iter().map(|row| {
        let text = format!("site:{}/{}", row.get::<_, &str>(6), row.get::<_, &str>(7));
        let store = text.parse().map_err(|error| {
            shard.permanent(format!("a publish record names no store: {error}"), "remove that row")
        })?;
        Ok(PublishRecord { store, published: published(row) })
    });
    let records = records.collect::<Result<_, DriverError>>()?;
    session.keep();
    Ok(records)
}

/// Fails unless the run's epoch row is exactly `epoch`, and keeps it so until the transaction ends.
pub(super) async fn check_epoch(shard: &Shard, client: &Client, work: &StoreWork) -> Result<(), DriverError> {
    let found = epoch_of(client, &work.run, "FOR SHARE").await;
    match found.map_err(|error| shard.error("read the run's epoch", &error))? {
        Some(found) if found == work.epoch => Ok(()),
        Some(found) if found > work.epoch => Err(fenced(shard, &work.run, work.epoch, found)),
        _ => Err(shard.permanent(
            format!("run {} has not announced epoch {} here", work.run, work.epoch),
            "the shard was rewound during the run, perhaps: resume the run, which announces it again",
        )),
    }
}

pub(super) async fn epoch_of(client: &Client, run: &RunId, lock: &str) -> Result<Option<Epoch>, Error> {
    let sql = format!("SELECT epoch FROM muster.epoch WHERE run = $1 {lock}");
    let found = client.query_typed_opt(&sql, &[(&run.as_str(), Type::TEXT)]).await?;
    Ok(found.map(|row| Epoch(row.get::<_, i64>(0).cast_unsigned())))
}

pub(super) fn fenced(shard: &Shard, run: &RunId, epoch: Epoch, found: Epoch) -> DriverError {
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
pub(super) async fn claim(
    shard: &Shard,
    run: &RunId,
    epoch: Epoch,
    stores: &[StoreId],
) -> Result<Vec<ClaimRefusal>, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error(&format!("claim stores for run {run}"), &error);
    shard.ensure_run_tables(&session).await.map_err(failed)?;
    let (sites, kinds) = columns(stores);
    session.batch_execute("BEGIN").await.map_err(failed)?;
    let found = epoch_of(&session, run, "FOR SHARE").await.map_err(failed)?;
    match found {
        Some(found) if found == epoch => {}
        found => return Err(fenced(shard, run, epoch, found.unwrap_or_default())),
    }
    // In one order, so that two runs never wait for each other in a circle.
    let rows = session
        .query(
            "INSERT INTO muster.claim AS c (site, kind, run, epoch) \
             SELECT site, kind, $3, $4 FROM unnest($1::text[], $2::text[]) s(site, kind) ORDER BY site, kind \
             ON CONFLICT (site, kind) DO UPDATE SET epoch = CASE WHEN c.run = $3 THEN $4 ELSE c.epoch END \
             RETURNING site, kind, run",
            &[&sites, &kinds, &run.as_str(), &number(epoch)],
        )
        .await
        .map_err(failed)?;
    session.batch_execute("COMMIT").await.map_err(failed)?;
    let mut refused = Vec::new();
    for row in rows.iter().filter(|row| row.get::<_, &str>(2) != run.as_str()) {
        let at = |store: &&StoreId| {
            store.site.as_str() == row.get::<_, &str>(0) && store.kind.as_str() == row.get::<_, &str>(1)
        };
        let Some(store) = stores.iter().find(at) else { continue };
        let held_by = RunId::new(row.get::<_, String>(2)).map_err(|error| {
            shard.permanent(format!("a claim on {store} names no run: {error}"), "remove that claim row")
        })?;
        refused.push(ClaimRefusal { store: store.clone(), held_by });
    }
    session.keep();
    Ok(refused)
}

fn columns(stores: &[StoreId]) -> (Vec<&str>, Vec<&str>) {
    stores.iter().map(|store| (store.site.as_str(), store.kind.as_str())).unzip()
}

/// Fails unless `run` holds the claim on `store`, and keeps it so until the transaction ends.
pub(super) async fn check_claim(shard: &Shard, client: &Client, work: &StoreWork) -> Result<(), DriverError> {
    let (run, store) = (&work.run, &work.store);
    let found = client
        .query_typed_opt(
            "SELECT run FROM muster.claim WHERE site = $1 AND kind = $2 FOR SHARE",
            &[(&store.site.as_str(), Type::TEXT), (&store.kind.as_str(), Type::TEXT)],
        )
        .await
        .map_err(|error| shard.error("read its claims", &error))?;
    match found.as_ref().map(|row| row.get::<_, &str>(0)) {
        Some(holder) if holder == run.as_str() => Ok(()),
        holder => Err(not_claimed(shard, work, holder)),
    }
}

fn not_claimed(shard: &Shard, work: &StoreWork, holder: Option<&str>) -> DriverError {
    let (run, store) = (&work.run, &work.store);
    match holder {
        Some(holder) => shard.permanent(
            format!("{store} is claimed by run {holder}"),
            format!("finish or abandon run {holder} first, then resume run {run}"),
        ),
        None => shard.permanent(
            format!("{store} is not claimed by run {run}"),
            "resume the run, which claims its stores again",
        ),
    }
}

/// Releases claims of a run and forgets what it staged, unless another engine has taken it over; claims of other runs
/// stay.
pub(super) async fn release(
    shard: &Shard,
    client: &Client,
    (run, epoch): (&RunId, Epoch),
    stores: &[StoreId],
) -> Result<(), DriverError> {
    let (sites, kinds) = columns(stores);
    // One statement: an engine that is frozen holds the epoch's row for nobody.
    let row = client
        .query_typed_one(
            "WITH held AS (SELECT epoch FROM muster.epoch WHERE run = $3 FOR SHARE), \
             released AS (DELETE FROM muster.claim c USING unnest($1::text[], $2::text[]) s(site, kind) \
                 WHERE c.site = s.site AND c.kind = s.kind AND c.run = $3 \
                 AND NOT EXISTS (SELECT FROM held WHERE epoch > $4)), \
             forgotten AS (DELETE FROM muster.staged g USING unnest($1::text[], $2::text[]) s(site, kind) \
                 WHERE g.site = s.site AND g.kind = s.kind AND g.run = $3 \
                 AND NOT EXISTS (SELECT FROM held WHERE epoch > $4)) \
             SELECT max(epoch) FROM held",
            &[
                (&sites, Type::TEXT_ARRAY),
                (&kinds, Type::TEXT_ARRAY),
                (&run.as_str(), Type::TEXT),
                (&number(epoch), Type::INT8),
            ],
        )
        .await
        .map_err(|error| shard.error(&format!("release claims of run {run}"), &error))?;
    let found = row.get::<_, Option<i64>>(0).map(|found| Epoch(found.cast_unsigned()));
    match found.filter(|found| *found > epoch) {
        Some(found) => Err(fenced(shard, run, epoch, found)),
        None => Ok(()),
    }
}

/// The end of the log stands in for the last position, which the record cannot hold.
const RECORD: &str = "SELECT rows, replaced, first_lsn, pg_current_wal_insert_lsn(), blocked_us, \
    (extract(epoch FROM at) * 1000000)::bigint, site, kind FROM muster.published";

/// What the run has published of a store.
pub(super) async fn record_of(client: &Client, work: &StoreWork) -> Result<Option<Published>, Error> {
    let sql = format!("{RECORD} WHERE run = $1 AND site = $2 AND kind = $3");
    let store = &work.store;
    let found = client
        .query_typed_opt(
            &sql,
            &[
                (&work.run.as_str(), Type::TEXT),
                (&store.site.as_str(), Type::TEXT),
                (&store.kind.as_str(), Type::TEXT),
            ],
        )
        .await?;
    Ok(found.as_ref().map(published))
}

fn published(row: &Row) -> Published {
    let count = |index: usize| row.get::<_, i64>(index).cast_unsigned();
    let first: Option<PgLsn> = row.get(2);
    let last: PgLsn = row.get(3);
    Published {
        rows: count(0),
        replaced: count(1),
        positions: first.map(|first| (Position(first.into()), Position(last.into()))),
        blocked_micros: count(4),
        at: Timestamp::from_micros(row.get(5)),
    }
}

/// Waits for an earlier attempt at publishing the store that the server is still busy with, and keeps later ones waiting
/// until the transaction ends: the record then says what became of it.
pub(super) async fn await_others(client: &Client, work: &StoreWork) -> Result<(), Error> {
    let step = publish_lock(work);
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    client.query_typed_one(sql, &[(&step, Type::TEXT)]).await.map(drop)
}

fn publish_lock(work: &StoreWork) -> String {
    format!("muster publish {} {}", work.run, work.store)
}

/// Writes the record of a publish into its transaction; its first position is the end of the log now, and absent where
/// nothing changed.
pub(super) async fn insert_record(
    client: &Client,
    work: &StoreWork,
    published: &Published,
) -> Result<(Option<PgLsn>, Timestamp), Error> {
    let changed = published.rows + published.replaced > 0;
    let row = client
        .query_typed_one(
            "INSERT INTO muster.published (run, site, kind, epoch, rows, replaced, first_lsn, blocked_us, at) \
             VALUES ($1, $2, $3, $4, $5, $6, CASE WHEN $8 THEN pg_current_wal_insert_lsn() END, $7, clock_timestamp()) \
             RETURNING first_lsn, (extract(epoch FROM at) * 1000000)::bigint",
            &[
                (&work.run.as_str(), Type::TEXT),
                (&work.store.site.as_str(), Type::TEXT),
                (&work.store.kind.as_str(), Type::TEXT),
                (&number(work.epoch), Type::INT8),
                (&published.rows.cast_signed(), Type::INT8),
                (&published.replaced.cast_signed(), Type::INT8),
                (&published.blocked_micros.cast_signed(), Type::INT8),
                (&changed, Type::BOOL),
            ],
        )
        .await?;
    Ok((row.get(0), Timestamp::from_micros(row.get(1))))
}

/// The stores of `works` that the run does not hold a claim on, by index; claims are held until the transaction ends.
pub(super) async fn unclaimed(
    shard: &Shard,
    client: &Client,
    works: &[&StoreWork],
) -> Result<Vec<(usize, DriverError)>, DriverError> {
    let Some(first) = works.first() else { return Ok(Vec::new()) };
    let stores: Vec<StoreId> = works.iter().map(|work| work.store.clone()).collect();
    let (sites, kinds) = columns(&stores);
    // In one order, so that two transactions never wait for each other in a circle.
    let rows = client
        .query_typed(
            "SELECT c.site, c.kind, c.run FROM muster.claim c WHERE (c.site, c.kind) IN \
             (SELECT * FROM unnest($1::text[], $2::text[])) ORDER BY c.site, c.kind FOR SHARE",
            &[(&sites, Type::TEXT_ARRAY), (&kinds, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(|error| shard.error("read its claims", &error))?;
    let held: BTreeMap<(&str, &str), &str> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let refuse = |(index, work): (usize, &&StoreWork)| {
        let holder = held.get(&(work.store.site.as_str(), work.store.kind.as_str())).copied();
        (holder != Some(first.run.as_str())).then(|| (index, not_claimed(shard, work, holder)))
    };
    Ok(works.iter().enumerate().filter_map(refuse).collect())
}

/// What the run has published of stores, in their order.
pub(super) async fn records_of(
    client: &Client,
    works: &[&StoreWork],
) -> Result<Vec<Option<Published>>, Error> {
    let Some(first) = works.first() else { return Ok(Vec::new()) };
    let stores: Vec<StoreId> = works.iter().map(|work| work.store.clone()).collect();
    let (sites, kinds) = columns(&stores);
    let sql =
        format!("{RECORD} WHERE run = $1 AND (site, kind) IN (SELECT * FROM unnest($2::text[], $3::text[]))");
    let rows = client
        .query_typed(
            &sql,
            &[(&first.run.as_str(), Type::TEXT), (&sites, Type::TEXT_ARRAY), (&kinds, Type::TEXT_ARRAY)],
        )
        .await?;
    let found: BTreeMap<(&str, &str), &Row> =
        rows.iter().map(|row| ((row.get(6), row.get(7)), row)).collect();
    let of = |work: &&StoreWork| {
        let row = found.get(&(work.store.site.as_str(), work.store.kind.as_str()))?;
        Some(published(row))
    };
    Ok(works.iter().map(of).collect())
}

/// [`await_others`] for several stores.
pub(super) async fn await_others_of(client: &Client, works: &[&StoreWork]) -> Result<(), Error> {
    let mut steps: Vec<String> = works.iter().map(|work| publish_lock(work)).collect();
    // In one order, so that two transactions never wait for each other in a circle.
    steps.sort();
    client
        .query_typed(
            "SELECT pg_advisory_xact_lock(hashtextextended(step, 0)) FROM unnest($1::text[]) step",
            &[(&steps, Type::TEXT_ARRAY)],
        )
        .await
        .map(drop)
}

/// [`insert_record`] for several stores.
pub(super) async fn insert_records(
    client: &Client,
    records: &[(&StoreWork, Published)],
) -> Result<(PgLsn, Timestamp), Error> {
    let column = |of: fn(&StoreWork) -> &str| records.iter().map(|(work, _)| of(work)).collect::<Vec<&str>>();
    let (sites, kinds) = (column(|work| work.store.site.as_str()), column(|work| work.store.kind.as_str()));
    let rows: Vec<i64> = records.iter().map(|(_, published)| published.rows.cast_signed()).collect();
    let (run, epoch, blocked) = match records {
        [(work, published), ..] => (work.run.as_str(), number(work.epoch), published.blocked_micros),
        [] => ("", 0, 0),
    };
    let row = client
        .query_typed_one(
            "WITH now AS MATERIALIZED (SELECT pg_current_wal_insert_lsn() AS lsn, clock_timestamp() AS at), \
             noted AS (INSERT INTO muster.published (run, site, kind, epoch, rows, replaced, first_lsn, blocked_us, at) \
             SELECT $1, site, kind, $2, rows, 0, CASE WHEN rows > 0 THEN lsn END, $3, at \
             FROM now, unnest($4::text[], $5::text[], $6::bigint[]) s(site, kind, rows)) \
             SELECT lsn, (extract(epoch FROM at) * 1000000)::bigint FROM now",
            &[
                (&run, Type::TEXT),
                (&epoch, Type::INT8),
                (&blocked.cast_signed(), Type::INT8),
                (&sites, Type::TEXT_ARRAY),
                (&kinds, Type::TEXT_ARRAY),
                (&rows, Type::INT8_ARRAY),
            ],
        )
        .await?;
    Ok((row.get(0), Timestamp::from_micros(row.get(1))))
}

/// An epoch as PostgreSQL stores it.
pub(super) fn number(epoch: Epoch) -> i64 {
    epoch.0.cast_signed()
}
