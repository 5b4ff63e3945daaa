//! Every code of the checker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic"
)]

mod support;

use std::collections::BTreeMap;

use muster_plan::check::KEY_HELD;
use muster_plan::{PlanInput, check, plan};
use muster_types::catalog::{Catalog, SiteFacts};
use muster_types::plan::{LiveStore, Note, Plan, Severity};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::segment::{Gap, TableEventKind};
use muster_types::topology::Topology;
use muster_types::{Digest, StoreId};
use support::*;

/// A plan's surroundings, to be changed by a test.
struct Case {
    topology: Topology,
    catalog: Catalog,
    request: PlanRequest,
    live: BTreeMap<StoreId, LiveStore>,
}

impl Case {
    /// Site `a`, alone and gone, asked for at 5 s.
    fn new() -> Self {
        Self::of(&[&one_site()])
    }

    fn of(scripts: &[&Script]) -> Self {
        let mut case = Self {
            topology: topology(),
            catalog: catalog(scripts),
            request: request(vec![asked("a", 5.0)]),
            live: BTreeMap::new(),
        };
        case.facts(|_| {});
        for (name, ..) in case.topology.kinds.clone() {
            case.live(name.as_str(), |_| {});
        }
        case
    }

    fn facts(&mut self, change: impl FnOnce(&mut SiteFacts)) {
        let history = self.catalog.sites.entry(site("a")).or_default();
        let mut facts = SiteFacts {
            region: Some("eu".to_owned()),
            tier: Some("free".to_owned()),
            ..SiteFacts::default()
        };
        change(&mut facts);
        history.facts = Some(facts);
    }

    fn live(&mut self, kind_name: &str, change: impl FnOnce(&mut LiveStore)) {
        let store = StoreId { site: site("a"), kind: kind(kind_name) };
        change(self.live.entry(store).or_default());
    }

    fn plan(&self) -> Plan {
        let Self { topology, catalog, request, live } = self;
        plan(PlanInput { topology, catalog, request, live, now: at(1_001.0) }).unwrap()
    }

    /// The one note of this code; and the checker, on its own, says the same as the planner.
    #[track_caller]
    fn expect(&self, code: &str, severity: Severity, subject: &str) -> Note {
        let plan = self.plan();
        let of_code: Vec<&Note> =
            plan.notes.iter().filter(|note| note.code == code && note.subject == subject).collect();
        assert_eq!(of_code.len(), 1, "{code} of {subject} in {:#?}", plan.notes);
        assert_eq!(of_code[0].severity, severity, "{:?}", of_code[0]);
        let checked = check(&plan, &self.topology, &self.catalog, &self.live);
        assert!(checked.contains(of_code[0]), "{checked:#?}");
        assert!(!of_code[0].hint.is_empty());
        let held_back = plan.steps.is_empty();
        assert_eq!(held_back, severity == Severity::Error || plan.sites.is_empty(), "{:#?}", plan.notes);
        of_code[0].clone()
    }

    #[track_caller]
    fn expect_none(&self, code: &str) {
        let notes = self.plan().notes;
        assert!(notes.iter().all(|note| note.code != code), "{notes:#?}");
    }
}

fn one_site() -> Script {
    let mut script = Script::new("shard-0");
    populate(&mut script, "a");
    script.snapshot(0.0);
    script.poll(10.0);
    script
}

#[test]
fn a_plain_case_has_no_notes() {
    assert_eq!(Case::new().plan().notes, []);
}

/// Without the list of its slices, a site looks as if it had had no rows before the snapshot.
#[test]
fn a_snapshot_that_does_not_say_what_it_holds_of_a_site() {
    let mut case = Case::new();
    let trace = &mut case.catalog.sites.get_mut(&site("a")).unwrap().traces[0];
    trace.snapshots.clear();
    trace.unread.insert(0);
    let note = case.expect("unreadable-log", Severity::Error, "site:a");
    assert!(note.hint.contains("bring the object back"), "{note:?}");
}

#[test]
fn empty_selection() {
    let mut case = Case::new();
    case.request.incident.sites.clear();
    case.expect("empty-selection", Severity::Fatal, "plan");
}

#[test]
fn unknown_site() {
    let mut case = Case::new();
    case.request.incident.sites = vec![asked("nobody", 5.0)];
    case.expect("unknown-site", Severity::Error, "site:nobody");
}

#[test]
fn a_site_without_rows_at_its_target() {
    let mut script = Script::new("shard-0");
    script.snapshot(0.0);
    script.poll(10.0);
    script.change("a", "sites", 11.0, 1);
    script.poll(20.0);
    Case::of(&[&script]).expect("unknown-site", Severity::Error, "site:a");
}

#[test]
fn duplicate_site() {
    let mut case = Case::new();
    case.request.incident.sites.push(asked("a", 5.0));
    case.expect("duplicate-site", Severity::Warning, "site:a");
    case.request.incident.sites[1].target = at(6.0);
    case.expect("duplicate-site", Severity::Error, "site:a");
}

#[test]
fn missing_snapshot() {
    let mut case = Case::new();
    case.request.incident.sites[0].target = at(-5.0);
    case.expect("missing-snapshot", Severity::Error, "site:a");
}

#[test]
fn unreadable_log() {
    let mut script = one_site();
    script.define("identity", "users", "renamed");
    script.change("a", "users", 11.0, 1);
    script.poll(20.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(25.0);
    case.expect("unreadable-log", Severity::Error, "site:a/identity");
}

#[test]
fn log_gap() {
    let mut script = one_site();
    let after = script.history.segments[0].boundary;
    script.history.gaps.push(Gap { after, before: None, reason: "capture gave up".to_owned() });
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(15.0);
    let note = case.expect("log-gap", Severity::Fatal, "shard-0");
    assert!(note.hint.contains("--accept-gap 'shard-0: capture gave up'"), "{}", note.hint);
    case.request.accept_gap.insert("shard-0: capture gave up".to_owned());
    case.expect("log-gap", Severity::Warning, "shard-0");
}

#[test]
fn target_not_covered() {
    let mut case = Case::new();
    case.request.incident.sites[0].target = at(15.0);
    case.expect("target-not-covered", Severity::Warning, "shard-0");
    case.request.incident.sites[0].target = at(10.0);
    case.expect_none("target-not-covered");
}

#[test]
fn site_alive() {
    let mut case = Case::new();
    case.live("identity", |live| live.rows = 7);
    case.expect("site-alive", Severity::Error, "site:a/identity");
    case.request.overwrite.insert(site("a"));
    case.expect("site-alive", Severity::Warning, "site:a/identity");
}

#[test]
fn region_mismatch() {
    let mut case = Case::new();
    case.facts(|facts| facts.region = Some("us".to_owned()));
    case.expect("region-mismatch", Severity::Error, "site:a/metadata");
    // Without a directory that says so, the region that the rows come from counts.
    let mut moved = Script::new("shard-1");
    moved.snapshot(0.0);
    moved.change("a", "sites", 11.0, 1);
    moved.poll(20.0);
    let mut case = Case::of(&[&one_site(), &moved]);
    case.facts(|facts| facts.region = None);
    case.expect("region-mismatch", Severity::Error, "site:a/metadata");
}

#[test]
fn unknown_shard() {
    let mut case = Case::new();
    case.topology.shards.remove(&shard("shard-0"));
    case.expect("unknown-shard", Severity::Error, "site:a/metadata");
}

#[test]
fn demand_above_capacity() {
    let mut case = Case::new();
    case.topology.limits.bytes_in_flight = 1_000;
    let note = case.expect("demand-above-capacity", Severity::Error, "site:a/metadata");
    assert!(note.text.contains("pool bytes, which holds 1000"), "{}", note.text);
}

#[test]
fn dependency_without_store() {
    let mut script = Script::new("shard-0");
    script.change("a", "sites", 0.0, 1).change("a", "issues", 0.0, 1).change("a", "licences", 0.0, 1);
    script.snapshot(0.0);
    script.poll(10.0);
    let case = Case::of(&[&script]);
    case.expect("dependency-without-store", Severity::Warning, "site:a/product:jira-software");
}

#[test]
fn licensed_without_store() {
    let mut script = Script::new("shard-0");
    script.change("a", "sites", 0.0, 1);
    script.snapshot(0.0);
    script.poll(10.0);
    let mut case = Case::of(&[&script]);
    case.facts(|facts| {
        facts.licensed = vec![kind("metadata"), kind("product:confluence"), kind("app:unheard-of")];
    });
    case.expect("licensed-without-store", Severity::Warning, "site:a/product:confluence");
    case.expect("licensed-without-store", Severity::Warning, "site:a/app:unheard-of");
}

#[test]
fn key_held_and_definition_changed() {
    let mut case = Case::new();
    let held = format!("{KEY_HELD}sites.address `acme` is held by site:b");
    case.live("metadata", |live| live.differences = vec!["table `sites`: column added".to_owned()]);
    case.expect("definition-changed", Severity::Warning, "site:a/metadata");
    case.live("metadata", |live| live.differences.push(held));
    let note = case.expect("key-held", Severity::Error, "site:a/metadata");
    assert_eq!(note.text, "sites.address `acme` is held by site:b");
}

#[test]
fn site_moved() {
    let mut moved = Script::new("shard-2");
    moved.snapshot(0.0);
    moved.change("a", "sites", 11.0, 1);
    moved.poll(20.0);
    Case::of(&[&one_site(), &moved]).expect("site-moved", Severity::Info, "site:a/metadata");
}

#[test]
fn split_store() {
    let mut other = Script::new("shard-2");
    other.change("a", "issues", 0.0, 3);
    other.snapshot(0.0);
    other.poll(10.0);
    Case::of(&[&one_site(), &other]).expect("split-store", Severity::Warning, "site:a/product:jira-software");
}

#[test]
fn tables_that_the_topology_does_not_know() {
    let mut case = Case::new();
    case.topology.tables.remove("pages");
    case.expect("table-not-declared", Severity::Warning, "shard-0/pages");
    let mut case = Case::new();
    case.topology.kinds.remove(&kind("app:timesheets"));
    case.expect("table-not-declared", Severity::Warning, "site:a/app:timesheets");
    let mut script = one_site();
    script.poll_with(20.0, vec![("strange", TableEventKind::Undeclared)]);
    script.poll(30.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(25.0);
    case.expect("table-undeclared", Severity::Warning, "shard-0/strange");
    case.request.incident.sites[0].target = at(5.0);
    case.expect_none("table-undeclared");
}

#[test]
fn a_table_that_is_not_captured_any_more() {
    let mut script = one_site();
    script.change("a", "users", 11.0, 1);
    script.poll(15.0);
    script.change("a", "pages", 16.0, 1);
    script.poll_with(20.0, vec![("users", TableEventKind::Undeclared)]);
    script.poll(30.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(17.0);
    case.expect_none("unreadable-log");
    case.request.incident.sites[0].target = at(25.0);
    let note = case.expect("unreadable-log", Severity::Error, "site:a/identity");
    assert!(note.text.contains("table users") && note.text.contains("scripted"), "{}", note.text);
    assert!(note.hint.contains(&at(15.0).to_string()), "{}", note.hint);

    // A snapshot without it makes nothing known; one that has it, or a whole reading, does.
    let users = script.tables.iter().position(|table| table.def.name == "users").unwrap();
    let users = script.tables.remove(users);
    script.rows.retain(|(_, table), _| table != "users");
    script.snapshot(40.0);
    script.poll(50.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(45.0);
    case.expect("unreadable-log", Severity::Error, "site:a/identity");
    case.topology.tables.remove("users");
    case.expect_none("unreadable-log");
    script.tables.push(users);
    script.unseen("a", "users", 4);
    script.poll_with(60.0, vec![("users", TableEventKind::Reread)]);
    script.poll(70.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(55.0);
    case.expect("unreadable-log", Severity::Error, "site:a/identity");
    case.request.incident.sites[0].target = at(65.0);
    case.expect_none("unreadable-log");
}

#[test]
fn claimed_by_run() {
    let mut case = Case::new();
    case.live("licence", |live| live.claimed_by = Some("run-7".to_owned()));
    case.expect("claimed-by-run", Severity::Error, "site:a/licence");
}

#[test]
fn shard_unwritable() {
    let mut case = Case::new();
    case.live("licence", |live| live.unwritable = Some("read-only file".to_owned()));
    case.expect("shard-unwritable", Severity::Error, "site:a/licence");
}

#[test]
fn full_proof_impossible() {
    let mut case = Case::new();
    let lacks = "ALTER TABLE t REPLICA IDENTITY FULL".to_owned();
    case.live("licence", |live| live.full_proof_lacks = Some(lacks.clone()));
    case.expect_none("full-proof-impossible");
    case.request.proof = ProofLevel::Full;
    let hint = case.expect("full-proof-impossible", Severity::Fatal, "shard-0").hint;
    assert!(hint.contains(&lacks) && hint.contains("without --proof full"), "{hint}");
}

#[test]
fn publish_blocks_too_long() {
    let mut case = Case::new();
    if let Some(shard) = case.topology.shards.get_mut(&shard("shard-0")) {
        shard.writer_block_milliseconds_max = 1;
    }
    case.expect("publish-blocks-too-long", Severity::Error, "site:a/metadata");
    for kind in case.topology.kinds.keys() {
        case.request.accept_block.insert(StoreId { site: site("a"), kind: kind.clone() });
    }
    case.expect("publish-blocks-too-long", Severity::Warning, "site:a/metadata");
}

#[test]
fn recovery_targets_missed() {
    let mut script = one_site();
    script.change("b", "issues", 11.0, 1);
    script.poll(8_000.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(7_000.0);
    case.expect("rpo-missed", Severity::Warning, "site:a");
    case.request.incident.declared_at = at(-90_000.0);
    case.expect("rto-missed", Severity::Warning, "plan");
}

#[test]
fn an_idle_shard_misses_no_recovery_point_target() {
    let mut script = one_site();
    script.poll(8_000.0);
    let mut case = Case::of(&[&script]);
    case.request.incident.sites[0].target = at(7_000.0);
    case.expect_none("rpo-missed");
}

#[test]
fn skew() {
    let mut other = Script::new("shard-2");
    other.change("a", "worklogs", 0.0, 50);
    other.snapshot(0.0);
    other.poll(3.0);
    other.change("a", "worklogs", 3.5, 1);
    other.poll(10.0);
    let note = Case::of(&[&one_site(), &other]).expect("skew", Severity::Info, "plan");
    assert!(note.text.contains("at most 2.000 s apart (site:a)"), "{}", note.text);
}

#[test]
fn not_probed() {
    let mut case = Case::new();
    case.live.clear();
    case.expect("not-probed", Severity::Warning, "plan");
}

#[test]
fn a_plan_that_is_wrong_or_old() {
    let case = Case::new();
    let mut plan = case.plan();
    plan.sites[0].stores[0].reached.at = at(6.0);
    let notes = check(&plan, &case.topology, &case.catalog, &case.live);
    assert_eq!((notes[0].code.as_str(), notes[0].severity), ("after-target", Severity::Fatal));
    let mut changed = case.topology.clone();
    changed.digest = Digest::of(b"another");
    let notes = check(&case.plan(), &changed, &case.catalog, &case.live);
    assert_eq!((notes[0].code.as_str(), notes[0].severity), ("topology-changed", Severity::Fatal));
}

#[test]
fn live_state_that_changed_since_the_plan() {
    let mut case = Case::new();
    let plan = case.plan();
    case.live("metadata", |live| live.rows = 1);
    let notes = check(&plan, &case.topology, &case.catalog, &case.live);
    assert_eq!(notes.iter().map(|note| note.code.as_str()).collect::<Vec<_>>(), ["site-alive"]);
}
