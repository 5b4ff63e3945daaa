//! The stores of one site at a moment, and their rows.

use std::collections::BTreeMap;

use muster_plan::inputs::{StoreInputs, store_inputs};
use muster_plan::stores::{StoreToProbe, select_stores};
use muster_repo::{RangeLimits, RangeReader, Repository, TableRows, rows};
use muster_rows::Row;
use muster_types::catalog::Catalog;
use muster_types::incident::IncidentSite;
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::Topology;
use muster_types::{SiteId, Timestamp};

use crate::error::InspectError;

/// Most bytes of changes that one fold holds; larger change sets are folded in several passes.
pub(crate) const FOLD_BYTES_MAX: u64 = 64 << 20;

/// The stores of one site at a moment.
#[derive(Debug)]
pub struct SiteAt {
    /// The site.
    pub site: SiteId,
    /// The moment.
    pub at: Timestamp,
    /// Its stores, in the order of dependencies.
    pub stores: Vec<StoreAt>,
}

/// One store and what to read for it.
#[derive(Debug)]
pub struct StoreAt {
    /// The store, its shard and its recovery point.
    pub store: StoreToProbe,
    inputs: StoreInputs,
}

impl SiteAt {
    /// The stores that `site` had at `at`.
    ///
    /// # Errors
    /// [`InspectError::Nothing`] if it had none.
    pub fn find(
        topology: &Topology,
        catalog: &Catalog,
        site: &SiteId,
        at: Timestamp,
    ) -> Result<Self, InspectError> {
        let asked = IncidentSite {
            site: site.clone(),
            target: at,
            outage_at: None,
            before: BTreeMap::new(),
            note: None,
        };
        let found = select_stores(topology, catalog, std::slice::from_ref(&asked))?;
        let stores =
            found.into_iter().map(|store| StoreAt::read(catalog, store)).collect::<Result<Vec<_>, _>>()?;
        if stores.is_empty() {
            return Err(InspectError::Nothing { site: site.clone(), at });
        }
        Ok(Self { site: site.clone(), at, stores })
    }

    /// Every table of every store, with its store.
    pub fn tables(&self) -> impl Iterator<Item = (&StoreAt, &CapturedTable)> {
        self.stores.iter().flat_map(|store| store.tables().map(move |table| (store, table)))
    }
}

impl StoreAt {
    pub(crate) fn read(catalog: &Catalog, store: StoreToProbe) -> Result<Self, InspectError> {
        let (site, kind) = (&store.store.site, &store.store.kind);
        let point = &store.point;
        let inputs = store_inputs(catalog, site, kind, &store.source, &point.incarnation, point.boundary)?;
        Ok(Self { store, inputs })
    }

    /// Its tables at the recovery point, parents first; without those that all sites share.
    pub fn tables(&self) -> impl Iterator<Item = &CapturedTable> {
        self.inputs.tables.iter().filter(|table| table.owner != Owner::Reference)
    }

    /// Compressed bytes to read for the whole store.
    pub fn bytes(&self) -> u64 {
        self.inputs.bytes
    }

    /// Streams the rows of one table, each batch to `emit`; returns their number and digest.
    ///
    /// # Errors
    /// [`InspectError::Repository`], also for damaged objects; [`InspectError::NoTable`].
    pub async fn rows(
        &self,
        repository: &Repository,
        table: &str,
        mut emit: impl FnMut(Vec<Row>),
    ) -> Result<TableRows, InspectError> {
        let missing = || InspectError::NoTable { store: self.store.store.clone(), table: table.to_owned() };
        let (table, input) = self.table(table).ok_or_else(missing)?;
        let reader = reader(repository, [(input, self.objects())]);
        let sink = |rows| {
            emit(rows);
            std::future::ready(Ok::<(), InspectError>(()))
        };
        rows::table_rows(&reader, table, input, self.objects(), FOLD_BYTES_MAX, sink).await
    }

    pub(crate) fn objects(&self) -> &[ObjectInfo] {
        &self.inputs.objects
    }

    pub(crate) fn table(&self, name: &str) -> Option<(&CapturedTable, &TableInput)> {
        let number = self.inputs.tables.iter().position(|table| table.def.name == name)?;
        Some((&self.inputs.tables[number], self.inputs.inputs.get(number)?))
    }
}

/// A reader of all ranges that `inputs` name.
pub(crate) fn reader<'a>(
    repository: &Repository,
    inputs: impl IntoIterator<Item = (&'a TableInput, &'a [ObjectInfo])>,
) -> RangeReader {
    let mut wanted: BTreeMap<String, (ObjectInfo, Vec<(u64, u64)>)> = BTreeMap::new();
    for (input, objects) in inputs {
        let base = input.base.iter().map(|base| (base.object, &base.chunks));
        let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
        for (object, chunks) in base.chain(changes) {
            let object = &objects[object as usize];
            let entry = wanted.entry(object.key.clone()).or_insert_with(|| (object.clone(), Vec::new()));
            entry.1.extend(chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)));
        }
    }
    RangeReader::new(repository.objects().clone(), wanted.into_values().collect(), RangeLimits::default())
}
