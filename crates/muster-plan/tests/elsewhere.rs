//! Plans whose stores go to another shard than the one that held them.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;

use muster_plan::synthetic::{self, Fleet};
use muster_plan::{PlanInput, plan_placed};
use muster_types::plan::{Plan, Severity, ShardSurvey, StepKey};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::table::TableDef;
use muster_types::topology::Topology;
use muster_types::{ShardName, StoreId};

const SMALL: Fleet = Fleet { sites: 30, shards: 3, segments: 10 };

fn shard(name: &str) -> ShardName {
    name.parse().unwrap()
}

/// A plan of the whole fleet, with a shard `new` beside the others, which holds `tables`.
fn planned(tables: Vec<TableDef>, change: impl FnOnce(&mut Topology, &mut PlanRequest)) -> Plan {
    let mut topology = synthetic::topology(SMALL).unwrap();
    let catalog = synthetic::catalog(SMALL).unwrap();
    let mut request = synthetic::request(SMALL).unwrap();
    let like = topology.shards[&shard("shard-0")].clone();
    topology.shards.insert(shard("new"), like);
    request.proof = ProofLevel::Full;
    request.placement.to_shard = [(shard("shard-0"), shard("new"))].into();
    change(&mut topology, &mut request);
    let surveys = [(shard("new"), ShardSurvey { tables, missing_roles: vec!["app".to_owned()] })].into();
    let live = BTreeMap::new();
    let now = synthetic::began_at().plus_micros(1_000_000_000_000);
    let input = PlanInput { topology: &topology, catalog: &catalog, request: &request, live: &live, now };
    plan_placed(input, &surveys).unwrap()
}

fn definitions() -> Vec<TableDef> {
    synthetic::captured_tables().unwrap().into_iter().map(|table| table.def).collect()
}

fn codes(plan: &Plan, severity: Severity) -> Vec<&str> {
    let notes = plan.notes.iter().filter(|note| note.severity == severity);
    let mut codes: Vec<&str> = notes.map(|note| note.code.as_str()).collect();
    codes.dedup();
    codes
}

#[test]
fn an_empty_shard_is_provisioned_before_anything_is_staged_in_it() {
    let plan = planned(vec![], |_, _| {});
    let provision = &plan.provisions[&shard("new")];
    assert_eq!((&provision.source, provision.tables.len()), (&shard("shard-0"), definitions().len()));
    assert_eq!(provision.without_roles, ["app"]);
    let number = plan.steps.iter().position(|step| step.key == StepKey::Provision(shard("new"))).unwrap();
    let number = u32::try_from(number).unwrap();
    let mut staged = 0;
    for site in &plan.sites {
        for store in &site.stores {
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            let stage = plan.steps.iter().find(|step| step.key == StepKey::Stage(id.clone())).unwrap();
            assert_ne!(store.shard, shard("shard-0"));
            assert_eq!(store.source == shard("shard-0"), store.shard == shard("new"));
            assert_eq!(stage.after.contains(&number), store.shard == shard("new"), "{id}");
            staged += u32::from(store.shard == shard("new"));
        }
    }
    assert!(staged > 0);
    // What was empty has no neighbours.
    let digested = |name: &str| plan.steps.iter().any(|step| step.key == StepKey::DigestBefore(shard(name)));
    assert!(digested("shard-1") && !digested("new") && !digested("shard-0"));
    assert!(codes(&plan, Severity::Fatal).is_empty() && codes(&plan, Severity::Error).is_empty());
    assert!(codes(&plan, Severity::Warning).contains(&"roles-missing"));
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn a_shard_that_has_tables_must_have_the_same() {
    let same = planned(definitions(), |_, _| {});
    assert!(same.provisions.is_empty() && codes(&same, Severity::Fatal).is_empty());
    let mut other = definitions();
    let changed = other.iter_mut().find(|def| !def.columns.is_empty()).unwrap();
    changed.columns[0].not_null ^= true;
    let name = changed.name.clone();
    let differs = planned(other, |_, _| {});
    let note = differs.notes.iter().find(|note| note.code == "definitions-differ").unwrap();
    assert!(note.severity == Severity::Fatal && note.text.contains(&name), "{note:?}");
    let missing = planned(definitions().into_iter().skip(1).collect(), |_, _| {});
    assert!(missing.notes.iter().any(|note| note.text.ends_with("is not there")));
}

#[test]
fn two_shards_do_not_go_into_one_empty_one() {
    let plan = planned(vec![], |_, request| {
        request.placement.to_shard.insert(shard("shard-1"), shard("new"));
    });
    assert_eq!(codes(&plan, Severity::Fatal), ["several-sources"]);
}

#[test]
fn another_region_needs_its_flag() {
    let far =
        |topology: &mut Topology| topology.shards.get_mut(&shard("new")).unwrap().region = "mars".to_owned();
    let plan = planned(vec![], |topology, _| far(topology));
    assert!(codes(&plan, Severity::Error).contains(&"region-mismatch"));
    assert!(!plan.steps.iter().any(|step| step.key == StepKey::Provision(shard("new"))), "nobody goes there");
    let allowed = planned(vec![], |topology, request| {
        far(topology);
        request.placement.allow_region = true;
    });
    assert!(codes(&allowed, Severity::Warning).contains(&"region-mismatch"));
    assert!(codes(&allowed, Severity::Error).is_empty());
}

#[test]
fn only_what_a_shard_held_is_planned() {
    let plan = planned(vec![], |_, request| {
        request.placement.only_shards.insert(shard("shard-0"));
    });
    let mut stores = plan.sites.iter().flat_map(|site| &site.stores);
    assert!(stores.all(|store| store.source == shard("shard-0") && store.shard == shard("new")));
    let of_others = plan.sites.iter().filter(|site| site.stores.is_empty()).count();
    let told = plan.notes.iter().filter(|note| note.code == "nothing-planned").count();
    assert!(of_others > 0 && of_others == told, "{of_others} {told}");
    assert!(codes(&plan, Severity::Error).is_empty(), "{:?}", plan.notes);
}
