//! A plan that publishes to a drill's own shards and nowhere else.

use std::collections::BTreeSet;

use muster_engine::{Cancel, Engine, EngineError, Events, Options, RunSummary};
use muster_plan::planner::{self, PlanInput};
use muster_repo::Repository;
use muster_stores::sandbox::SandboxDrivers;
use muster_types::catalog::Catalog;
use muster_types::plan::{Plan, Restoration, Severity};
use muster_types::request::PlanRequest;
use muster_types::topology::{SandboxShard, Topology};
use muster_types::{RunId, ShardName, Timestamp};

use crate::error::DrillError;
use crate::look;

/// What a drill's plan is made of.
#[derive(Clone, Copy)]
pub struct DrillInput<'a> {
    /// The topology as the drill's planner sees it.
    pub topology: &'a Topology,
    /// The shards that the drill made.
    pub shards: &'a [SandboxShard],
    /// Their drivers.
    pub drivers: &'a SandboxDrivers,
    /// What the repository holds, with the facts of the sites.
    pub catalog: &'a Catalog,
    /// The time to stamp the plan with.
    pub now: Timestamp,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct DrillPlan(Plan);

impl DrillPlan {
    /// Plans `request` by the planner of every restore, with each shard replaced by the one that the drill made for it.
    ///
    /// # Errors
    /// [`DrillError::Refused`] where any store would go elsewhere.
    pub async fn make(input: DrillInput<'_>, mut request: PlanRequest) -> Result<Self, DrillError> {
        let DrillInput { topology, shards, drivers, catalog, now } = input;
        let placement = &mut request.placement;
        placement.to_shard = shards.iter().map(|shard| (shard.of().clone(), shard.name().clone())).collect();
        placement.sandbox = true;
        let sites = &request.incident.sites;
        let stores = planner::select_placed(topology, catalog, sites, &request.placement)?;
        let engine = drivers.to_engine();
        let surveys = look::surveys(&engine, catalog, &stores, &request.placement).await?;
        let live = look::live(&engine, stores, &surveys).await?;
        let input = PlanInput { topology, catalog, request: &request, live: &live, now };
        let plan = planner::plan_placed(input, &surveys)?;
        let own: BTreeSet<&ShardName> = shards.iter().map(SandboxShard::name).collect();
        let stores = || plan.sites.iter().flat_map(|site| &site.stores);
        if let Some(stray) = stores().find(|store| !own.contains(&store.shard)) {
            return Err(DrillError::Refused(format!(
                "the drill's plan would publish a {} to shard `{}`, which is not its own; report this",
                stray.kind, stray.shard
            )));
        }
        if let Some(stray) = stores().find(|store| store.restoration != Restoration::Restored) {
            return Err(DrillError::Refused(format!(
                "the drill's plan would run the command of {}; report this",
                stray.kind
            )));
        }
        Ok(Self(plan))
    }

    /// The plan, to look at.
    pub fn plan(&self) -> &Plan {
        &self.0
    }

    /// What keeps it, or some of its sites, from being restored.
    pub fn obstacles(&self) -> Vec<String> {
        let worst = self.0.notes.iter().filter(|note| note.severity >= Severity::Error);
        worst.map(|note| format!("{}: {} ({}; {})", note.subject, note.text, note.code, note.hint)).collect()
    }
}

/// Takes a drill's plan through, by the engine, scheduler and drivers that restore.
///
/// # Errors
/// As [`Engine::apply`].
pub async fn rehearse(
    repository: &Repository,
    plan: &DrillPlan,
    drivers: &SandboxDrivers,
    run: &RunId,
    options: Options,
    cancel: &Cancel,
) -> Result<RunSummary, EngineError> {
    let engine = Engine::new(repository.clone(), drivers.to_engine(), options, Events::none());
    engine.apply(plan.0.clone(), run, cancel).await
}
