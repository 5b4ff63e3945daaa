//! All rows of a shard at a recovery point, site after site.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use muster_plan::fold::{FoldInputs, FoldSlice, fold_inputs};
use muster_plan::index::CatalogIndex;
use muster_repo::catalog::{self, Sites};
use muster_repo::{RangeLimits, RangeReader, RepoError, Repository, TableRows, rows};
use muster_rows::Row;
use muster_types::catalog::Catalog;
use muster_types::table::CapturedTable;
use muster_types::{Boundary, ShardName, SiteId, Timestamp};

use super::{FOLD_BYTES, FoldError, SITES_AT_ONCE, TABLES_AHEAD, read};

/// Where the rows are read.
pub(super) struct Slices<'a> {
    pub(super) repository: &'a Repository,
    pub(super) shard: &'a ShardName,
    /// Number of the history.
    pub(super) number: usize,
    pub(super) boundary: Boundary,
    /// The definitions at the point.
    pub(super) tables: &'a [CapturedTable],
    /// Snapshots from this number on are not used.
    pub(super) before: Option<usize>,
    pub(super) now: Timestamp,
}

/// What was read of one slice.
pub(super) struct SliceRows {
    pub(super) site: Option<SiteId>,
    /// Index of the definition.
    pub(super) table: usize,
    pub(super) rows: TableRows,
}

impl Slices<'_> {
    /// The sites that ever were in the shard.
    pub(super) async fn sites(&self) -> Result<Vec<SiteId>, RepoError> {
        let found = catalog::list_sites(self.repository, Some(std::slice::from_ref(self.shard))).await?;
        Ok(found.into_keys().collect())
    }

    /// Gives the rows without a site and then those of `sites`, which ascend, batch by batch; what was read of each slice.
    pub(super) async fn each(
        &self,
        sites: &[SiteId],
        mut emit: impl FnMut(Option<&SiteId>, usize, &[Row]) -> Result<(), RepoError>,
    ) -> Result<Vec<SliceRows>, FoldError> {
        let mut done = Vec::new();
        let mut batches: Vec<&[SiteId]> = sites.chunks(SITES_AT_ONCE).collect();
        if batches.is_empty() {
            batches.push(&[]);
        }
        for (number, batch) in batches.into_iter().enumerate() {
            let inputs = self.inputs(batch, number == 0).await?;
            self.batch(&inputs, &mut emit, &mut done).await?;
        }
        Ok(done)
    }

    async fn inputs(&self, sites: &[SiteId], unowned: bool) -> Result<FoldInputs, FoldError> {
        let wanted: BTreeSet<SiteId> = sites.iter().cloned().collect();
        let mut catalog = read(self.repository, self.shard, Sites::Some(wanted), self.now).await?;
        if let Some(before) = self.before {
            forget_snapshots(&mut catalog, self.number, before);
        }
        let index = CatalogIndex::new(&catalog);
        let of = (self.shard, self.number);
        fold_inputs(&index, of, self.boundary, self.tables, unowned)
            .map_err(|error| FoldError::Unknown { shard: self.shard.clone(), error })
    }

    async fn batch(
        &self,
        inputs: &FoldInputs,
        emit: &mut impl FnMut(Option<&SiteId>, usize, &[Row]) -> Result<(), RepoError>,
        done: &mut Vec<SliceRows>,
    ) -> Result<(), FoldError> {
        let reader = reader(self.repository, inputs);
        let open = |slice: &FoldSlice| {
            let table = slice.input.table as usize;
            let stream = rows::open(&reader, &self.tables[table], &slice.input, &inputs.objects, FOLD_BYTES);
            (slice.site.clone(), table, stream)
        };
        let mut opened = futures::stream::iter(&inputs.slices)
            .map(|slice| std::future::ready(open(slice)))
            .buffered(TABLES_AHEAD);
        while let Some((site, table, mut stream)) = opened.next().await {
            while let Some(batch) = stream.next().await {
                emit(site.as_ref(), table, &batch)?;
            }
            let rows = stream.finish().await?;
            done.push(SliceRows { site, table, rows });
        }
        Ok(())
    }
}

/// A reader of all that `inputs` name.
fn reader(repository: &Repository, inputs: &FoldInputs) -> RangeReader {
    let mut wanted: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for FoldSlice { input, .. } in &inputs.slices {
        let base = input.base.iter().map(|base| (base.object, &base.chunks));
        let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
        for (object, chunks) in base.chain(changes) {
            let ranges = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes));
            wanted.entry(object).or_default().extend(ranges);
        }
    }
    let named = wanted.into_iter().map(|(object, ranges)| (inputs.objects[object as usize].clone(), ranges));
    RangeReader::new(Arc::clone(repository.objects()), named.collect(), RangeLimits::default())
}

/// Takes the snapshots from number `before` on out of history `number` of the one shard of a catalog.
pub(super) fn forget_snapshots(catalog: &mut Catalog, number: usize, before: usize) {
    let histories = catalog.shards.values_mut().filter_map(|shard| shard.incarnations.get_mut(number));
    histories.for_each(|history| history.snapshots.truncate(before));
    let traces = catalog.sites.values_mut().flat_map(|site| &mut site.traces).chain(&mut catalog.unowned);
    for trace in traces.filter(|trace| trace.incarnation as usize == number) {
        trace.snapshots.retain(|snapshot, _| (*snapshot as usize) < before);
    }
}
