//! The checker: what keeps a plan, or a part of it, from being carried out, or is worth a decision.
//!
//! It is separate from the planner: [`check`] looks at catalog, topology and live state again and does not believe
//! what the plan says of them. The planner puts the same findings into the plan.
//!
//! | severity | consequence |
//! |---|---|
//! | fatal | the plan cannot be applied at all |
//! | error | the site has no steps; the other sites go on |
//! | warning | applied as it is; someone should decide |
//! | info | worth knowing |
//!
//! | code | severity | accepted by |
//! |---|---|---|
//! | `empty-selection`, `topology-changed`, `after-target`, `full-proof-impossible` | fatal | |
//! | `log-gap` | fatal | `accept_gap`, then a warning |
//! | `unknown-site`, `missing-snapshot`, `unreadable-log`, `region-mismatch`, `demand-above-capacity`, `key-held`, `claimed-by-run`, `shard-unwritable`, `unknown-shard` | error | |
//! | `duplicate-site` | error with different targets, else warning | |
//! | `site-alive` | error | `overwrite`, then a warning |
//! | `publish-blocks-too-long` | error | `accept_block`, then a warning |
//! | `target-not-covered`, `dependency-without-store`, `licensed-without-store`, `definition-changed`, `table-not-declared`, `table-undeclared`, `rpo-missed`, `rto-missed`, `split-store`, `not-probed`, `reference-unchecked`, `snapshot-unread` | warning | |
//! | `site-moved`, `skew`, `table-created-again` | info | |
//!
//! Findings of one cause over many sites (a gap, a target not covered, forecast misses) are one note with a count.
//!
//! # Not here
//! What only the rows themselves show, such as a key that a living site holds: the publish finds it, under its claim.
//! A driver that does know says so in [`LiveStore::differences`] with the prefix [`KEY_HELD`], and of
//! tables that are gone and that a publish creates again with the prefix [`CREATED_AGAIN`].

mod live;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::Catalog;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::{LiveStore, Note, Plan, Severity};
use muster_types::topology::Topology;
use muster_types::{SiteId, StoreId};

use crate::graph::KindGraph;
use crate::index::CatalogIndex;
use crate::inputs::{InputError, Objects, assemble};
use crate::stores::{Finder, FoundStore, note, states_at, unreadable};

pub use live::KEY_HELD;
pub(crate) use live::{forecast_notes, plan_notes};
pub use muster_types::plan::CREATED_AGAIN;
pub(crate) use survey::Survey;

/// Every finding about `plan`, worst first.
///
/// `live` is the state of the stores as it is now; stores that are not in it count as they stand in the plan.
pub fn check(
    plan: &Plan,
    topology: &Topology,
    catalog: &Catalog,
    live: &BTreeMap<StoreId, LiveStore>,
) -> Vec<Note> {
    let graph = match KindGraph::new(topology) {
        Ok(graph) => graph,
        Err(cycle) => {
            let hint = "correct the topology and plan again";
            return vec![note(Severity::Fatal, "topology-changed", "plan", cycle.to_string(), hint)];
        }
    };
    let index = CatalogIndex::new(catalog);
    let placement = &plan.request.placement;
    let finder = Finder { topology, index: &index, graph: &graph, placement };
    let mut survey = Survey::new(&finder, &plan.request);
    for asked in unique(&plan.request.incident) {
        let found = finder.stores_of(asked);
        survey.site(asked, &found);
        let unread = found.stores.iter().filter(|store| store.rows > 0);
        survey.notes.extend(unread.filter_map(|store| {
            let problem = readable(&index, asked, store).err()?;
            Some(unreadable(&asked.site, store, &problem))
        }));
    }
    let mut notes = survey.finish();
    notes.extend(plan_notes(plan, topology, catalog, live));
    notes.extend(forecast_notes(plan));
    sort(&mut notes);
    notes
}

/// The inputs of a store can be told from the catalog.
fn readable(index: &CatalogIndex<'_>, asked: &IncidentSite, store: &FoundStore) -> Result<(), InputError> {
    let states = states_at(index, &asked.site, &store.source, &store.point)?;
    let Some(shard) = index.shard(&store.source) else { return Ok(()) };
    let incarnation = &shard.incarnations[store.point.number];
    assemble(
        incarnation,
        &states,
        (&asked.site, &store.kind),
        store.point.boundary,
        &mut Objects::default(),
    )?;
    Ok(())
}

/// The first entry of each site.
pub(crate) fn unique(incident: &Incident) -> impl Iterator<Item = &IncidentSite> {
    let mut seen: BTreeSet<&SiteId> = BTreeSet::new();
    incident.sites.iter().filter(move |site| seen.insert(&site.site))
}

/// Worst first, then by code and subject; equal ones once.
pub(crate) fn sort(notes: &mut Vec<Note>) {
    let key = |note: &Note| {
        (std::cmp::Reverse(note.severity), note.code.clone(), note.subject.clone(), note.text.clone())
    };
    notes.sort_by_cached_key(key);
    notes.dedup();
}
