//! The live state of stores: rows, definitions, claims. Reads only.
//!
//! Thousands of stores are looked at together: each live table is joined to all their sites once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_engine::driver::{DriverError, StoreProbe};
use muster_types::plan::LiveStore;
use muster_types::{Kind, SiteId, StoreId};
use tokio_postgres::{Client, Error};

use super::compare::compare;
use super::fitness::not_carried;
use super::live::{KindTable, definitions, kind_tables};
use super::shard::{Catalog, Shard};
use super::{migrate, privileges, proof, recreate};

/// Looks at stores in one read transaction.
pub(super) async fn probe(shard: &Shard, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error("look at its stores", &error);
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let catalog = Catalog::read(&session).await.map_err(failed)?;
    let unwritable = unwritable(&session).await.map_err(failed)?;
    let claims = claims(&session).await.map_err(failed)?;
    let mut counts: HashMap<&Kind, HashMap<SiteId, u64>> = HashMap::new();
    let mut lacking: HashMap<&Kind, Option<String>> = HashMap::new();
    let mut lost: HashMap<&Kind, Vec<String>> = HashMap::new();
    let mut found = Vec::with_capacity(stores.len());
    for probe in stores {
        let kind = &probe.store.kind;
        if !counts.contains_key(kind) {
            let of_kind = || stores.iter().filter(|other| &other.store.kind == kind);
            let sites: BTreeSet<&SiteId> = of_kind().map(|other| &other.store.site).collect();
            let tables = kind_tables(shard, &catalog, kind, &probe.tables, Some(&probe.store.site));
            let tables: Vec<KindTable<'_>> = tables.into_iter().filter(|table| !is_own(table)).collect();
            lacking.insert(kind, privileges::missing(&session, &tables).await.map_err(failed)?);
            let not_carried = not_carried(&session, shard, &catalog, Some(kind)).await;
            lost.insert(kind, not_carried.map_err(failed)?);
            counts.insert(kind, count(&session, &tables, &sites).await.map_err(failed)?);
        }
        let rows = counts.get(kind).and_then(|counts| counts.get(&probe.store.site));
        let own = own(shard, &session, &catalog, probe).await.map_err(failed)?;
        let differences = |table: &muster_types::table::CapturedTable| {
            let now = catalog.tables.get(&table.def.name);
            let mut found = compare(shard.tables(), table, now);
            migrate::foresee(shard, &table.def, now, &mut found);
            found.texts()
        };
        found.push(LiveStore {
            rows: rows.copied().unwrap_or(0) + own.rows,
            definitions: Some(definitions(&catalog, &probe.tables)),
            differences: probe
                .tables
                .iter()
                .flat_map(differences)
                .chain(lost.get(kind).into_iter().flatten().cloned())
                .collect(),
            claimed_by: claims.get(&probe.store).cloned(),
            full_proof_lacks: proof::lacking(shard, &catalog),
            unwritable: unwritable.clone().or_else(|| lacking.get(kind).cloned().flatten()).or(own.lacking),
        });
    }
    session.batch_execute("COMMIT").await.map_err(failed)?;
    session.keep();
    Ok(found)
}

/// What a store has in tables of its site's own.
struct Own {
    rows: u64,
    lacking: Option<String>,
}

fn is_own(table: &KindTable<'_>) -> bool {
    table.way.as_ref().is_some_and(|way| way.site().is_some())
}

async fn own(shard: &Shard, client: &Client, catalog: &Catalog, probe: &StoreProbe) -> Result<Own, Error> {
    let site = &probe.store.site;
    let tables = kind_tables(shard, catalog, &probe.store.kind, &probe.tables, Some(site));
    let tables: Vec<KindTable<'_>> = tables.into_iter().filter(is_own).collect();
    let mut lacking = recreate::missing(client, catalog, &probe.tables).await?;
    if tables.is_empty() {
        return Ok(Own { rows: 0, lacking });
    }
    let counts = count(client, &tables, &BTreeSet::from([site])).await?;
    lacking = lacking.or(privileges::missing(client, &tables).await?);
    Ok(Own { rows: counts.get(site).copied().unwrap_or(0), lacking })
}

async fn count(
    client: &Client,
    tables: &[KindTable<'_>],
    sites: &BTreeSet<&SiteId>,
) -> Result<HashMap<SiteId, u64>, Error> {
    let mut counts = HashMap::new();
    for table in tables {
        let Some(way) = &table.way else { continue };
        let sql = format!(
            "SELECT {tenant}::text, count(*) FROM {live} t{joins} WHERE {comparable} = ANY ({sites}) GROUP BY 1",
            tenant = way.tenant(),
            live = table.now.rows_of(),
            joins = way.joins(""),
            comparable = way.comparable_tenant(),
            sites = way.site_array(sites.iter().copied()),
        );
        for row in client.query(&sql, &[]).await? {
            if let Ok(site) = SiteId::new(row.get::<_, String>(0)) {
                *counts.entry(site).or_default() += row.get::<_, i64>(1).cast_unsigned();
            }
        }
    }
    Ok(counts)
}

/// Why the shard does not take a publish, in words.
pub(super) async fn unwritable(client: &Client) -> Result<Option<String>, Error> {
    let row = client
        .query_one(
            "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean, current_user::text, \
             current_setting('server_version_num')::int, \
             (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
            &[],
        )
        .await?;
    if row.get(0) {
        return Ok(Some("it is a standby: point the topology at the primary".into()));
    }
    if row.get(1) {
        return Ok(Some("default_transaction_read_only is on".into()));
    }
    let may_set = if row.get::<_, bool>(4) {
        true
    } else if row.get::<_, i32>(3) >= 150_000 {
        let sql = "SELECT has_parameter_privilege('session_replication_role', 'SET')";
        client.query_one(sql, &[]).await?.get(0)
    } else {
        false
    };
    Ok((!may_set).then(|| {
        format!(
            "role `{}` may not set session_replication_role: GRANT SET ON PARAMETER session_replication_role TO it \
             (before version 15 only a superuser may)",
            row.get::<_, &str>(2)
        )
    }))
}

/// Stores that open runs hold, with the runs.
pub(in crate::postgres) async fn claims(client: &Client) -> Result<BTreeMap<StoreId, String>, Error> {
    let there = client.query_one("SELECT to_regclass('muster.claim') IS NOT NULL", &[]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(BTreeMap::new());
    }
    let rows = client.query("SELECT site, kind, run FROM muster.claim", &[]).await?;
    let claim = |row: &tokio_postgres::Row| {
        let text = format!("site:{}/{}", row.get::<_, &str>(0), row.get::<_, &str>(1));
        Some((text.parse().ok()?, row.get(2)))
    };
    Ok(rows.iter().filter_map(claim).collect())
}
