//! Which stores a site had at its target, where its rows come from and where they go.
//!
//! A kind is there when the counts of the index leave at least one row at the recovery point. Rows come from the
//! shard that held them then (`source`) and go to the shard that holds the site's rows of that kind now, if that is
//! another one, else back to where they came from.
//!
//! # Invariants
//! - What cannot be told is a finding with the site as its subject, never a store left out in silence.
//! - Rebuilt and external kinds have no rows: a site has them when it has a kind that they come after, at any depth,
//!   or when they come after none.
//!
//! # Not here
//! Facts of a site (they are rows, read by the caller), live state, order and steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_types::catalog::{Catalog, ShardHistory, SiteHistory};
use muster_types::incident::{BeforePosition, IncidentSite};
use muster_types::plan::{Note, Severity};
use muster_types::request::Placement;
use muster_types::table::CapturedTable;
use muster_types::topology::{KindMode, Topology};
use muster_types::{Kind, ShardName, SiteId, StoreId, Timestamp};

use crate::graph::KindGraph;
use crate::index::CatalogIndex;
use crate::inputs::{InputError, SiteTables, site_tables};
use crate::planner::PlanError;
use crate::recovery::{NoRecoveryPoint, RecoveryPoint, Target, recover};

/// What to do about a snapshot whose root cannot be read.
pub(crate) const UNREAD_HINT: &str = "muster repo check names the object; bring it back from the bucket's versions or replica, \
                                      then plan again";

/// A store of a site at its target.
#[derive(Clone, Debug)]
pub struct FoundStore {
    /// Its kind.
    pub kind: Kind,
    /// The shard that held it at the target.
    pub source: ShardName,
    /// The shard that gets it.
    pub shard: ShardName,
    /// The recovery point in the source.
    pub point: RecoveryPoint,
    /// The position asked for, where the target is one.
    pub before: Option<BeforePosition>,
    /// Rows at the recovery point, by the counts of the index; none in rebuilt and external kinds.
    pub rows: u64,
    /// Its tables at the recovery point, parents first.
    pub tables: Arc<Vec<CapturedTable>>,
}

/// A store whose live state the plan needs to know: what a driver is asked before planning.
#[derive(Clone, Debug)]
pub struct StoreToProbe {
    /// The store.
    pub store: StoreId,
    /// The shard that gets it: the one to ask.
    pub shard: ShardName,
    /// The shard that held it at the target.
    pub source: ShardName,
    /// The recovery point in the source.
    pub point: RecoveryPoint,
    /// Rows at the recovery point, by the counts of the index.
    pub rows: u64,
    /// Its tables as they were at the recovery point, parents first; shared between stores of equal definitions.
    pub tables: Arc<Vec<CapturedTable>>,
}

/// The stores of one site at its target, and what was found on the way.
#[derive(Clone, Debug, Default)]
pub struct SiteStores {
    /// Stores in the order of dependencies.
    pub stores: Vec<FoundStore>,
    /// Kinds of which it had rows and that the request leaves out.
    pub left_out: Vec<Kind>,
    /// Findings about the site.
    pub notes: Vec<Note>,
}

/// Phase one of planning: the restored stores of every site of the request that exist at the targets, to probe before
/// [`crate::planner::plan`]. Also the way to find out where a site's directory and licence rows are to be read.
///
/// # Errors
/// [`PlanError::Cycle`] if the kinds' dependencies have one.
pub fn select_stores(
    topology: &Topology,
    catalog: &Catalog,
    sites: &[IncidentSite],
) -> Result<Vec<StoreToProbe>, PlanError> {
    select_placed(topology, catalog, sites, &Placement::default())
}

/// As [`select_stores`], of a request that plans some of them elsewhere, or not at all.
///
/// # Errors
/// As [`select_stores`].
pub fn select_placed(
    topology: &Topology,
    catalog: &Catalog,
    sites: &[IncidentSite],
    placement: &Placement,
) -> Result<Vec<StoreToProbe>, PlanError> {
    let graph = KindGraph::new(topology)?;
    let index = CatalogIndex::new(catalog);
    let finder = Finder { topology, index: &index, graph: &graph, placement };
    let mut seen = BTreeSet::new();
    let mut probes = Vec::new();
    for site in sites.iter().filter(|site| seen.insert(&site.site)) {
        let restored = |store: &FoundStore| {
            topology.kinds.get(&store.kind).is_some_and(|kind| kind.mode == KindMode::Restored)
        };
        probes.extend(finder.stores_of(site).stores.into_iter().filter(restored).map(|found| StoreToProbe {
            store: StoreId { site: site.site.clone(), kind: found.kind },
            shard: found.shard,
            source: found.source,
            point: found.point,
            rows: found.rows,
            tables: found.tables,
        }));
    }
    Ok(probes)
}

/// Finds stores over one index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finder<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) index: &'a CatalogIndex<'a>,
    pub(crate) graph: &'a KindGraph,
    pub(crate) placement: &'a Placement,
}

/// Rows of one kind in one shard.
struct Candidate {
    shard: ShardName,
    point: RecoveryPoint,
    before: Option<BeforePosition>,
    rows: u64,
}

impl<'a> Finder<'a> {
    /// The stores that `asked` had.
    pub(crate) fn stores_of(&self, asked: &IncidentSite) -> SiteStores {
        let mut found = SiteStores::default();
        let Some(history) = self.index.catalog.sites.get(&asked.site) else {
            found.notes.push(unknown_site(&asked.site, "the repository holds nothing of this site"));
            return found;
        };
        let candidates = self.candidates(asked, history, &mut found.notes);
        let mut now = BTreeMap::new();
        for (kind, mut candidates) in candidates {
            // Most rows first; a site in the middle of a move may have some in both.
            candidates.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.shard.cmp(&b.shard)));
            // Tables of its own that are empty are not the place where its rows are.
            if candidates.iter().any(|candidate| candidate.rows > 0) {
                candidates.retain(|candidate| candidate.rows > 0);
            }
            if let [first, second, ..] = &candidates[..] {
                found.notes.push(split_store(&asked.site, &kind, first, second));
            }
            let Some(source) = candidates.into_iter().next() else { continue };
            if !self.topology.kinds.contains_key(&kind) {
                found.notes.push(undeclared_kind(&asked.site, &kind, source.rows));
                continue;
            }
            let shard = self
                .home_now(&asked.site, history, &kind, &source.shard, &mut now)
                .unwrap_or_else(|| source.shard.clone());
            let shard = self.placement.target(&shard).clone();
            let Candidate { shard: source, point, before, rows } = source;
            if !self.placement.wants(&source, &kind) {
                found.left_out.push(kind);
                continue;
            }
            let tables = self.tables(&source, &point, (&asked.site, &kind));
            found.stores.push(FoundStore { kind, source, shard, point, before, rows, tables });
        }
        if found.stores.is_empty() && found.notes.is_empty() && found.left_out.is_empty() {
            let text = format!("the site has no rows at its target {}", asked.target);
            found.notes.push(unknown_site(&asked.site, &text));
        }
        if found.stores.is_empty() && !found.left_out.is_empty() {
            found.notes.push(nothing_planned(&asked.site));
        }
        let missing: Vec<Note> =
            found.stores.iter().flat_map(|store| self.missing(&asked.site, store)).collect();
        found.notes.extend(missing);
        self.add_rowless(&mut found);
        let rank = |store: &FoundStore| self.graph.rank(&store.kind);
        found.stores.sort_by_key(rank);
        found
    }

    /// By kind, the shards that hold rows of it at the target.
    fn candidates(
        &self,
        asked: &IncidentSite,
        history: &'a SiteHistory,
        notes: &mut Vec<Note>,
    ) -> BTreeMap<Kind, Vec<Candidate>> {
        let mut candidates: BTreeMap<Kind, Vec<Candidate>> = BTreeMap::new();
        let shards: BTreeSet<&ShardName> = history.traces.iter().map(|trace| &trace.shard).collect();
        for shard in shards {
            // Kinds of one shard with one target share the walk.
            let mut targets: Vec<(Option<&BeforePosition>, Vec<&Kind>)> = vec![(None, Vec::new())];
            for (kind, before) in asked.before.iter().filter(|(_, before)| &before.shard == shard) {
                match targets.iter_mut().find(|(known, _)| *known == Some(before)) {
                    Some((_, kinds)) => kinds.push(kind),
                    None => targets.push((Some(before), vec![kind])),
                }
            }
            // A shard all of whose kinds have positions of their own is not looked at by time.
            let config = self.topology.shards.get(shard);
            if config.is_some_and(|config| config.kinds.iter().all(|kind| asked.before.contains_key(kind))) {
                targets.remove(0);
            }
            for (before, kinds) in targets {
                let target = before.map_or(Target::At(asked.target), Target::Before);
                let wanted = |kind: &Kind| match before {
                    Some(_) => kinds.contains(&kind),
                    None => !asked.before.contains_key(kind),
                };
                match self.rows_at(&asked.site, history, shard, target) {
                    Ok((point, counts)) => {
                        for (kind, rows) in counts.into_iter().filter(|(kind, _)| wanted(kind)) {
                            let candidate = Candidate {
                                shard: shard.clone(),
                                point: point.clone(),
                                before: before.cloned(),
                                rows,
                            };
                            candidates.entry(kind).or_default().push(candidate);
                        }
                    }
                    Err(problem) => {
                        notes.extend(self.problem(&asked.site, history, shard, before.is_some(), &problem));
                    }
                }
            }
        }
        candidates
    }

    /// The recovery point of a shard and the site's rows there by kind; kinds of which it has neither rows nor tables of
    /// its own are left out.
    pub(crate) fn rows_at(
        &self,
        site: &SiteId,
        history: &'a SiteHistory,
        shard: &ShardName,
        target: Target<'_>,
    ) -> Result<(RecoveryPoint, BTreeMap<Kind, u64>), Problem> {
        let shard_index = self.index.shard(shard).ok_or(NoRecoveryPoint::NoHistory)?;
        let point = recover(shard_index, target)?;
        let trace = history
            .traces
            .iter()
            .find(|trace| &trace.shard == shard && trace.incarnation as usize == point.number);
        let Some(trace) = trace else { return Ok((point, BTreeMap::new())) };
        let incarnation = &shard_index.incarnations[point.number];
        let states = site_tables(incarnation, trace, point.boundary)?;
        let mut counts = BTreeMap::new();
        let Some(schema) = incarnation.schema_at(point.boundary) else { return Ok((point, counts)) };
        for (kind, tables) in schema.of_site(site) {
            let rows =
                tables.refs.iter().filter_map(|table| states.get(&table.table)).map(count).sum::<u64>();
            // A site's own tables are part of it without rows, too.
            if rows > 0 || tables.site.is_some() {
                counts.insert(kind.clone(), rows);
            }
        }
        Ok((point, counts))
    }

    /// The shard other than `source` that holds the site's rows of `kind` at the end of the log. `now` keeps the
    /// counts of shards that were looked at for another kind.
    fn home_now<'h>(
        &self,
        site: &SiteId,
        history: &'h SiteHistory,
        kind: &Kind,
        source: &ShardName,
        now: &mut BTreeMap<&'h ShardName, BTreeMap<Kind, u64>>,
    ) -> Option<ShardName>
    where
        'h: 'a,
    {
        let hosts = |shard: &ShardName| {
            self.topology.shards.get(shard).is_some_and(|config| config.kinds.contains(kind))
        };
        let others =
            history.traces.iter().map(|trace| &trace.shard).filter(|shard| *shard != source && hosts(shard));
        let mut held: Option<(u64, &ShardName)> = None;
        for shard in others {
            let counts = now.entry(shard).or_insert_with(|| {
                let end = Target::At(Timestamp::from_micros(i64::MAX));
                self.rows_at(site, history, shard, end).map(|(_, counts)| counts).unwrap_or_default()
            });
            let rows = counts.get(kind).copied().unwrap_or(0);
            if rows > held.map_or(0, |(most, _)| most) {
                held = Some((rows, shard));
            }
        }
        held.map(|(_, shard)| shard.clone())
    }

    pub(crate) fn tables(
        &self,
        shard: &ShardName,
        point: &RecoveryPoint,
        (site, kind): (&SiteId, &Kind),
    ) -> Arc<Vec<CapturedTable>> {
        let incarnation = self.index.shard(shard).map(|shard| &shard.incarnations[point.number]);
        let schema = incarnation.and_then(|incarnation| incarnation.schema_at(point.boundary));
        schema
            .and_then(|schema| schema.tables(kind, site))
            .map(|found| Arc::clone(&found.tables))
            .unwrap_or_default()
    }

    /// Declared tables that a snapshot below the point had to leave out: without them the store would come back short.
    fn missing(&self, site: &SiteId, store: &FoundStore) -> Vec<Note> {
        let Some(shard) = self.index.shard(&store.source) else { return Vec::new() };
        let incarnation = &shard.incarnations[store.point.number];
        let boundary = store.point.boundary;
        let left_out = incarnation.uncaptured_at(&store.kind, boundary).filter(|table| {
            let name = incarnation.names[table.table as usize];
            self.topology.is_declared_for(name, site)
                && store.tables.iter().all(|known| known.def.name != name)
        });
        left_out
            .map(|table| unreadable(site, store, &InputError::uncaptured(incarnation, table, boundary)))
            .collect()
    }

    /// Adds the rebuilt and external kinds of a site that has any store. They stand at the recovery point of the
    /// directory's store (or the first one), in a shard that hosts them or else in that store's.
    fn add_rowless(&self, found: &mut SiteStores) {
        let directory = found.stores.iter().find(|store| store.kind == self.topology.directory.kind);
        let Some(anchor) = directory.or(found.stores.first()).cloned() else { return };
        let present: BTreeSet<Kind> = found.stores.iter().map(|store| store.kind.clone()).collect();
        for (kind, config) in &self.topology.kinds {
            if config.mode == KindMode::Restored || present.contains(kind) {
                continue;
            }
            if !self.placement.wants(&anchor.source, kind) {
                continue;
            }
            if !config.after.is_empty() && self.graph.present_before(kind, &present).is_empty() {
                continue;
            }
            let hosts = |shard: &ShardName| {
                self.topology.shards.get(shard).is_some_and(|config| config.kinds.contains(kind))
            };
            let host = found.stores.iter().map(|store| &store.shard).find(|shard| hosts(shard));
            let shard = host.unwrap_or(&anchor.shard).clone();
            let rowless = FoundStore {
                kind: kind.clone(),
                source: shard.clone(),
                shard,
                rows: 0,
                before: None,
                tables: Arc::default(),
                ..anchor.clone()
            };
            found.stores.push(rowless);
        }
    }

    /// The note for a shard whose rows of a site cannot be told.
    fn problem(
        &self,
        site: &SiteId,
        history: &SiteHistory,
        shard: &ShardName,
        by_position: bool,
        problem: &Problem,
    ) -> Option<Note> {
        let text = format!("shard {shard}: {problem}");
        let (code, hint) = match problem {
            Problem::Point(NoRecoveryPoint::UnknownIncarnation(_)) => (
                "missing-snapshot",
                "name an incarnation of the shard that the repository still holds, or a time instead"
                    .to_owned(),
            ),
            Problem::Point(_) | Problem::Input(InputError::MissingSnapshot { .. }) => {
                // A site that came to the shard later had nothing there yet, unless a snapshot knew it that cannot be read.
                let shard_history = self.index.catalog.shards.get(shard);
                let unread = shard_history.is_some_and(ShardHistory::begins_unread);
                let existed = by_position || unread || in_first_snapshot(history, shard);
                if !existed {
                    return None;
                }
                let hint = match unread {
                    true => UNREAD_HINT,
                    false => "choose a target at or after the first recovery point",
                };
                ("missing-snapshot", hint.to_owned())
            }
            Problem::Input(problem) => ("unreadable-log", problem.hint()),
        };
        Some(note(Severity::Error, code, site.to_string(), text, hint))
    }
}

/// The state of a table that cannot be told counts as there, so that its error is met when its inputs are assembled.
fn count(state: &Result<crate::inputs::TableState<'_>, InputError>) -> u64 {
    state.as_ref().map_or(1, crate::inputs::TableState::rows)
}

/// Why the rows of a site in a shard cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Point(#[from] NoRecoveryPoint),
    #[error(transparent)]
    Input(#[from] InputError),
}

fn in_first_snapshot(history: &SiteHistory, shard: &ShardName) -> bool {
    let first =
        history.traces.iter().filter(|trace| &trace.shard == shard).min_by_key(|trace| trace.incarnation);
    first.is_some_and(|trace| trace.snapshots.contains_key(&0))
}

/// States of the tables of `site` in `shard` at `point`.
pub(crate) fn states_at<'a>(
    index: &CatalogIndex<'a>,
    site: &SiteId,
    shard: &ShardName,
    point: &RecoveryPoint,
) -> Result<SiteTables<'a>, InputError> {
    let traces = index.catalog.sites.get(site).map_or(&[][..], |site| &site.traces);
    let trace =
        traces.iter().find(|trace| &trace.shard == shard && trace.incarnation as usize == point.number);
    match (index.shard(shard), trace) {
        (Some(shard), Some(trace)) => site_tables(&shard.incarnations[point.number], trace, point.boundary),
        _ => Ok(SiteTables::new()),
    }
}

/// What to read for a store cannot be told.
pub(crate) fn unreadable(site: &SiteId, store: &FoundStore, problem: &InputError) -> Note {
    let text = format!("shard {}: {problem}", store.source);
    note(Severity::Error, "unreadable-log", format!("{site}/{}", store.kind), text, problem.hint())
}

/// Builds a note.
pub(crate) fn note(
    severity: Severity,
    code: &str,
    subject: impl Into<String>,
    text: impl Into<String>,
    hint: impl Into<String>,
) -> Note {
    Note { severity, code: code.to_owned(), subject: subject.into(), text: text.into(), hint: hint.into() }
}

fn unknown_site(site: &SiteId, text: &str) -> Note {
    let hint = "check the id with `muster sites` and the target with `muster history`; an earlier target may have rows";
    note(Severity::Error, "unknown-site", site.to_string(), text, hint)
}

fn nothing_planned(site: &SiteId) -> Note {
    let text = "none of its stores at the target is among those that the request plans";
    let hint = "leave the site out, or name the shard that held it with --only-shard";
    note(Severity::Warning, "nothing-planned", site.to_string(), text, hint)
}

fn split_store(site: &SiteId, kind: &Kind, first: &Candidate, second: &Candidate) -> Note {
    let text = format!(
        "shard {} holds {} rows and shard {} holds {} rows of it at the target; the former are restored",
        first.shard, first.rows, second.shard, second.rows
    );
    let hint = "choose a target before or after the move between the shards";
    note(Severity::Warning, "split-store", format!("{site}/{kind}"), text, hint)
}

fn undeclared_kind(site: &SiteId, kind: &Kind, rows: u64) -> Note {
    let text = format!(
        "{rows} rows of it are in the repository, and the topology declares no such kind: not restored"
    );
    let hint = "declare the kind again in the topology to restore them";
    note(Severity::Warning, "table-not-declared", format!("{site}/{kind}"), text, hint)
}
