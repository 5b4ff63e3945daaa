//! Where a run takes place: the world with its fleet and shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use muster_repo::keys;
use muster_types::format::FORMAT;
use muster_types::plan::Plan;
use muster_types::retention::PlanHold;
use muster_types::{RunId, ShardName};

use crate::dice::Dice;
use crate::faults::Faults;
use crate::fleet::{Fleet, neighbours, sandbox};
use crate::operator::Run;
use crate::shard::{Shard, State};
use crate::world::{Oddities, World};

/// See the module.
#[derive(Debug)]
pub struct Stage {
    pub(crate) world: Arc<World>,
    pub(crate) shards: Vec<Arc<Shard>>,
    /// A drill's, empty, each with the faults of the one that it stands for.
    pub(crate) sandboxes: Vec<Arc<Shard>>,
    /// Engines so far: each has a name of its own.
    pub(crate) engines: AtomicU64,
    pub(crate) tally: Tally,
}

/// What became of the engines.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    first_points: AtomicU64,
    died: AtomicU64,
    ended_well: AtomicU64,
}

impl Tally {
    pub(crate) fn ended(&self, points: u64, died: bool, ended_well: bool) {
        // Of the first engine that ended.
        let _ = self.first_points.compare_exchange(0, points, Ordering::Relaxed, Ordering::Relaxed);
        self.died.fetch_add(u64::from(died), Ordering::Relaxed);
        self.ended_well.fetch_add(u64::from(ended_well), Ordering::Relaxed);
    }

    /// Points of the first engine that ended, engines that died, engines that came to their end.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.first_points), load(&self.died), load(&self.ended_well))
    }
}

impl Stage {
    pub(crate) fn new(
        fleet: &Fleet,
        faults: Faults,
        dice: Dice,
        oddities: Oddities,
        whole_trace: bool,
    ) -> Result<Self> {
        let world = World::new(fleet.objects.iter().cloned(), faults, dice, oddities, whole_trace);
        world.audit().know_truth(fleet.truth.clone());
        let (mut shards, mut sandboxes) = (Vec::new(), Vec::new());
        for (number, name) in fleet.shards().into_iter().enumerate() {
            let tables = fleet.tables_of(name);
            let mut rows = Vec::new();
            for site in neighbours()? {
                for table in &tables {
                    let name = table.def.name.clone();
                    rows.push((name.clone(), site.clone(), format!("{site}-{name}")));
                }
            }
            sandboxes.push(Shard::new(&world, sandbox(name)?, number, tables.clone(), []));
            shards.push(Shard::new(&world, name.clone(), number, tables, rows));
        }
        Ok(Self { world, shards, sandboxes, engines: AtomicU64::new(0), tally: Tally::default() })
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
            sites: None,
            topology: None,
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
        let all = self.shards.iter().chain(&self.sandboxes);
        all.map(|shard| (shard.name.clone(), shard.state().clone())).collect()
    }
}
