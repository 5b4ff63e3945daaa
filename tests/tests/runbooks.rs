//! The runbooks: their commands, exactly as they stand, against a fleet with that damage, judged by the oracle.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::path::Path;
use std::time::Duration;

use muster_demo::{DeletionLog, Kind, Reached, Role, Site, WriterConfig};
use muster_tests::{Incident, Page, Size, World, now, query, seed, until};
use muster_types::drill::DrillClass;
use rusqlite::Connection;

const ONE_STORE: Page = Page(include_str!("../../docs/runbooks/one-store.md"));
const ONE_SITE: Page = Page(include_str!("../../docs/runbooks/one-site.md"));
const MANY_SITES: Page = Page(include_str!("../../docs/runbooks/many-sites.md"));
const LOST_SHARD: Page = Page(include_str!("../../docs/runbooks/lost-shard.md"));
const CORRUPTION: Page = Page(include_str!("../../docs/runbooks/corruption.md"));

const SIZE: Size = Size { sites: 12, rows_per_site: 60 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 2 };

/// A captured world with some history, in which nobody writes any more, and a moment of it.
fn quiet(seed: u64) -> (World, String) {
    let world = World::captured(SIZE, seed);
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 150);
    writers.stop().unwrap();
    world.capture_once();
    let at = now();
    world.capture_once();
    (world, at)
}

/// Every row of the fleet is as its writers know it.
fn is_whole(world: &World) {
    let verdict = world.fleet.judge(&DeletionLog::default(), &Reached::new(), 2_000_000).unwrap();
    assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
    assert!(verdict.neighbour_rows > 500, "{verdict}");
}

fn with_jira(world: &World) -> &Site {
    let has = |site: &&Site| site.kinds.contains(&Kind::JiraSoftware);
    world.fleet.sites.iter().filter(has).max_by_key(|site| site.rows).expect("a site with Jira")
}

fn shard<'w>(world: &'w World, site: &Site, role: Role) -> &'w muster_demo::Shard {
    let here = |shard: &&muster_demo::Shard| shard.role == role && shard.region == site.region;
    world.fleet.shards.iter().find(here).unwrap()
}

/// Changes rows behind the back of the oracle.
fn damage(world: &World, site: &Site, sql: &str) {
    let conn = Connection::open(&shard(world, site, Role::Jira).path).unwrap();
    conn.execute_batch(&format!("PRAGMA foreign_keys = ON; {sql}")).unwrap();
    assert!(conn.changes() > 0, "nothing is damaged");
    world.capture_once();
}

#[test]
fn each_class_of_drills_has_its_page() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let mut pages: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|page| page != "README")
        .collect();
    pages.sort();
    let mut classes = DrillClass::ALL.map(|class| class.name().to_owned());
    classes.sort();
    assert_eq!(pages, classes);
    let index = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for class in classes {
        assert!(index.contains(&format!("[{class}]({class}.md)")), "{class} is not in the index");
        let page = std::fs::read_to_string(folder.join(format!("{class}.md"))).unwrap();
        for part in ["First commands", "Decide", "Restore", "Verify", "Hand back", "What can go wrong"] {
            assert!(page.contains(&format!("## {part}\n")), "{class} has no part `{part}`");
        }
        assert!(page.contains(&format!("Class `{class}`.")), "{class} does not say its class");
    }
}

#[test]
fn one_store() {
    let (world, at) = quiet(seed(71));
    let site = with_jira(&world);
    damage(&world, site, &format!("DELETE FROM jsw_project WHERE tenant = '{}'", site.id));
    let variables = [
        ("SITE", &*format!("site:{}", site.id)),
        ("KIND", Kind::JiraSoftware.name()),
        ("AT", &at),
        ("RUN", "store"),
    ];
    ONE_STORE.run(&world, &variables);
    is_whole(&world);
    let report = world.report("store");
    assert_eq!((report.sites.len(), report.sites[0].stores.len()), (1, 1));
}

#[test]
fn one_site() {
    let (world, from) = quiet(seed(72));
    let incident = Incident::delete(&world, 1, Duration::ZERO);
    world.capture_once();
    let site = &incident.sites()[0];
    ONE_SITE.run(&world, &[("FROM", &from), ("SITE", site), ("RUN", "site")]);
    incident.is_undone(&world, "site");
}

#[test]
fn many_sites() {
    let (world, from) = quiet(seed(73));
    let incident = Incident::delete(&world, 6, Duration::from_millis(20));
    world.capture_once();
    let sites = incident.sites();
    let said = MANY_SITES.run(&world, &[("FROM", &from), ("CANARY", &sites[2]), ("RUN", "many")]);
    assert!(said.iter().any(|said| said.contains("5 sites restored, 0 not")), "{said:?}");
    // The oracle asks each store's recovery point of the run that restored it.
    incident.are_undone(&world, &["many-canary", "many"]);
}

#[test]
fn lost_shard() {
    let (world, at) = quiet(seed(74));
    let old = world.fleet.shards.iter().find(|shard| shard.role == Role::Jira).unwrap();
    let path = old.path.clone();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let place = world.path("again.db");
    let kinds: Vec<String> = Role::Jira.kinds().map(|kind| format!("{:?}", kind.name())).collect();
    let new = format!("{}-again", old.name);
    let variables = [
        ("OLD", old.name.as_str()),
        ("NEW", &new),
        ("DRIVER", "sqlite"),
        ("PLACE", place.to_str().unwrap()),
        ("REGION", muster_demo::REGIONS[old.region]),
        ("KINDS", &format!("[{}]", kinds.join(", "))),
        ("AT", &at),
        ("RUN", "shard"),
    ];
    LOST_SHARD.run(&world, &variables);
    // The oracle knows the lost file's place.
    query(&place, "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::rename(&place, &path).unwrap();
    is_whole(&world);
}

#[test]
fn corruption() {
    let (world, at) = quiet(seed(75));
    let site = with_jira(&world);
    let issues = format!(
        "SELECT issue_id FROM jsw_issue i JOIN jsw_project p ON p.project_id = i.project_id WHERE p.tenant = '{}'",
        site.id
    );
    damage(&world, site, &format!("UPDATE jsw_issue SET summary = 'XXXX' WHERE issue_id IN ({issues})"));
    let said =
        CORRUPTION.run(&world, &[("SITE", &*format!("site:{}", site.id)), ("AT", &at), ("RUN", "corrupt")]);
    assert!(said[0].contains("jsw_issue changed"), "the damage is not shown: {}", said[0]);
    assert!(!said.last().unwrap().contains("changed"), "the damage is still there: {said:?}");
    is_whole(&world);
}
