//! Turning the states of tables into what is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::plan::{BaseInput, ChangesInput, TableInput};
use muster_types::snapshot::{Chunk, ObjectInfo};
use muster_types::{Boundary, Kind, SiteId};

use super::{Base, InputError, SiteTables, StoreInputs, TableState, damaged};
use crate::index::IncarnationIndex;

/// Objects of a plan, each once.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_key: BTreeMap<String, u32>,
    pub(crate) list: Vec<ObjectInfo>,
}

impl Objects {
    fn number(&mut self, object: &ObjectInfo) -> u32 {
        if let Some(number) = self.by_key.get(object.key.as_str()) {
            return *number;
        }
        let number = self.list.len() as u32;
        self.by_key.insert(object.key.clone(), number);
        self.list.push(object.clone());
        number
    }
}

/// The inputs of one kind from the states of a site's tables; `objects` of the result stays empty, `inputs` refer
/// to the given list.
pub(crate) fn assemble(
    index: &IncarnationIndex<'_>,
    states: &SiteTables<'_>,
    (site, kind): (&SiteId, &Kind),
    boundary: Boundary,
    objects: &mut Objects,
) -> Result<StoreInputs, InputError> {
    let mut store = StoreInputs::default();
    let Some(schema) = index.schema_at(boundary) else { return Ok(store) };
    let Some(found) = schema.tables(kind, site) else { return Ok(store) };
    let refs = &found.refs;
    let there = |table: u32| refs.iter().any(|known| known.table == table);
    if let Some(table) = index.uncaptured_at(kind, boundary).find(|table| there(table.table)) {
        return Err(InputError::uncaptured(index, table, boundary));
    }
    store.tables = Arc::clone(&found.tables);
    let mut oldest: Option<u32> = None;
    for (number, table) in refs.iter().enumerate() {
        let mut input = TableInput { table: number as u32, base: None, changes: Vec::new() };
        if let Some(state) = states.get(&table.table) {
            let state = state.as_ref().map_err(Clone::clone)?;
            if state.version.is_some_and(|version| version != table.version) {
                let table = index.names[table.table as usize].to_owned();
                return Err(InputError::DefinitionChanged { table, boundary_at: boundary.at });
            }
            fill(index, state, &mut input, objects)?;
            store.rows += state.rows();
            store.bytes += all_chunks(&input).map(|chunk| chunk.bytes).sum::<u64>();
            store.raw_bytes += all_chunks(&input).map(|chunk| chunk.raw_bytes).sum::<u64>();
            if let Base::Slice(snapshot, _) = state.base {
                oldest = Some(oldest.map_or(snapshot, |oldest| oldest.min(snapshot)));
            }
        }
        store.inputs.push(input);
    }
    store.snapshot = oldest.map(|number| index.history.snapshots[number as usize].snapshot.clone());
    Ok(store)
}

pub(crate) fn fill(
    index: &IncarnationIndex<'_>,
    state: &TableState<'_>,
    input: &mut TableInput,
    objects: &mut Objects,
) -> Result<(), InputError> {
    input.base = match state.base {
        Base::Empty => None,
        Base::Slice(snapshot, slice) => {
            let packs = &index.history.snapshots[snapshot as usize].packs;
            let pack = packs.get(slice.pack as usize).ok_or_else(|| damaged("pack", slice.pack as usize))?;
            let object = objects.number(pack);
            Some(BaseInput { object, chunks: slice.chunks.clone(), rows_digest: slice.rows_digest })
        }
        Base::Reread(segment, frame) => {
            let object = match &frame.place {
                Some(place) => objects.number(&place.object),
                None => objects.number(segment_data(index, segment)?),
            };
            let missing =
                || InputError::Damaged(format!("a whole reading in segment {segment} has no digest"));
            let rows_digest = frame.rows_digest.ok_or_else(missing)?;
            Some(BaseInput { object, chunks: frame.chunks.clone(), rows_digest })
        }
    };
    let mut reaches = Vec::new();
    for part in &state.changes {
        let object = match &part.frame.place {
            Some(place) => objects.number(&place.object),
            None => objects.number(segment_data(index, part.segment)?),
        };
        let changes = part.input(object);
        let within = part.frame.place.as_ref().and_then(|place| place.within);
        // Parts of one run of a compacted segment share chunks, and are read as one where nothing lies between them.
        let before = within.and_then(|within| {
            let before = Some((object, within.run, within.after));
            (0..reaches.len()).rev().find(|&number| reaches[number] == before)
        });
        let reach = within.map(|within| (object, within.run, within.upto));
        match before {
            Some(number) => {
                join(&mut input.changes[number], changes);
                reaches[number] = reach;
            }
            None => {
                input.changes.push(changes);
                reaches.push(reach);
            }
        }
    }
    Ok(())
}

/// Every chunk to read.
fn all_chunks(input: &TableInput) -> impl Iterator<Item = &Chunk> {
    let base = input.base.iter().flat_map(|base| &base.chunks);
    base.chain(input.changes.iter().flat_map(|changes| &changes.chunks))
}

/// Makes one input of two that follow one another in one run; the second may begin in the last chunk of the first.
fn join(earlier: &mut ChangesInput, next: ChangesInput) {
    let end = earlier.chunks.last().map_or(0, |last| last.offset + last.bytes);
    earlier.chunks.extend(next.chunks.into_iter().filter(|chunk| chunk.offset >= end));
    earlier.upto = next.upto;
}

fn segment_data<'a>(index: &IncarnationIndex<'a>, segment: u32) -> Result<&'a ObjectInfo, InputError> {
    let found = index.history.segments.get(segment as usize);
    let missing = || InputError::Damaged(format!("segment {segment} has frames and no data object"));
    found.and_then(|segment| segment.data.as_ref()).ok_or_else(missing)
}
