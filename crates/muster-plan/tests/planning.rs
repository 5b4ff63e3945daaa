//! Plans: their shape, their order, their determinism.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::synthetic::{self, Fleet};
use muster_plan::{PlanError, PlanInput, diff, forecast, plan, select_stores};
use muster_types::plan::{LiveStore, Plan, PlanStep, Restoration, Severity, StepKey};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::topology::{KindConfig, KindMode, Topology};
use muster_types::{StoreId, catalog::Catalog};
use proptest::prelude::*;
use support::*;

fn planned(topology: &Topology, catalog: &Catalog, request: &PlanRequest) -> Plan {
    let live = BTreeMap::new();
    plan(PlanInput { topology, catalog, request, live: &live, now: at(2_000.0) }).unwrap()
}

fn synthetic_plan(fleet: Fleet, change: impl FnOnce(&mut Topology, &mut PlanRequest)) -> Plan {
    let mut topology = synthetic::topology(fleet).unwrap();
    let catalog = synthetic::catalog(fleet).unwrap();
    let mut request = synthetic::request(fleet).unwrap();
    change(&mut topology, &mut request);
    planned(&topology, &catalog, &request)
}

const SMALL: Fleet = Fleet { sites: 40, shards: 3, segments: 20 };

fn by_key(plan: &Plan) -> BTreeMap<StepKey, &PlanStep> {
    let steps: BTreeMap<StepKey, &PlanStep> =
        plan.steps.iter().map(|step| (step.key.clone(), step)).collect();
    assert_eq!(steps.len(), plan.steps.len(), "every step once");
    steps
}

#[test]
fn equal_input_gives_an_equal_plan() {
    let (one, two) = (synthetic_plan(SMALL, |_, _| {}), synthetic_plan(SMALL, |_, _| {}));
    assert_eq!(one, two);
    assert_eq!(one.id, two.content_id());
    let other = synthetic_plan(SMALL, |_, request| request.incident.title.push('!'));
    assert_ne!(one.id, other.id);
}

#[test]
fn every_store_is_staged_verified_and_published_once() {
    let plan = synthetic_plan(SMALL, |_, _| {});
    let steps = by_key(&plan);
    assert_eq!(plan.sites.len(), 40);
    for site in &plan.sites {
        assert_eq!(site.stores.len(), 6);
        for store in &site.stores {
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            assert!(steps.contains_key(&StepKey::Stage(id.clone())));
            assert!(steps.contains_key(&StepKey::Verify(id.clone())));
            assert!(steps.contains_key(&StepKey::Publish(id)));
        }
        assert!(steps.contains_key(&StepKey::Check(site.site.clone())));
        assert!(steps.contains_key(&StepKey::Handback(site.site.clone())));
    }
    assert_eq!(plan.steps.len(), 40 * (6 * 3 + 2));
}

/// The numbers of all steps that `step` waits for, at any depth.
fn ancestors(plan: &Plan, step: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![step];
    while let Some(step) = open.pop() {
        let step = &plan.steps[step];
        open.extend(step.after.iter().map(|before| *before as usize).filter(|before| found.insert(*before)));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random dependencies among the kinds: each publish waits for those of all kinds that it comes after, through
    /// kinds that the site does not have, and no step waits for itself.
    #[test]
    fn publishing_follows_the_dependencies(
        edges in prop::collection::vec((0..9usize, 0..9usize), 0..20),
        present in prop::collection::btree_set(0..9usize, 1..9),
        waits in prop::collection::btree_set(0..9usize, 0..4),
        full in any::<bool>(),
    ) {
        let names: Vec<String> = (0..9).map(|number| format!("kind-{number}")).collect();
        // Edges from higher to lower numbers have no circle.
        let edges: BTreeSet<(usize, usize)> = edges.into_iter().filter(|(later, earlier)| later > earlier).collect();
        let mut topology = topology();
        topology.kinds = (0..9).map(|number| {
            let after = edges.iter().filter(|(later, _)| *later == number).map(|(_, earlier)| kind(&names[*earlier]));
            let config = KindConfig { after: after.collect(), stage_waits: waits.contains(&number), mode: KindMode::Restored, checks: vec![] };
            (kind(&names[number]), config)
        }).collect();
        let mut script = Script::new("shard-0");
        for name in &names {
            script.define(name, &format!("table-{name}"), "value");
        }
        for number in &present {
            script.change("a", &format!("table-{}", names[*number]), 0.0, 2);
        }
        script.snapshot(0.0);
        script.poll(10.0);
        let mut request = request(vec![asked("a", 5.0)]);
        request.proof = if full { ProofLevel::Full } else { ProofLevel::Marked };
        let plan = planned(&topology, &catalog(&[&script]), &request);

        for (number, step) in plan.steps.iter().enumerate() {
            prop_assert!(step.after.iter().chain(&step.after_ended).all(|before| (*before as usize) < number));
        }
        let place = |key: StepKey| plan.steps.iter().position(|step| step.key == key).unwrap();
        let store = |number: usize| StoreId { site: site("a"), kind: kind(&names[number]) };
        let mut reach: BTreeSet<(usize, usize)> = edges.clone();
        for _ in 0..9 {
            let further = edges.iter().flat_map(|(later, middle)| {
                reach.iter().filter(move |(start, _)| start == middle).map(|(_, earlier)| (*later, *earlier))
            });
            let further: Vec<(usize, usize)> = further.collect();
            reach.extend(further);
        }
        let before_check = ancestors(&plan, place(StepKey::Check(site("a"))));
        for &later in &present {
            let publish = ancestors(&plan, place(StepKey::Publish(store(later))));
            let stage = ancestors(&plan, place(StepKey::Stage(store(later))));
            prop_assert!(publish.contains(&place(StepKey::Verify(store(later)))));
            prop_assert!(before_check.contains(&place(StepKey::Publish(store(later)))));
            for &earlier in present.iter().filter(|earlier| **earlier != later) {
                let other = place(StepKey::Publish(store(earlier)));
                prop_assert_eq!(publish.contains(&other), reach.contains(&(later, earlier)));
                prop_assert_eq!(stage.contains(&other), reach.contains(&(later, earlier)) && waits.contains(&later));
            }
            if full {
                prop_assert!(publish.contains(&place(StepKey::DigestBefore(shard("shard-0")))));
                let after = &plan.steps[place(StepKey::DigestAfter(shard("shard-0")))];
                prop_assert!(after.after_ended.contains(&(place(StepKey::Publish(store(later))) as u32)));
            }
        }
    }
}

#[test]
fn circles_are_refused() {
    let mut topology = topology();
    topology.kinds.get_mut(&kind("metadata")).unwrap().after.push(kind("licence"));
    let refused = select_stores(&topology, &catalog(&[]), &[]);
    assert!(matches!(refused, Err(PlanError::Cycle { .. })));
}

#[test]
fn urgent_tiers_come_first_and_own_sites_before_others() {
    let plan = synthetic_plan(SMALL, |_, _| {});
    let order: Vec<(u64, bool)> =
        plan.sites.iter().map(|site| (site.rto_seconds, !site.facts.internal)).collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(order, sorted);
    assert!(order.first() < order.last());
}

#[test]
fn rebuilt_kinds_run_a_command_and_external_ones_wait_for_handback() {
    let mut topology = topology();
    let rowless =
        |after: &str, mode| KindConfig { after: vec![kind(after)], stage_waits: false, mode, checks: vec![] };
    let command = vec!["true".to_owned()];
    topology.kinds.insert(
        kind("search"),
        rowless("product:jira-software", KindMode::Rebuilt { command: command.clone() }),
    );
    topology
        .kinds
        .insert(kind("routing"), rowless("search", KindMode::External { command: command.clone() }));
    topology.kinds.insert(kind("mail"), rowless("app:mail", KindMode::External { command }));
    topology.kinds.insert(
        kind("app:mail"),
        KindConfig { after: vec![], stage_waits: false, mode: KindMode::Restored, checks: vec![] },
    );
    let mut script = Script::new("shard-0");
    populate(&mut script, "a");
    script.snapshot(0.0);
    script.poll(10.0);
    let plan = planned(&topology, &catalog(&[&script]), &request(vec![asked("a", 5.0)]));
    let steps = by_key(&plan);
    let of = |name: &str| StoreId { site: site("a"), kind: kind(name) };
    assert!(steps.contains_key(&StepKey::Publish(of("search"))));
    assert!(!steps.contains_key(&StepKey::Stage(of("search"))));
    assert!(!steps.contains_key(&StepKey::Publish(of("routing"))));
    let rowless = |name: &str| plan.store(&of(name)).map(|(_, store)| store.restoration.clone());
    assert!(matches!(rowless("routing"), Some(Restoration::External { .. })));
    assert_eq!(rowless("mail"), None, "the site has nothing that mail comes after");
}

#[test]
fn a_kind_activated_after_the_snapshot_is_found_in_the_log() {
    let mut script = Script::new("shard-0");
    script.change("a", "sites", 0.0, 1);
    script.snapshot(0.0);
    script.change("a", "spaces", 5.0, 1);
    script.poll(10.0);
    script.change("a", "spaces", 15.0, -1);
    script.poll(20.0);
    let catalog = catalog(&[&script]);
    let kinds = |seconds| -> Vec<String> {
        let found = select_stores(&topology(), &catalog, &[asked("a", seconds)]).unwrap();
        found.into_iter().map(|found| found.store.kind.to_string()).collect()
    };
    assert_eq!(kinds(4.0), ["metadata"]);
    assert_eq!(kinds(12.0), ["metadata", "product:confluence"]);
    assert_eq!(kinds(22.0), ["metadata"]);
}

#[test]
fn rows_come_from_where_they_were_and_go_to_where_the_site_lives() {
    let (mut old, mut new) = (Script::new("shard-0"), Script::new("shard-2"));
    old.change("a", "sites", 0.0, 1);
    old.snapshot(0.0);
    new.snapshot(0.0);
    new.change("a", "sites", 11.0, 1);
    old.change("a", "sites", 12.0, -1);
    old.poll(20.0);
    new.poll(20.0);
    let plan = planned(&topology(), &catalog(&[&old, &new]), &request(vec![asked("a", 5.0)]));
    let store = &plan.sites[0].stores[0];
    assert_eq!((store.source.as_str(), store.shard.as_str()), ("shard-0", "shard-2"));
    assert!(plan.notes.iter().any(|note| note.code == "site-moved" && note.severity == Severity::Info));
}

#[test]
fn a_living_site_is_held_back_and_the_others_go_on() {
    let mut topology = topology();
    topology.tiers.clear();
    let mut script = Script::new("shard-0");
    populate(&mut script, "a");
    populate(&mut script, "b");
    script.snapshot(0.0);
    script.poll(10.0);
    let request = request(vec![asked("a", 5.0), asked("b", 5.0)]);
    let alive = StoreId { site: site("a"), kind: kind("metadata") };
    let live = BTreeMap::from([(alive, LiveStore { rows: 3, ..LiveStore::default() })]);
    let catalog = catalog(&[&script]);
    let input = PlanInput {
        topology: &topology,
        catalog: &catalog,
        request: &request,
        live: &live,
        now: at(2_000.0),
    };
    let plan = plan(input).unwrap();
    let sites: BTreeSet<_> = plan.steps.iter().filter_map(|step| step.key.site()).cloned().collect();
    assert_eq!(sites, BTreeSet::from([site("b")]));
    assert_eq!(plan.sites.len(), 2);
}

#[test]
fn the_forecast_respects_the_pools() {
    let wide = synthetic_plan(SMALL, |_, _| {});
    let narrow = synthetic_plan(SMALL, |topology, _| topology.limits.stage_slots = 1);
    let (wide, narrow) = (forecast(&wide), (forecast(&narrow), narrow));
    assert_eq!((wide.sites.len(), narrow.0.sites.len()), (40, 40));
    assert!(wide.total_micros < narrow.0.total_micros);
    let one_by_one: u64 = narrow
        .1
        .steps
        .iter()
        .filter(|step| step.demand.get("stage").is_some())
        .map(|step| step.estimate_micros)
        .sum();
    assert!(narrow.0.total_micros >= one_by_one, "a pool of one runs its steps one after another");
}

#[test]
fn plans_are_compared() {
    let (one, two) = (
        synthetic_plan(SMALL, |_, _| {}),
        synthetic_plan(SMALL, |topology, _| topology.limits.stage_slots = 1),
    );
    assert_eq!(diff(&one, &one), []);
    let changes = diff(&one, &two);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0].subject, "pool/stage");
}

#[test]
fn a_large_fleet_is_planned() {
    let start = std::time::Instant::now();
    let fleet = Fleet { sites: 2_000, shards: 8, segments: 200 };
    let plan = synthetic_plan(fleet, |_, _| {});
    eprintln!("2,000 sites planned in {:?}", start.elapsed());
    assert_eq!(plan.sites.len(), 2_000);
    assert_eq!(plan.steps.len(), 2_000 * 20);
    assert!(plan.worst() < Some(Severity::Error), "{:?}", &plan.notes[..plan.notes.len().min(3)]);
}
