//! What proves that neighbours are untouched: digests of everything else, at a known place in the log.
//!
//! # Invariants
//! - What is read is one exported state, whose position is known.
//! - Logged deletes and updates must carry whole old rows, else the log cannot be held against the digests.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use muster_engine::driver::DriverError;
use muster_rows::{Class, RowBuilder, RowsDigest};
use muster_types::journal::NeighbourDigest;
use muster_types::table::CapturedTable;
use muster_types::{Kind, StoreId};
use tokio_postgres::{Client, Error};

use super::copy::Rows;
use super::live::kind_tables;
use super::owner::column_list;
use super::shard::{Catalog, Shard};
use crate::postgres::connect::{ConnectError, ExportError, ExportedState};
use crate::postgres::schema::{LiveTable, literal};

/// How long a slot may wait for transactions that are open when it is made: as long as a publish of others may take,
/// with room.
const SLOT_WAIT: Duration = Duration::from_secs(120);

/// Digests every row of declared tables that belongs to none of `excluded`.
pub(super) async fn neighbour_digest(
    shard: &Shard,
    excluded: &BTreeSet<StoreId>,
) -> Result<NeighbourDigest, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error("digest its neighbours", &error);
    let catalog = shard.catalog(&session).await?;
    require_full_rows(shard, &catalog)?;
    // Open until the snapshot has been taken over.
    let exported = export(shard).await?;
    let snapshot = literal(&exported.name);
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}");
    session.batch_execute(&begin).await.map_err(failed)?;
    let position = exported.position;
    // Taken over: the slot is temporary and goes with its session.
    drop(exported);
    let catalog = Catalog::read(&session).await.map_err(failed)?;
    require_full_rows(shard, &catalog)?;
    let (mut digest, mut rows) = (RowsDigest::new(), 0);
    for kind in shard.tables().kinds() {
        let sites: HashSet<&[u8]> = excluded
            .iter()
            .filter(|store| &store.kind == kind)
            .map(|store| store.site.as_str().as_bytes())
            .collect();
        rows += digest_kind(shard, &session, &catalog, kind, &sites, &mut digest).await?;
    }
    session.batch_execute("COMMIT").await.map_err(failed)?;
    session.keep();
    Ok(NeighbourDigest { position, rows, state: digest.to_hex(), digest: digest.finish() })
}

async fn digest_kind(
    shard: &Shard,
    client: &Client,
    catalog: &Catalog,
    kind: &Kind,
    excluded: &HashSet<&[u8]>,
    digest: &mut RowsDigest,
) -> Result<u64, DriverError> {
    let none: &[CapturedTable] = &[];
    let (mut builder, mut count) = (RowBuilder::new(), 0);
    for table in kind_tables(shard, catalog, kind, none, None) {
        let columns = column_list("t", table.now.def.stored_columns().map(|column| column.name.as_str()));
        let (site, joins) = match &table.way {
            Some(way) => (format!("{}::text", way.tenant()), way.joins("LEFT")),
            None => ("NULL".to_owned(), String::new()),
        };
        let sql = format!("SELECT {site}, {columns} FROM {} t{joins}", table.now.rows_of());
        let mut found = Rows::of(shard, client, "digest its neighbours", &sql).await?;
        while let Some(row) = found.next().await? {
            let mut fields = row.fields();
            // A row whose site cannot be told is a neighbour.
            let own = fields.next().filter(|site| site.class == Class::Text);
            if own.is_some_and(|site| excluded.contains(site.bytes)) {
                continue;
            }
            for field in fields {
                builder.push(field.class, field.bytes);
            }
            digest.add(table.name(), &builder.take());
            count += 1;
        }
    }
    Ok(count)
}

fn require_full_rows(shard: &Shard, catalog: &Catalog) -> Result<(), DriverError> {
    match lacking(shard, catalog) {
        None => Ok(()),
        Some(statements) => Err(shard.permanent(
            "the full proof of neighbours needs whole old rows in the log, and some tables log only their keys",
            format!("run there, or plan without --proof full: {statements}"),
        )),
    }
}

/// The statements that let the log carry whole old rows; none where it does.
pub(super) fn lacking(shard: &Shard, catalog: &Catalog) -> Option<String> {
    let declared = catalog.tables.values().filter(|table| shard.tables().get(&table.def.name).is_some());
    let short: Vec<String> =
        declared.filter(|table| !table.logs_full_rows()).flat_map(full_identity_sql).collect();
    (!short.is_empty()).then(|| short.join("; "))
}

fn full_identity_sql(table: &LiveTable) -> Vec<String> {
    let own = (!table.partitioned).then(|| table.qualified());
    let parts = table
        .partitions
        .iter()
        .map(|partition| crate::postgres::schema::qualified(&partition.schema, &partition.name));
    own.into_iter().chain(parts).map(|name| format!("ALTER TABLE {name} REPLICA IDENTITY FULL")).collect()
}

async fn export(shard: &Shard) -> Result<ExportedState, DriverError> {
    let config = shard.config()?;
    ExportedState::take(config, SLOT_WAIT).await.map_err(|error| match error {
        ExportError::Connect(error) => shard.connect_error(&error),
        ExportError::Waited(wait) => shard.transient(
            format!(
                "a snapshot waits for a transaction that has been open for {} s and longer",
                wait.as_secs()
            ),
            "look for it in pg_stat_activity (xact_start) and end it; the step is tried again",
        ),
        ExportError::Answer(error) => shard.connect_error(&ConnectError::of_replication(config, &error)),
        ExportError::Unclear => shard.permanent(
            "the server's answer to CREATE_REPLICATION_SLOT is not understood",
            "check that it is PostgreSQL 15 or later",
        ),
    })
}
