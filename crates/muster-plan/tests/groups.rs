//! Which steps may run together.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::groups::{BLOCK_PARTS, STORE_ROWS_MAX, STORES_MAX};
use muster_plan::synthetic::{self, Fleet};
use muster_plan::{PlanInput, plan};
use muster_types::StoreId;
use muster_types::plan::{Plan, PlanStep, StepKey, StorePlan};
use muster_types::request::PlanRequest;
use muster_types::topology::{DriverConfig, Topology};
use support::*;

const FLEET: Fleet = Fleet { sites: 300, shards: 2, segments: 20 };

fn on_postgres(change: impl FnOnce(&mut Topology, &mut PlanRequest)) -> Plan {
    let mut topology = synthetic::topology(FLEET).unwrap();
    for shard in topology.shards.values_mut() {
        shard.driver = DriverConfig::Postgres { connection: "service=shard".to_owned() };
    }
    let catalog = synthetic::catalog(FLEET).unwrap();
    let mut request = synthetic::request(FLEET).unwrap();
    change(&mut topology, &mut request);
    let live = BTreeMap::new();
    let input = PlanInput {
        topology: &topology,
        catalog: &catalog,
        request: &request,
        live: &live,
        now: at(2_000.0),
    };
    plan(input).unwrap()
}

fn store_of<'a>(plan: &'a Plan, step: &PlanStep) -> Option<&'a StorePlan> {
    plan.store(step.key.store()?).map(|(_, store)| store)
}

/// Steps by group.
fn groups(plan: &Plan) -> BTreeMap<u32, Vec<&PlanStep>> {
    let mut groups: BTreeMap<u32, Vec<&PlanStep>> = BTreeMap::new();
    for step in &plan.steps {
        step.group.into_iter().for_each(|group| groups.entry(group).or_default().push(step));
    }
    groups
}

fn verb(step: &PlanStep) -> String {
    step.key.to_string().split('/').next().unwrap().to_owned()
}

#[test]
fn steps_of_a_group_have_everything_in_common() {
    let plan = on_postgres(|_, _| {});
    let groups = groups(&plan);
    assert!(!groups.is_empty());
    let mut stores: BTreeMap<Vec<StoreId>, usize> = BTreeMap::new();
    for steps in groups.values() {
        assert!(steps.len() > 1 && steps.len() <= STORES_MAX, "{}", steps.len());
        let common = |step: &&PlanStep| {
            let store = store_of(&plan, step).unwrap();
            let tables: Vec<u32> = store.tables.iter().map(|input| input.table).collect();
            (verb(step), store.shard.clone(), store.kind.clone(), tables, step.wave)
        };
        let first = common(&steps[0]);
        for step in steps {
            assert_eq!(common(step), first);
            assert_eq!(step.demand, steps[0].demand, "a batch holds it once");
        }
        let of: Vec<StoreId> = steps.iter().map(|step| step.key.store().unwrap().clone()).collect();
        *stores.entry(of).or_default() += 1;
    }
    assert!(stores.values().all(|&verbs| verbs == 3), "staged, verified and published in the same company");
    // Demands stay within the pools.
    for step in &plan.steps {
        assert!(step.demand.iter().all(|(pool, units)| units <= plan.pools[pool]), "{}", step.key);
    }
    // Most are small, and few of these are left over for themselves.
    let stores = plan.sites.iter().map(|site| site.stores.len()).sum::<usize>();
    let grouped = groups.values().map(Vec::len).sum::<usize>();
    assert!(grouped * 100 >= stores * 3 * 95, "{grouped} of {}", stores * 3);
}

#[test]
fn a_group_blocks_writers_for_a_part_of_the_bound() {
    let narrow = on_postgres(|topology, _| {
        topology.shards.values_mut().for_each(|shard| shard.writer_block_milliseconds_max = 100);
    });
    let wide = on_postgres(|_, _| {});
    let largest = |plan: &Plan| groups(plan).values().map(Vec::len).max().unwrap_or(0);
    assert!(
        largest(&narrow) < largest(&wide) && largest(&narrow) > 1,
        "{} {}",
        largest(&narrow),
        largest(&wide)
    );
    for steps in groups(&narrow).values().filter(|steps| matches!(steps[0].key, StepKey::Publish(_))) {
        let rows: u64 = steps.iter().map(|step| store_of(&narrow, step).unwrap().rows).sum();
        let micros = rows * 1_000_000 / muster_plan::estimate::PUBLISH_ROWS_PER_SECOND;
        assert!(micros <= 100_000 / BLOCK_PARTS, "{rows} rows");
    }
}

#[test]
fn what_is_large_or_replaced_or_accepted_or_in_sqlite_runs_alone() {
    let base = on_postgres(|_, _| {});
    let site = base.sites[3].site.clone();
    let accepted = StoreId { site: base.sites[5].site.clone(), kind: kind("identity") };
    let plan = on_postgres(|_, request| {
        request.overwrite.insert(site.clone());
        request.accept_block.insert(accepted.clone());
    });
    let alone: BTreeSet<&StoreId> =
        plan.steps.iter().filter(|step| step.group.is_none()).filter_map(|step| step.key.store()).collect();
    assert!(alone.contains(&accepted));
    assert!(
        plan.sites
            .iter()
            .find(|known| known.site == site)
            .unwrap()
            .stores
            .iter()
            .all(|store| { alone.contains(&StoreId { site: site.clone(), kind: store.kind.clone() }) })
    );
    for step in plan.steps.iter().filter(|step| step.group.is_some()) {
        assert!(store_of(&plan, step).unwrap().rows <= STORE_ROWS_MAX);
    }
    let sqlite = on_postgres(|topology, _| {
        for shard in topology.shards.values_mut() {
            shard.driver = DriverConfig::Sqlite { path: "shard.db".into() };
        }
    });
    assert!(groups(&sqlite).is_empty());
}
