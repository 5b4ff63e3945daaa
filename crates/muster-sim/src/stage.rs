//! Where a run takes place: the world with its fleet and shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Result;
use muster_repo::keys;
use muster_types::format::FORMAT;
use muster_types::plan::Plan;
use muster_types::retention::PlanHold;
use muster_types::{RunId, ShardName};

use crate::dice::Dice;
use crate::faults::Faults;
use crate::fleet::{Fleet, neighbours};
use crate::mutation::Mutation;
use crate::operator::Run;
use crate::shard::{Shard, State};
use crate::world::World;

/// See the module.
#[derive(Debug)]
pub struct Stage {
    pub(crate) world: Arc<World>,
    pub(crate) shards: Vec<Arc<Shard>>,
    pub(crate) fleet: Fleet,
    /// Engines so far: each has a name of its own.
    pub(crate) engines: AtomicU64,
}

impl Stage {
    pub(crate) fn new(
        fleet: Fleet,
        faults: Faults,
        dice: Dice,
        mutation: Option<Mutation>,
        whole_trace: bool,
    ) -> Result<Self> {
        let world = World::new(fleet.objects.iter().cloned(), faults, dice, mutation, whole_trace);
        world.audit().know_truth(fleet.truth.clone());
        let mut shards = Vec::new();
        for (number, name) in fleet.shards().into_iter().enumerate() {
            let tables = fleet.tables_of(name);
            let mut rows = Vec::new();
            for site in neighbours()? {
                for table in &tables {
                    let name = table.def.name.clone();
                    rows.push((name.clone(), site.clone(), format!("{site}-{name}")));
                }
            }
            shards.push(Shard::new(&world, name.clone(), number, tables, rows));
        }
        Ok(Self { world, shards, fleet, engines: AtomicU64::new(0) })
    }

    /// A run that is about to be begun, its plan saved and held.
    pub(crate) fn run(&self, name: &str, plan: Plan) -> Result<Run> {
        let run = Run { id: RunId::new(name)?, plan: Arc::new(plan) };
        let hold = PlanHold {
            format: FORMAT,
            plan: run.plan.id.clone(),
            title: "simulated".to_owned(),
            created_at: run.plan.created_at,
            expires_at: run.plan.expires_at,
            objects: run.plan.objects.iter().map(|object| object.key.clone()).collect(),
        };
        let body = muster_repo::retention::plan_hold_body(&hold)?;
        let created = self.world.elapsed();
        let stored = crate::world::Stored { body, created };
        self.world.objects().insert(keys::plan_hold(&run.plan.id), stored);
        self.world.audit().know_run(&run.id, &run.plan);
        Ok(run)
    }

    /// What the shards hold.
    pub(crate) fn states(&self) -> BTreeMap<ShardName, State> {
        self.shards.iter().map(|shard| (shard.name.clone(), shard.state().clone())).collect()
    }
}
