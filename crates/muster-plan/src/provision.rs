//! What an empty shard is given before stores of another one come into it.
//!
//! Definitions, reference rows and what stands beside them are those of the source at the latest recovery point of the
//! stores that go there. A shard that has tables must have these definitions already.
//!
//! # Invariants
//! - Tables of single sites are not among them: the publish of such a store makes them again.
//! - The source itself is not asked.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::Catalog;
use muster_types::plan::{Note, Provision, Severity, ShardSurvey, SitePlan, StorePlan, TableInput};
use muster_types::snapshot::{Beside, Chunk};
use muster_types::table::{CapturedTable, Owner, TableDef};
use muster_types::topology::Topology;
use muster_types::{Boundary, Incarnation, ShardName};

use crate::index::{CatalogIndex, IncarnationIndex, TableRef};
use crate::inputs::{InputError, Objects, SiteTables, fill, site_tables};
use crate::order::parents_first;
use crate::stores::{StoreToProbe, note};

/// What provisions are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) index: &'a CatalogIndex<'a>,
    pub(crate) sites: &'a [SitePlan],
}

/// The definitions that sites share in `shard` at a recovery point, parents first.
fn shared_tables(
    index: &CatalogIndex<'_>,
    shard: &ShardName,
    incarnation: &Incarnation,
    boundary: Boundary,
) -> Vec<CapturedTable> {
    let found = index.shard(shard).and_then(|shard| {
        let number = shard.number(incarnation)?;
        Some(shared(&shard.incarnations[number], boundary))
    });
    found.unwrap_or_default().into_iter().map(|(_, table)| table).collect()
}

/// The definitions of every shard that stores of `stores` come from and `shard` gets: what it is asked about before planning.
pub fn definitions_for(catalog: &Catalog, stores: &[StoreToProbe], shard: &ShardName) -> Vec<CapturedTable> {
    let mut latest: BTreeMap<(&ShardName, &Incarnation), Boundary> = BTreeMap::new();
    for store in stores.iter().filter(|store| store.shard == *shard && store.source != *shard) {
        let boundary =
            latest.entry((&store.source, &store.point.incarnation)).or_insert(store.point.boundary);
        *boundary = store.point.boundary.max(*boundary);
    }
    let index = CatalogIndex::new(catalog);
    let of = |((source, incarnation), boundary)| shared_tables(&index, source, incarnation, boundary);
    latest.into_iter().flat_map(of).collect()
}

fn shared(incarnation: &IncarnationIndex<'_>, boundary: Boundary) -> Vec<(TableRef, CapturedTable)> {
    let Some(schema) = incarnation.schema_at(boundary) else { return Vec::new() };
    let groups: Vec<_> = schema.shared().collect();
    let all: Vec<(TableRef, &CapturedTable)> =
        groups.iter().flat_map(|group| group.refs.iter().copied().zip(group.tables.iter())).collect();
    parents_first(all).into_iter().map(|(at, table)| (at, table.clone())).collect()
}

/// The provisions of the empty ones among the surveyed shards, and what is wrong with the others.
pub(crate) fn provisions(
    sources: &Sources<'_>,
    surveys: &BTreeMap<ShardName, ShardSurvey>,
    mut number: impl FnMut(&CapturedTable) -> u32,
    objects: &mut Objects,
) -> (BTreeMap<ShardName, Provision>, Vec<Note>) {
    let (mut made, mut notes) = (BTreeMap::new(), Vec::new());
    for (shard, survey) in surveys {
        let stores =
            || sources.sites.iter().flat_map(|site| &site.stores).filter(|store| store.shard == *shard);
        let incoming: Vec<&StorePlan> = stores().filter(|store| store.source != *shard).collect();
        let places: BTreeSet<_> = incoming.iter().map(|store| (&store.source, &store.incarnation)).collect();
        let Some(latest) = incoming.iter().max_by_key(|store| (store.reached, &store.kind)) else { continue };
        if survey.tables.is_empty() && places.len() > 1 {
            notes.push(several(shard, places.iter().map(|(source, _)| source.as_str())));
            continue;
        }
        if !survey.tables.is_empty() {
            for (source, incarnation) in places {
                let of = incoming.iter().filter(|store| &store.source == source);
                let reached = of.map(|store| store.reached).max().unwrap_or(latest.reached);
                let wanted = shared_tables(sources.index, source, incarnation, reached);
                notes.extend(differing(sources.topology, shard, &wanted, &survey.tables));
            }
            continue;
        }
        match provision(sources, latest, survey, &mut number, objects) {
            Ok(provision) => {
                notes.push(told(shard, &provision));
                notes.extend(without_roles(shard, &provision));
                made.insert(shard.clone(), provision);
            }
            Err(error) => notes.push(unreadable(shard, &latest.source, &error)),
        }
    }
    (made, notes)
}

fn provision(
    sources: &Sources<'_>,
    latest: &StorePlan,
    survey: &ShardSurvey,
    number: &mut impl FnMut(&CapturedTable) -> u32,
    objects: &mut Objects,
) -> Result<Provision, InputError> {
    let unknown = || InputError::UnknownHistory {
        shard: latest.source.clone(),
        incarnation: latest.incarnation.to_string(),
    };
    let shard = sources.index.shard(&latest.source).ok_or_else(unknown)?;
    let place = shard.number(&latest.incarnation).ok_or_else(unknown)?;
    let (incarnation, boundary) = (&shard.incarnations[place], latest.reached);
    let traces = sources.index.catalog.unowned.iter();
    let states = match traces
        .clone()
        .find(|trace| trace.shard == latest.source && trace.incarnation as usize == place)
    {
        Some(trace) => site_tables(incarnation, trace, boundary)?,
        None => SiteTables::new(),
    };
    let (mut tables, mut rows, mut bytes) = (Vec::new(), 0, 0);
    for (at, table) in shared(incarnation, boundary) {
        let mut input = TableInput { table: number(&table), base: None, changes: Vec::new() };
        if let Some(state) = states.get(&at.table).filter(|_| table.owner == Owner::Reference) {
            let state = state.as_ref().map_err(Clone::clone)?;
            fill(incarnation, state, &mut input, objects)?;
            rows += state.rows();
            bytes += chunks(&input).map(|chunk| chunk.bytes).sum::<u64>();
        }
        tables.push(input);
    }
    Ok(Provision {
        source: latest.source.clone(),
        incarnation: latest.incarnation.clone(),
        boundary,
        tables,
        beside: beside(incarnation, boundary),
        without_roles: survey.missing_roles.clone(),
        rows,
        bytes,
    })
}

fn chunks(input: &TableInput) -> impl Iterator<Item = &Chunk> {
    let base = input.base.iter().flat_map(|base| &base.chunks);
    base.chain(input.changes.iter().flat_map(|changes| &changes.chunks))
}

/// What stood beside the tables at the last snapshot at or before `boundary`.
fn beside(incarnation: &IncarnationIndex<'_>, boundary: Boundary) -> Beside {
    let snapshot = incarnation.snapshot_below(boundary);
    snapshot.map(|number| incarnation.history.snapshots[number].beside.clone()).unwrap_or_default()
}

/// Differences that restored rows, or the next ones, would meet.
fn differing(
    topology: &Topology,
    shard: &ShardName,
    wanted: &[CapturedTable],
    found: &[TableDef],
) -> Vec<Note> {
    let hosted = topology.shards.get(shard).map_or(&[][..], |config| config.kinds.as_slice());
    let here: BTreeMap<&str, &TableDef> = found.iter().map(|def| (def.name.as_str(), def)).collect();
    let differs = |table: &CapturedTable| {
        let what = match here.get(table.def.name.as_str()) {
            None => "is not there".to_owned(),
            Some(now) => difference(&table.def, now)?,
        };
        let text = format!("shard {shard} is not empty, and its table {} {what}", table.def.name);
        let hint = "bring the table to the definition that it had, or name an empty shard with --to-shard";
        Some(note(Severity::Fatal, "definitions-differ", shard.as_str(), text, hint))
    };
    wanted.iter().filter(|table| hosted.contains(&table.kind)).filter_map(differs).collect()
}

fn difference(then: &TableDef, now: &TableDef) -> Option<String> {
    let keys = |def: &TableDef| {
        let mut keys: Vec<_> =
            def.unique.iter().map(|key| (key.columns.clone(), key.predicate_sql.clone())).collect();
        keys.sort();
        keys
    };
    let what = if then.columns != now.columns {
        "has other columns"
    } else if then.key != now.key {
        "has another primary key"
    } else if keys(then) != keys(now) {
        "has other unique keys"
    } else if then.foreign_keys != now.foreign_keys {
        "has other foreign keys"
    } else {
        return None;
    };
    Some(format!("{what} than the source had"))
}

fn told(shard: &ShardName, provision: &Provision) -> Note {
    let text = format!(
        "it is empty, and is given the {} tables of {} as they were at {}, and {} rows of reference tables",
        provision.tables.len(),
        provision.source,
        provision.boundary.at,
        provision.rows
    );
    let hint = "let capture follow the shard (`muster capture`) before its sites are opened";
    note(Severity::Info, "shard-provisioned", shard.as_str(), text, hint)
}

fn without_roles(shard: &ShardName, provision: &Provision) -> Option<Note> {
    let roles = &provision.without_roles;
    if roles.is_empty() {
        return None;
    }
    let text =
        format!("the server has no role {}: what they owned or were granted is left out", roles.join(", "));
    let statements: Vec<String> = roles.iter().map(|role| format!("CREATE ROLE \"{role}\";")).collect();
    let hint = format!("create them first and plan again: {}", statements.join(" "));
    Some(note(Severity::Warning, "roles-missing", shard.as_str(), text, hint))
}

fn several<'s>(shard: &ShardName, sources: impl Iterator<Item = &'s str>) -> Note {
    let sources: Vec<&str> = sources.collect();
    let text = format!(
        "it is empty, and stores of several histories are to go there ({}): which definitions it is given cannot be told",
        sources.join(", ")
    );
    let hint = "name an empty shard for each with --to-shard, or make the tables first";
    note(Severity::Fatal, "several-sources", shard.as_str(), text, hint)
}

fn unreadable(shard: &ShardName, source: &ShardName, error: &InputError) -> Note {
    let text = format!("the reference rows of {source} cannot be told: {error}");
    note(Severity::Fatal, "unreadable-log", shard.as_str(), text, error.hint())
}
