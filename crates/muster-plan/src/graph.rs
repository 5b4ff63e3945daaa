//! The dependency graph of kinds, and from it the steps of a plan.
//!
//! Staging and verifying of all stores run side by side; publishing follows each site's dependencies. A dependency on
//! a kind that the site does not have is a dependency on whatever that kind comes after.
//!
//! Per restored store: `stage → verify → publish`. A rebuilt store has only a `publish`, which runs its command; an
//! external one has no step of its own, its command runs at the site's `handback`. Per site: `check` after all of its
//! publishes; after it `references`, where a declared one concerns the site, and a `kind-check` for each check of each of its
//! kinds; `handback` after all of these. Per empty shard: `provision` ahead of every stage. Per other shard, with the full proof: `digest-before` ahead of every publish,
//! `digest-after` once all of them ended.
//!
//! # Invariants
//! - Edges point to earlier entries of the list only, so that it is its own topological order.
//!
//! # Errors
//! [`PlanError::Cycle`].

use std::collections::{BTreeMap, BTreeSet};

use muster_types::kind_check::KindCheck;
use muster_types::plan::{Plan, PlanStep, Restoration, SitePlan, StepKey, StorePlan};
use muster_types::request::ProofLevel;
use muster_types::topology::Topology;
use muster_types::{Kind, ShardName, SiteId, StoreId};
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::estimate::{Cost, Demands};
use crate::planner::PlanError;

/// Kinds and what each comes after.
#[derive(Clone, Debug)]
pub struct KindGraph {
    /// Edges run from a dependency to what comes after it.
    graph: DiGraph<Kind, ()>,
    nodes: BTreeMap<Kind, NodeIndex>,
    ranks: BTreeMap<Kind, usize>,
    stage_waits: BTreeSet<Kind>,
}

impl KindGraph {
    /// The graph of a topology's kinds.
    ///
    /// # Errors
    /// [`PlanError::Cycle`] naming a kind on it.
    pub fn new(topology: &Topology) -> Result<Self, PlanError> {
        let mut graph = DiGraph::new();
        let nodes: BTreeMap<Kind, NodeIndex> =
            topology.kinds.keys().map(|kind| (kind.clone(), graph.add_node(kind.clone()))).collect();
        for (kind, config) in &topology.kinds {
            for dependency in config.after.iter().filter_map(|after| nodes.get(after)) {
                graph.update_edge(*dependency, nodes[kind], ());
            }
        }
        toposort(&graph, None).map_err(|cycle| PlanError::Cycle { kind: graph[cycle.node_id()].clone() })?;
        let ranks = ranks(&graph);
        let waits = topology.kinds.iter().filter(|(_, config)| config.stage_waits);
        let stage_waits = waits.map(|(kind, _)| kind.clone()).collect();
        Ok(Self { graph, nodes, ranks, stage_waits })
    }

    /// Place of a kind in one fixed topological order; unknown kinds come last.
    pub fn rank(&self, kind: &Kind) -> usize {
        self.ranks.get(kind).copied().unwrap_or(usize::MAX)
    }

    /// The kinds among `present` that `kind` comes after: directly, or through kinds that are not present.
    pub fn present_before(&self, kind: &Kind, present: &BTreeSet<Kind>) -> BTreeSet<Kind> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<NodeIndex> = self.nodes.get(kind).copied().into_iter().collect();
        while let Some(node) = open.pop() {
            for dependency in self.graph.neighbors_directed(node, petgraph::Direction::Incoming) {
                if !seen.insert(dependency) {
                    continue;
                }
                match present.get(&self.graph[dependency]) {
                    Some(kind) => {
                        found.insert(kind.clone());
                    }
                    None => open.push(dependency),
                }
            }
        }
        found
    }
}

/// Kahn's order with the smallest name first, so that it depends on nothing but the graph.
fn ranks(graph: &DiGraph<Kind, ()>) -> BTreeMap<Kind, usize> {
    let mut waiting: BTreeMap<NodeIndex, usize> = BTreeMap::new();
    let mut ready: BTreeSet<(&Kind, NodeIndex)> = BTreeSet::new();
    for node in graph.node_indices() {
        let count = graph.neighbors_directed(node, petgraph::Direction::Incoming).count();
        waiting.insert(node, count);
        if count == 0 {
            ready.insert((&graph[node], node));
        }
    }
    let mut ranks = BTreeMap::new();
    while let Some((kind, node)) = ready.pop_first() {
        ranks.insert(kind.clone(), ranks.len());
        for next in graph.neighbors(node) {
            let count = waiting.entry(next).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                ready.insert((&graph[next], next));
            }
        }
    }
    ranks
}

/// The steps for all sites of `plan` that are not in `held_back`.
pub fn steps(
    topology: &Topology,
    graph: &KindGraph,
    plan: &Plan,
    held_back: &BTreeSet<SiteId>,
    demands: &Demands<'_>,
) -> Vec<PlanStep> {
    let sites = &plan.sites;
    let planned = || sites.iter().filter(|site| !held_back.contains(&site.site));
    let mut builder = Builder {
        graph,
        demands,
        kind_checks: &plan.kind_checks,
        steps: Vec::new(),
        publishes: BTreeMap::new(),
        before: BTreeMap::new(),
        provisioned: BTreeMap::new(),
    };
    let stores = planned().flat_map(|site| &site.stores);
    let shards: BTreeSet<&ShardName> =
        stores.filter(|store| is_restored(store)).map(|store| &store.shard).collect();
    for (shard, provision) in plan.provisions.iter().filter(|(shard, _)| shards.contains(shard)) {
        let step =
            builder.push(StepKey::Provision(shard.clone()), vec![], demands.provision(shard, provision), 0);
        builder.provisioned.insert(shard.clone(), step);
    }
    if plan.request.proof == ProofLevel::Full {
        // A shard that was empty has no neighbours.
        let inhabited = |shard: &&ShardName| !plan.provisions.contains_key(*shard);
        let shards = shards.into_iter().filter(inhabited);
        for shard in shards.filter(|shard| topology.shards.contains_key(*shard)) {
            let step = builder.push(StepKey::DigestBefore(shard.clone()), vec![], demands.digest(shard), 0);
            builder.before.insert(shard.clone(), step);
        }
    }
    for site in planned() {
        builder.site(site);
    }
    for (shard, before) in std::mem::take(&mut builder.before) {
        let ended = builder.publishes.remove(&shard).unwrap_or_default();
        let wave = sites.iter().map(|site| site.wave).max().unwrap_or(0);
        let after =
            builder.push(StepKey::DigestAfter(shard.clone()), vec![before], demands.digest(&shard), wave);
        builder.steps[after as usize].after_ended = ended;
    }
    builder.steps
}

fn is_restored(store: &StorePlan) -> bool {
    store.restoration == Restoration::Restored
}

struct Builder<'a> {
    graph: &'a KindGraph,
    demands: &'a Demands<'a>,
    kind_checks: &'a BTreeMap<Kind, Vec<KindCheck>>,
    steps: Vec<PlanStep>,
    /// Publishes of each shard that is digested.
    publishes: BTreeMap<ShardName, Vec<u32>>,
    before: BTreeMap<ShardName, u32>,
    provisioned: BTreeMap<ShardName, u32>,
}

impl Builder<'_> {
    fn push(&mut self, key: StepKey, after: Vec<u32>, cost: Cost, wave: u32) -> u32 {
        let (demand, estimate_micros) = cost;
        let number = self.steps.len() as u32;
        self.steps.push(PlanStep {
            key,
            after,
            after_ended: Vec::new(),
            demand,
            estimate_micros,
            wave,
            group: None,
        });
        number
    }

    fn site(&mut self, site: &SitePlan) {
        let present: BTreeSet<Kind> = site
            .stores
            .iter()
            .filter(|store| !matches!(store.restoration, Restoration::External { .. }))
            .map(|store| store.kind.clone())
            .collect();
        let mut stores: Vec<&StorePlan> =
            site.stores.iter().filter(|store| present.contains(&store.kind)).collect();
        stores.sort_by_key(|store| self.graph.rank(&store.kind));
        let mut published: BTreeMap<&Kind, u32> = BTreeMap::new();
        for store in stores {
            let before = self.graph.present_before(&store.kind, &present);
            let dependencies: Vec<u32> =
                before.iter().filter_map(|kind| published.get(kind).copied()).collect();
            let publish = self.store(site, store, dependencies);
            published.insert(&store.kind, publish);
        }
        let all: Vec<u32> = published.into_values().collect();
        let check = self.push(StepKey::Check(site.site.clone()), all, self.demands.check(site), site.wave);
        let mut checks = vec![check];
        if !site.references.is_empty() {
            let key = StepKey::References(site.site.clone());
            checks.push(self.push(key, vec![check], self.demands.references(site), site.wave));
        }
        for store in &site.stores {
            for wanted in self.kind_checks.get(&store.kind).into_iter().flatten() {
                let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
                let key = StepKey::KindCheck { store: id, check: wanted.name.clone() };
                checks.push(self.push(key, vec![check], self.demands.kind_check(), site.wave));
            }
        }
        self.push(StepKey::Handback(site.site.clone()), checks, self.demands.handback(site), site.wave);
    }

    /// The steps of one store; the number of its publish.
    fn store(&mut self, site: &SitePlan, store: &StorePlan, mut dependencies: Vec<u32>) -> u32 {
        let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
        if is_restored(store) {
            let waits = self.graph.stage_waits.contains(&store.kind);
            let mut stage_after = if waits { dependencies.clone() } else { Vec::new() };
            stage_after.extend(self.provisioned.get(&store.shard));
            stage_after.sort_unstable();
            let stage =
                self.push(StepKey::Stage(id.clone()), stage_after, self.demands.stage(store), site.wave);
            let verify =
                self.push(StepKey::Verify(id.clone()), vec![stage], self.demands.verify(store), site.wave);
            dependencies.push(verify);
            dependencies.extend(self.before.get(&store.shard));
        }
        dependencies.sort_unstable();
        let publish = self.push(StepKey::Publish(id), dependencies, self.demands.publish(store), site.wave);
        if self.before.contains_key(&store.shard) {
            self.publishes.entry(store.shard.clone()).or_default().push(publish);
        }
        publish
    }
}
