//! From catalog and request to a plan that leaves nothing to decide at run time.
//!
//! Two phases, since the live state of stores is asked of their drivers in between: [`select_stores`] says which
//! stores there were at the targets, [`plan`] takes what the drivers answered. The facts of sites (directory and
//! licence rows, read by the caller through [`crate::inputs::store_inputs`]) stand in the catalog.
//!
//! Sites are ordered by wave, then by the recovery time target of their tier (shortest first), then the operator's own
//! sites (so that a mistake shows on them first), then by id. A site whose tier is unknown counts as of the strictest.
//!
//! A site with a finding of severity error on itself or one of its stores gets no steps, since part of a site is not a
//! site; the others go on. Its part of the plan is there to be read. Findings that the request accepts (overwrite, a
//! blocking publish, a gap) are warnings.
//!
//! # Invariants
//! - Pure: equal input gives an equal plan, with an equal id.
//! - Every index in the plan points into it.
//!
//! # Errors
//! [`PlanError`] for what no plan can be made of; everything else is a note.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::Catalog;
use muster_types::format;
use muster_types::incident::IncidentSite;
use muster_types::kind_check::KindCheck;
use muster_types::plan::{
    CREATED_AGAIN, LiveStore, Note, Plan, Provision, Restoration, Severity, ShardPlan, ShardSurvey, SitePlan,
    StepKey, StoreBeside, StorePlan, TableInput,
};
use muster_types::reference::Reference;
use muster_types::request::PlanRequest;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::{KindMode, Tier, Topology};
use muster_types::{Digest, Kind, ShardName, SiteId, StoreId, Timestamp};

use crate::check::{self, Survey};
use crate::estimate::{self, Demands, bounded_stage_micros};
use crate::graph::{self, KindGraph};
use crate::groups;
use crate::index::CatalogIndex;
use crate::inputs::{Objects, SiteTables, StoreInputs, assemble};
use crate::provision;
use crate::references::{self, FoundBeside, SiteReferences};
use crate::stores::{Finder, FoundStore, states_at, unreadable};

pub use crate::stores::{StoreToProbe, select_placed, select_stores};

/// How long a saved plan holds its objects against pruning: seven days, in microseconds.
pub const PLAN_LIFE_MICROS: i64 = 7 * 24 * 3600 * 1_000_000;

/// Targets of sites where the topology has no tiers at all: a day for the time, an hour for the loss.
const NO_TIER: Tier = Tier { rto_seconds: 86_400, rpo_seconds: 3_600 };

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kinds' dependencies go round in a circle.
    #[error(
        "kind {kind} comes after itself, through what it is declared to come after; take one `after` out of the circle"
    )]
    Cycle {
        /// A kind on the circle.
        kind: Kind,
    },
}

/// Everything that a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// The topology.
    pub topology: &'a Topology,
    /// What the repository holds, with the facts of the sites.
    pub catalog: &'a Catalog,
    /// What is asked for.
    pub request: &'a PlanRequest,
    /// What the drivers said of the stores that [`select_stores`] named.
    pub live: &'a BTreeMap<StoreId, LiveStore>,
    /// The time to stamp the plan with.
    pub now: Timestamp,
}

/// Phase two: the plan, with the checker's notes in it, sealed.
///
/// # Errors
/// [`PlanError`].
pub fn plan(input: PlanInput<'_>) -> Result<Plan, PlanError> {
    plan_placed(input, &BTreeMap::new())
}

/// As [`plan()`], of a request that plans stores elsewhere: `surveys` says what the shards hold that get them.
///
/// # Errors
/// [`PlanError`].
pub fn plan_placed(
    input: PlanInput<'_>,
    surveys: &BTreeMap<ShardName, ShardSurvey>,
) -> Result<Plan, PlanError> {
    let graph = KindGraph::new(input.topology)?;
    let index = CatalogIndex::new(input.catalog);
    let placement = &input.request.placement;
    let finder = Finder { topology: input.topology, index: &index, graph: &graph, placement };
    let mut survey = Survey::new(&finder, input.request);
    let mut draft = Draft { input, index: &index, tables: Tables::default(), objects: Objects::default() };
    let mut sites = Vec::new();
    for asked in check::unique(&input.request.incident) {
        let found = finder.stores_of(asked);
        let referring = survey.site(asked, &found);
        if input.catalog.sites.contains_key(&asked.site) {
            sites.push(draft.site(asked, &found.stores, referring, &mut survey.notes));
        }
    }
    sites.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
    let notes = survey.finish();
    let (provisions, found) = draft.provisions(&sites, surveys);
    let mut plan = draft.finish(sites, notes);
    plan.provisions = provisions;
    plan.notes.extend(found);
    plan.notes.extend(check::plan_notes(&plan, input.topology, input.catalog, input.live));
    let held_back = held_back(&plan.notes);
    let demands = Demands::new(input.catalog);
    plan.steps = graph::steps(input.topology, &graph, &plan, &held_back, &demands);
    groups::mark(&mut plan, input.topology);
    bound_stages(&mut plan);
    plan.notes.extend(check::forecast_notes(&plan));
    check::sort(&mut plan.notes);
    Ok(plan.seal())
}

/// Where the topology bounds how fast a shard is loaded, staging takes no less.
fn bound_stages(plan: &mut Plan) {
    let least: BTreeMap<StepKey, u64> = plan
        .sites
        .iter()
        .flat_map(|site| site.stores.iter().map(move |store| (site, store)))
        .filter_map(|(site, store)| {
            let rate = plan.shards.get(&store.shard)?.stage_bytes_per_second_max?;
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            Some((StepKey::Stage(id), bounded_stage_micros(store, rate)))
        })
        .collect();
    for step in &mut plan.steps {
        let least = least.get(&step.key).copied().unwrap_or(0);
        step.estimate_micros = step.estimate_micros.max(least);
    }
}

/// Sites that a finding keeps from being restored.
pub fn held_back(notes: &[Note]) -> BTreeSet<SiteId> {
    let errors = notes.iter().filter(|note| note.severity == Severity::Error);
    errors.filter_map(|note| note.subject.split('/').next()?.parse().ok()).collect()
}

fn order_key(site: &SitePlan) -> (u32, u64, bool, &SiteId) {
    (site.wave, site.rto_seconds, !site.facts.internal, &site.site)
}

/// The targets of a tier; those of the strictest one where it is not known.
pub(crate) fn tier_targets(topology: &Topology, tier: Option<&str>) -> Tier {
    let known = tier.and_then(|tier| topology.tiers.get(tier));
    let strictest = || topology.tiers.values().min_by_key(|tier| (tier.rto_seconds, tier.rpo_seconds));
    known.or_else(strictest).copied().unwrap_or(NO_TIER)
}

/// Shard, incarnation, schema, kind, and the site where it has tables of its own.
type SchemaKey = (ShardName, usize, u32, Kind, Option<SiteId>);

/// Definitions of a plan, each once.
#[derive(Debug, Default)]
struct Tables {
    list: Vec<CapturedTable>,
    by_content: BTreeMap<(Digest, Kind, String), u32>,
    /// Numbers of the tables of a kind in one schema, so that digests are taken once and not per site.
    by_schema: BTreeMap<SchemaKey, Vec<u32>>,
}

impl Tables {
    fn numbers(&mut self, key: SchemaKey, tables: &[CapturedTable]) -> Vec<u32> {
        if let Some(numbers) = self.by_schema.get(&key) {
            return numbers.clone();
        }
        let numbers: Vec<u32> = tables.iter().map(|table| self.number(table)).collect();
        self.by_schema.insert(key, numbers.clone());
        numbers
    }

    fn number(&mut self, table: &CapturedTable) -> u32 {
        let content = (table.def.digest(), table.kind.clone(), format!("{:?}", table.owner));
        let next = self.list.len() as u32;
        let number = *self.by_content.entry(content).or_insert(next);
        if number == next {
            self.list.push(table.clone());
        }
        number
    }
}

/// All of the store's tables are gone, and the publish creates them.
fn is_created_whole(store: &FoundStore, live: &LiveStore) -> bool {
    let owned = store.tables.iter().filter(|table| table.owner != Owner::Reference).count();
    let created = live.differences.iter().filter(|text| text.starts_with(CREATED_AGAIN)).count();
    owned > 0 && owned == created
}

struct Draft<'a> {
    input: PlanInput<'a>,
    index: &'a CatalogIndex<'a>,
    tables: Tables,
    objects: Objects,
}

impl<'a> Draft<'a> {
    fn site(
        &mut self,
        asked: &IncidentSite,
        found: &[FoundStore],
        referring: SiteReferences,
        notes: &mut Vec<Note>,
    ) -> SitePlan {
        let history = self.input.catalog.sites.get(&asked.site);
        let facts = history.and_then(|history| history.facts.clone()).unwrap_or_default();
        let tier = tier_targets(self.input.topology, facts.tier.as_deref());
        let mut walked: Vec<(&FoundStore, SiteTables<'a>)> = Vec::new();
        let mut stores = Vec::with_capacity(found.len());
        for store in found {
            match self.store(asked, store, &mut walked) {
                Ok(planned) => stores.push(planned),
                Err(problem) => notes.push(unreadable(&asked.site, store, &problem)),
            }
        }
        let (references, beside) = self.all_beside(asked, referring, notes);
        SitePlan {
            references,
            beside,
            site: asked.site.clone(),
            facts,
            target: asked.target,
            outage_at: asked.outage_at,
            wave: 0,
            rto_seconds: tier.rto_seconds,
            rpo_seconds: tier.rpo_seconds,
            stores,
        }
    }

    fn store<'f>(
        &mut self,
        asked: &IncidentSite,
        found: &'f FoundStore,
        walked: &mut Vec<(&'f FoundStore, SiteTables<'a>)>,
    ) -> Result<StorePlan, crate::inputs::InputError> {
        let id = StoreId { site: asked.site.clone(), kind: found.kind.clone() };
        let restoration = restoration(self.input.topology, &found.kind);
        let inputs = match restoration {
            Restoration::Restored => self.inputs(asked, found, walked)?,
            Restoration::Rebuilt { .. } | Restoration::External { .. } => StoreInputs::default(),
        };
        let live = self.input.live.get(&id).cloned().unwrap_or_default();
        let overwrite = self.input.request.overwrite.contains(&asked.site);
        let replaced = if overwrite { live.rows } else { 0 };
        let block = match restoration {
            // Nobody waits for tables that nobody sees yet.
            Restoration::Restored if is_created_whole(found, &live) => {
                estimate::publish_block_milliseconds(0, 0)
            }
            Restoration::Restored => estimate::publish_block_milliseconds(inputs.rows, replaced),
            Restoration::Rebuilt { .. } | Restoration::External { .. } => 0,
        };
        Ok(StorePlan {
            kind: found.kind.clone(),
            restoration,
            source: found.source.clone(),
            shard: found.shard.clone(),
            before: found.before.clone(),
            incarnation: found.point.incarnation.clone(),
            reached: found.point.boundary,
            reached_because: found.point.because.clone(),
            snapshot: inputs.snapshot,
            tables: inputs.inputs,
            rows: inputs.rows,
            bytes: inputs.bytes,
            raw_bytes: inputs.raw_bytes,
            live,
            overwrite,
            publish_block_milliseconds: block,
        })
    }

    /// The references that are counted, and what they need of stores that live on. Where that cannot be read they are left out,
    /// with a note.
    fn all_beside(
        &mut self,
        asked: &IncidentSite,
        referring: SiteReferences,
        notes: &mut Vec<Note>,
    ) -> (Vec<u32>, Vec<StoreBeside>) {
        let (mut beside, mut counted) = (Vec::new(), referring.counted);
        for found in &referring.beside {
            let problem = match self.beside(asked, found) {
                Ok(store) => {
                    beside.push(store);
                    continue;
                }
                Err(problem) => problem.to_string(),
            };
            let all = &self.input.topology.references;
            let leads =
                |reference: &&Reference| reference.ends().iter().any(|(end, _)| end.kind == found.store.kind);
            let lost = |number: &mut u32| all.get(*number as usize).filter(leads).is_some();
            for number in counted.extract_if(.., lost) {
                let text = references::unchecked(&all[number as usize], &problem);
                notes.push(references::unchecked_note(asked.site.to_string(), text));
            }
        }
        (counted, beside)
    }

    /// What is read of a store that lives on: the tables that references name.
    fn beside(
        &mut self,
        asked: &IncidentSite,
        found: &FoundBeside,
    ) -> Result<StoreBeside, crate::inputs::InputError> {
        let inputs = self.inputs(asked, &found.store, &mut Vec::new())?.inputs;
        let named = |input: &TableInput| {
            let table = self.tables.list.get(input.table as usize);
            table.is_some_and(|table| found.tables.contains(&table.def.name))
        };
        let mut tables: Vec<TableInput> = inputs.into_iter().filter(named).collect();
        if found.new {
            tables.iter_mut().for_each(|input| (input.base, input.changes) = (None, Vec::new()));
        }
        let FoundStore { kind, shard, .. } = found.store.clone();
        Ok(StoreBeside { kind, shard, tables, new: found.new })
    }

    /// The inputs with numbers of the plan's own lists.
    fn inputs<'f>(
        &mut self,
        asked: &IncidentSite,
        found: &'f FoundStore,
        walked: &mut Vec<(&'f FoundStore, SiteTables<'a>)>,
    ) -> Result<StoreInputs, crate::inputs::InputError> {
        // Stores of one shard at one recovery point share the walk over the log.
        let same = |known: &FoundStore| {
            known.source == found.source
                && known.point.number == found.point.number
                && known.point.boundary == found.point.boundary
        };
        let place = match walked.iter().position(|(known, _)| same(known)) {
            Some(place) => place,
            None => {
                walked.push((found, states_at(self.index, &asked.site, &found.source, &found.point)?));
                walked.len() - 1
            }
        };
        let Some(shard) = self.index.shard(&found.source) else { return Ok(StoreInputs::default()) };
        let incarnation = &shard.incarnations[found.point.number];
        let boundary = found.point.boundary;
        let mut inputs =
            assemble(incarnation, &walked[place].1, (&asked.site, &found.kind), boundary, &mut self.objects)?;
        let schema = incarnation.schema_at(boundary);
        let own = schema.and_then(|schema| schema.tables(&found.kind, &asked.site)?.site.clone());
        let schema = schema.map_or(0, |schema| schema.number);
        let key = (found.source.clone(), found.point.number, schema, found.kind.clone(), own);
        let numbers = self.tables.numbers(key, &inputs.tables);
        for input in &mut inputs.inputs {
            input.table = numbers[input.table as usize];
        }
        Ok(inputs)
    }

    fn provisions(
        &mut self,
        sites: &[SitePlan],
        surveys: &BTreeMap<ShardName, ShardSurvey>,
    ) -> (BTreeMap<ShardName, Provision>, Vec<Note>) {
        let sources = provision::Sources { topology: self.input.topology, index: self.index, sites };
        let Self { tables, objects, .. } = self;
        provision::provisions(&sources, surveys, |table| tables.number(table), objects)
    }

    fn finish(self, sites: Vec<SitePlan>, notes: Vec<Note>) -> Plan {
        let PlanInput { topology, catalog, request, now, .. } = self.input;
        Plan {
            format: format::FORMAT,
            id: Plan::unsealed_id(),
            created_at: now,
            expires_at: now.plus_micros(PLAN_LIFE_MICROS),
            request: request.clone(),
            repository: catalog.repository.clone(),
            topology: topology.digest,
            objects: self.objects.list,
            tables: self.tables.list,
            shards: shard_plans(topology, &sites),
            references: topology.references.clone(),
            kind_checks: kind_checks(topology, &sites),
            provisions: BTreeMap::new(),
            pools: estimate::pools(topology, &sites),
            sites,
            steps: Vec::new(),
            notes,
        }
    }
}

fn restoration(topology: &Topology, kind: &Kind) -> Restoration {
    match topology.kinds.get(kind).map(|config| &config.mode) {
        Some(KindMode::Rebuilt { command }) => Restoration::Rebuilt { command: command.clone() },
        Some(KindMode::External { command }) => Restoration::External { command: command.clone() },
        Some(KindMode::Restored) | None => Restoration::Restored,
    }
}

/// The checks of the kinds that are planned.
fn kind_checks(topology: &Topology, sites: &[SitePlan]) -> BTreeMap<Kind, Vec<KindCheck>> {
    let planned: BTreeSet<&Kind> =
        sites.iter().flat_map(|site| &site.stores).map(|store| &store.kind).collect();
    let checks =
        |kind: &Kind| topology.kinds.get(kind).map(|config| config.checks.clone()).unwrap_or_default();
    let checked = planned.into_iter().map(|kind| (kind.clone(), checks(kind)));
    checked.filter(|(_, checks)| !checks.is_empty()).collect()
}

fn shard_plans(topology: &Topology, sites: &[SitePlan]) -> BTreeMap<ShardName, ShardPlan> {
    let mut plans: BTreeMap<ShardName, ShardPlan> = BTreeMap::new();
    for store in sites.iter().flat_map(|site| &site.stores) {
        let Some(config) = topology.shards.get(&store.shard) else { continue };
        let plan = plans.entry(store.shard.clone()).or_insert_with(|| ShardPlan {
            region: config.region.clone(),
            driver: config.driver.name().to_owned(),
            writer_block_milliseconds_max: config.writer_block_milliseconds_max,
            stage_bytes_per_second_max: config.stage_bytes_per_second_max,
            stores: 0,
            rows: 0,
            kinds: config.kinds.clone(),
        });
        plan.stores += u64::from(store.restoration == Restoration::Restored);
        plan.rows += store.rows;
    }
    plans
}
