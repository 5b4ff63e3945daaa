//! Which declared references are counted for a site, and what of its other stores that needs.
//!
//! A reference concerns a site when either of its ends is restored. The other end is restored, too, or lives on as it is; its rows
//! at the target are read from the repository then, and its live rows from the shard that holds them now.
//!
//! # Invariants
//! - A reference that concerns the site and is not counted is told; one end of which the site never had a store has none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use muster_types::incident::IncidentSite;
use muster_types::plan::{Note, Severity};
use muster_types::reference::{ColumnRef, Reference};
use muster_types::request::Placement;
use muster_types::table::CapturedTable;
use muster_types::topology::KindMode;
use muster_types::{Kind, ShardName, Timestamp};

use crate::recovery::Target;
use crate::stores::{Finder, FoundStore, SiteStores, note};

/// What references ask of one site.
#[derive(Debug, Default)]
pub(crate) struct SiteReferences {
    /// Those that are counted, by their place in the topology.
    pub(crate) counted: Vec<u32>,
    /// Stores that live on and that they need.
    pub(crate) beside: Vec<FoundBeside>,
    /// Others, with why they are not: each is a whole sentence.
    pub(crate) unchecked: Vec<String>,
}

/// A store that lives on.
#[derive(Clone, Debug)]
pub(crate) struct FoundBeside {
    /// At the target, or at the end of the log.
    pub(crate) store: FoundStore,
    /// Tables that references name.
    pub(crate) tables: BTreeSet<String>,
    /// It had no rows at the target.
    pub(crate) new: bool,
}

/// The references of `asked`, of which `found` is restored.
pub(crate) fn of_site(finder: &Finder<'_>, asked: &IncidentSite, found: &SiteStores) -> SiteReferences {
    let mut result = SiteReferences::default();
    if finder.topology.references.is_empty() || found.stores.is_empty() {
        return result;
    }
    let kinds = &finder.topology.kinds;
    let is_restored =
        |store: &&FoundStore| kinds.get(&store.kind).is_some_and(|config| config.mode == KindMode::Restored);
    let restored: BTreeMap<&Kind, &FoundStore> =
        found.stores.iter().filter(is_restored).map(|store| (&store.kind, store)).collect();
    let mut others = Others { finder, asked, found, all: None };
    for (number, reference) in (0u32..).zip(&finder.topology.references) {
        let ends = reference.ends();
        if !ends.iter().any(|(end, _)| restored.contains_key(&end.kind)) {
            continue;
        }
        match count(&restored, &mut others, asked, reference) {
            Ok(Some(beside)) => {
                result.counted.push(number);
                beside
                    .into_iter()
                    .for_each(|(store, end)| add(&mut result.beside, store, end.table_of(&asked.site)));
            }
            Ok(None) => {}
            Err(why) => result.unchecked.push(unchecked(reference, &why)),
        }
    }
    result
}

fn add(beside: &mut Vec<FoundBeside>, found: FoundBeside, table: String) {
    let place = match beside.iter().position(|known| known.store.kind == found.store.kind) {
        Some(place) => place,
        None => {
            beside.push(found);
            beside.len() - 1
        }
    };
    beside[place].tables.insert(table);
}

/// The ends that live on; none where the site has no store of an end; else why it cannot be counted.
fn count<'r>(
    restored: &BTreeMap<&Kind, &FoundStore>,
    others: &mut Others<'_>,
    asked: &IncidentSite,
    reference: &'r Reference,
) -> Result<Option<Vec<(FoundBeside, &'r ColumnRef)>>, String> {
    let mut beside = Vec::new();
    for (end, only) in reference.ends() {
        let found = match restored.get(&end.kind) {
            Some(store) => FoundBeside { store: (*store).clone(), tables: BTreeSet::new(), new: false },
            None => match others.find(&end.kind)? {
                Some(other) => other,
                None => return Ok(None),
            },
        };
        let columns = std::iter::once(&end.column).chain(only.keys());
        has(&found, &end.table_of(&asked.site), columns)?;
        if !restored.contains_key(&end.kind) {
            beside.push((found, end));
        }
    }
    Ok(Some(beside))
}

/// The table and its columns were there.
fn has<'c>(
    found: &FoundBeside,
    table: &str,
    columns: impl Iterator<Item = &'c String>,
) -> Result<(), String> {
    let FoundStore { kind, tables, .. } = &found.store;
    let known: Option<&CapturedTable> = tables.iter().find(|known| known.def.name == table);
    let known = known.ok_or_else(|| format!("table `{table}` of {kind} was not there at the target"))?;
    for column in columns {
        if !known.def.stored_columns().any(|stored| stored.name == *column) {
            return Err(format!("table `{table}` of {kind} had no column `{column}` at the target"));
        }
    }
    Ok(())
}

/// Why rows that refer by it are not counted.
pub(crate) fn unchecked(reference: &Reference, why: &str) -> String {
    format!("rows that refer by {reference} are not counted: {why}")
}

/// The note for references that are not counted.
pub(crate) fn unchecked_note(subject: impl Into<String>, text: impl Into<String>) -> Note {
    let hint =
        "look at such rows by hand before the site is given back, or correct [[references]] and plan again";
    note(Severity::Warning, "reference-unchecked", subject, text, hint)
}

/// Stores of the site that are not restored.
struct Others<'a> {
    finder: &'a Finder<'a>,
    asked: &'a IncidentSite,
    found: &'a SiteStores,
    /// All stores at the target, once they are asked for.
    all: Option<SiteStores>,
}

impl Others<'_> {
    /// The store of a kind, at the target or else at the end of the log; none where the site has none.
    fn find(&mut self, kind: &Kind) -> Result<Option<FoundBeside>, String> {
        let then = self.found.left_out.contains(kind);
        let store = if then { self.at_target(kind) } else { self.at_end(kind)? };
        let Some(store) = store else { return Ok(None) };
        if self.finder.placement.sandbox {
            return Err(format!("{kind} is not part of the drill, and a drill asks nothing of what lives"));
        }
        Ok(Some(FoundBeside { store, tables: BTreeSet::new(), new: !then }))
    }

    fn at_target(&mut self, kind: &Kind) -> Option<FoundStore> {
        static PLAIN: LazyLock<Placement> = LazyLock::new(Placement::default);
        let finder = Finder { placement: &PLAIN, ..*self.finder };
        let all = self.all.get_or_insert_with(|| finder.stores_of(self.asked));
        all.stores.iter().find(|store| store.kind == *kind).cloned()
    }

    fn at_end(&self, kind: &Kind) -> Result<Option<FoundStore>, String> {
        let (finder, site) = (self.finder, &self.asked.site);
        let Some(history) = finder.index.catalog.sites.get(site) else { return Ok(None) };
        let hosts = |shard: &&ShardName| {
            finder.topology.shards.get(*shard).is_some_and(|config| config.kinds.contains(kind))
        };
        let shards: BTreeSet<&ShardName> =
            history.traces.iter().map(|trace| &trace.shard).filter(hosts).collect();
        for shard in shards {
            let end = Target::At(Timestamp::from_micros(i64::MAX));
            let (point, counts) = finder
                .rows_at(site, history, shard, end)
                .map_err(|problem| format!("what shard {shard} holds of {kind} is not known: {problem}"))?;
            let Some(&rows) = counts.get(kind) else { continue };
            let tables = finder.tables(shard, &point, (site, kind));
            let (kind, source, shard) = (kind.clone(), shard.clone(), shard.clone());
            return Ok(Some(FoundStore { kind, source, shard, point, before: None, rows, tables }));
        }
        Ok(None)
    }
}
