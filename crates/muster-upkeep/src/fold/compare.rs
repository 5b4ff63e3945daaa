//! A snapshot that was read from the shard, held against what folding gives at the same position.

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::fold::{fold_tables, is_told};
use muster_plan::index::CatalogIndex;
use muster_repo::catalog::Sites;
use muster_repo::{RepoError, Repository};
use muster_types::catalog::Catalog;
use muster_types::snapshot::TableSlice;
use muster_types::{Boundary, Digest, Kind, ShardName, SiteId, SnapshotId, Timestamp};

use super::slices::{Slices, forget_snapshots};
use super::{FoldError, SITES_AT_ONCE, read};

/// A table of a site that is not what folding gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The site; none for rows without one.
    pub site: Option<SiteId>,
    /// The kind.
    pub kind: Option<Kind>,
    /// The table.
    pub table: String,
    /// Rows that the shard had.
    pub rows_read: u64,
    /// Rows that folding gives.
    pub rows_folded: u64,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.site {
            Some(site) => write!(f, "{site}")?,
            None => f.write_str("rows without a site")?,
        }
        if let Some(kind) = &self.kind {
            write!(f, ", {kind}")?;
        }
        let Self { table, rows_read, rows_folded, .. } = self;
        write!(f, ", table {table}: the shard had {rows_read} rows, and {rows_folded} are folded")?;
        if rows_read == rows_folded { f.write_str(", of other contents") } else { Ok(()) }
    }
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The snapshot that was read from the shard.
    pub snapshot: SnapshotId,
    /// Its place.
    pub boundary: Boundary,
    /// The snapshot before it, from which was folded.
    pub from: SnapshotId,
    /// Slices that were compared, by site and table.
    pub slices: u64,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// Compares the newest snapshot of `shard` with what folding from the one before it gives. None where the newest one was folded,
/// is the first, or lies where the log does not say what was there (yet).
///
/// # Errors
/// [`FoldError`].
pub async fn compare(
    repository: &Repository,
    shard: &ShardName,
    now: Timestamp,
) -> Result<Option<Compared>, FoldError> {
    let catalog = read(repository, shard, Sites::Some(BTreeSet::new()), now).await?;
    let Some(chosen) = choose(catalog, shard) else { return Ok(None) };
    let Chosen { number, snapshot, from, ref without, .. } = chosen;
    let boundary = chosen.boundary;
    let index = CatalogIndex::new(without);
    let Some(history) = index.shard(shard).and_then(|shard| shard.incarnations.get(number)) else {
        return Ok(None);
    };
    let tables = fold_tables(history, boundary);
    let before = Some(history.history.snapshots.len());
    let slices = Slices { repository, shard, number, boundary, tables: &tables, before, now };
    let sites = slices.sites().await?;
    let mut folded: BTreeMap<(Option<SiteId>, String), (u64, Digest)> = BTreeMap::new();
    for slice in slices.each(&sites, |_, _, _| Ok(())).await? {
        if slice.rows.rows > 0 {
            let key = (slice.site, tables[slice.table].def.name.clone());
            folded.insert(key, (slice.rows.rows, slice.rows.digest));
        }
    }
    let shot = history.history.snapshots.len() as u32;
    let held = held(repository, shard, (number, shot), (&sites, &chosen.names), now).await?;
    let all: BTreeSet<_> = held.keys().chain(folded.keys()).collect();
    let kind =
        |table: &str| tables.iter().find(|known| known.def.name == table).map(|table| table.kind.clone());
    let differences = all.iter().filter(|key| held.get(**key) != folded.get(**key)).map(|key| {
        let rows = |of: &BTreeMap<_, (u64, Digest)>| of.get(*key).map_or(0, |(rows, _)| *rows);
        let (site, table) = (*key).clone();
        Difference { site, kind: kind(&table), table, rows_read: rows(&held), rows_folded: rows(&folded) }
    });
    let differences = differences.collect();
    Ok(Some(Compared { snapshot, boundary, from, slices: all.len() as u64, differences }))
}

struct Chosen {
    /// Number of the history.
    number: usize,
    snapshot: SnapshotId,
    boundary: Boundary,
    from: SnapshotId,
    /// Names of its tables.
    names: Vec<String>,
    /// The catalog without it.
    without: Catalog,
}

fn choose(mut catalog: Catalog, shard: &ShardName) -> Option<Chosen> {
    let histories = &catalog.shards.get(shard)?.incarnations;
    let number = histories.len().checked_sub(1)?;
    let snapshots = &histories[number].snapshots;
    let (last, before) = (snapshots.last()?, snapshots.iter().rev().nth(1)?);
    if last.folded_from.is_some() {
        return None;
    }
    let chosen = (last.snapshot.clone(), last.boundary, before.snapshot.clone());
    let names = last.tables.iter().map(|table| table.def.name.clone()).collect();
    let before = snapshots.len() - 1;
    forget_snapshots(&mut catalog, number, before);
    let told = is_told(CatalogIndex::new(&catalog).shard(shard)?.incarnations.get(number)?, chosen.1);
    let (snapshot, boundary, from) = chosen;
    told.then_some(Chosen { number, snapshot, boundary, from, names, without: catalog })
}

/// Rows and digest of each slice that the snapshot holds.
async fn held(
    repository: &Repository,
    shard: &ShardName,
    (number, snapshot): (usize, u32),
    (sites, names): (&[SiteId], &[String]),
    now: Timestamp,
) -> Result<BTreeMap<(Option<SiteId>, String), (u64, Digest)>, RepoError> {
    let mut held = BTreeMap::new();
    let mut add = |site: Option<&SiteId>, slices: &[TableSlice]| {
        for slice in slices {
            let rows = slice.chunks.iter().map(|chunk| chunk.rows).sum();
            let name = names.get(slice.table as usize).cloned().unwrap_or_default();
            held.insert((site.cloned(), name), (rows, slice.rows_digest));
        }
    };
    let none = [[].as_slice()];
    let batches = if sites.is_empty() { none.to_vec() } else { sites.chunks(SITES_AT_ONCE).collect() };
    for batch in batches {
        let wanted = Sites::Some(batch.iter().cloned().collect());
        let catalog = read(repository, shard, wanted, now).await?;
        for trace in catalog.unowned.iter().filter(|trace| trace.incarnation as usize == number) {
            add(None, trace.snapshots.get(&snapshot).map_or(&[][..], Vec::as_slice));
        }
        for (site, traces) in &catalog.sites {
            for trace in traces.traces.iter().filter(|trace| trace.incarnation as usize == number) {
                add(Some(site), trace.snapshots.get(&snapshot).map_or(&[][..], Vec::as_slice));
            }
        }
    }
    Ok(held)
}
