//! What a whole shard at a recovery point is read from: its last snapshot, and the log behind it.
//!
//! # Invariants
//! - Rows without a site come first, then sites ascend: the order in which a snapshot is written.
//! - The definitions are those at the point. A table whose rows there are not known makes the whole unknown.

use std::collections::BTreeMap;

use muster_types::catalog::SiteTrace;
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::table::CapturedTable;
use muster_types::{Boundary, ShardName, SiteId, Timestamp};

use crate::index::{CatalogIndex, IncarnationIndex};
use crate::inputs::{InputError, Objects, SiteTables, fill, site_tables};

/// The rows of one site in one table.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldSlice {
    /// The site; none for rows without one.
    pub site: Option<SiteId>,
    /// What to read; `table` is an index into the definitions.
    pub input: TableInput,
}

/// What to read for the sites of a catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoldInputs {
    /// In the order of a snapshot.
    pub slices: Vec<FoldSlice>,
    /// Objects that the slices refer to.
    pub objects: Vec<ObjectInfo>,
}

/// The last restorable recovery point that no segment reaches across, at or before `at` if given. Its time is not before that of
/// anything up to it.
pub fn fold_point(history: &IncarnationIndex<'_>, at: Option<Timestamp>) -> Option<Boundary> {
    let point = match at {
        Some(at) => history.points.last_at_or_before(at),
        None => history.points.last_upto(history.history.segments.last()?.boundary),
    };
    history.last_whole(point?)
}

/// Whether the log says what stood at `boundary`, a snapshot's: up to it nothing is missing, and no table was read again whole
/// around it.
pub fn is_told(history: &IncarnationIndex<'_>, boundary: Boundary) -> bool {
    let end = history.history.segments.last().map(|segment| segment.boundary);
    let covered = end.is_some_and(|end| end.position >= boundary.position && end.at >= boundary.at);
    let exact = history
        .split_at(boundary)
        .is_none_or(|segment| !history.history.segments[segment].recovery_commits().is_empty());
    let last = history.points.all.partition_point(|point| point.position <= boundary.position);
    let known = last.checked_sub(1).map(|last| history.points.all[last]);
    covered
        && exact
        && known.is_some()
        && history.points.last_upto(boundary).map(|point| point.position) == known.map(|point| point.position)
}

/// All definitions at `boundary`, by name.
pub fn fold_tables(history: &IncarnationIndex<'_>, boundary: Boundary) -> Vec<CapturedTable> {
    let tables = history.schema_at(boundary).into_iter().flat_map(|schema| schema.all());
    let by_name: BTreeMap<&str, &CapturedTable> =
        tables.map(|(_, table)| (table.def.name.as_str(), table)).collect();
    by_name.into_values().cloned().collect()
}

/// What to read of history number `number` of `shard` for the sites of the index's catalog, and with `unowned` for the rows without
/// one. `tables` are those of
/// [`fold_tables`].
///
/// # Errors
/// [`InputError`], of the first table whose rows at `boundary` are not known.
pub fn fold_inputs(
    index: &CatalogIndex<'_>,
    (shard, number): (&ShardName, usize),
    boundary: Boundary,
    tables: &[CapturedTable],
    unowned: bool,
) -> Result<FoldInputs, InputError> {
    let history = index.shard(shard).and_then(|shard| shard.incarnations.get(number));
    let Some(history) = history else { return Ok(FoldInputs::default()) };
    let Some(schema) = history.schema_at(boundary) else { return Ok(FoldInputs::default()) };
    let mut uncaptured = schema.kinds().flat_map(|kind| history.uncaptured_at(kind, boundary));
    if let Some(table) = uncaptured.next() {
        return Err(InputError::uncaptured(history, table, boundary));
    }
    let by_name: BTreeMap<&str, u32> =
        (0..).zip(tables).map(|(number, table)| (table.def.name.as_str(), number)).collect();
    let mut numbers = BTreeMap::new();
    for (at, table) in schema.all() {
        if let Some(number) = by_name.get(table.def.name.as_str()) {
            numbers.insert(at.table, (*number, at.version));
        }
    }
    let is_here = |trace: &&SiteTrace| trace.incarnation as usize == number && trace.shard == *shard;
    let mut found = Found { history, boundary, numbers, slices: Vec::new(), objects: Objects::default() };
    for trace in index.catalog.unowned.iter().filter(|_| unowned).filter(is_here) {
        found.add(None, trace)?;
    }
    for (site, traces) in &index.catalog.sites {
        for trace in traces.traces.iter().filter(is_here) {
            found.add(Some(site), trace)?;
        }
    }
    Ok(FoldInputs { slices: found.slices, objects: found.objects.list })
}

struct Found<'i, 'a> {
    history: &'i IncarnationIndex<'a>,
    boundary: Boundary,
    /// By number of the table in the history: its number and its version there.
    numbers: BTreeMap<u32, (u32, u32)>,
    slices: Vec<FoldSlice>,
    objects: Objects,
}

impl Found<'_, '_> {
    fn add(&mut self, site: Option<&SiteId>, trace: &SiteTrace) -> Result<(), InputError> {
        let states: SiteTables<'_> = site_tables(self.history, trace, self.boundary)?;
        for (table, state) in states {
            // One that was dropped has no rows.
            let Some((number, version)) = self.numbers.get(&table) else { continue };
            let state = state?;
            if !state.is_of(*version) {
                let table = self.history.names[table as usize].to_owned();
                return Err(InputError::DefinitionChanged { table, boundary_at: self.boundary.at });
            }
            let mut input = TableInput { table: *number, base: None, changes: Vec::new() };
            fill(self.history, &state, &mut input, &mut self.objects)?;
            if input.base.is_some() || !input.changes.is_empty() {
                self.slices.push(FoldSlice { site: site.cloned(), input });
            }
        }
        Ok(())
    }
}
