//! A small incident, end to end, as its responder sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use muster_demo::{Kind, Owner, Table, WriterConfig, tables};
use muster_tests::{Incident, Size, World, now, query, rows_of_site, seed, until};
use muster_types::report::{Report, RunStatus, SiteReport};

const SIZE: Size = Size { sites: 60, rows_per_site: 120 };
const VICTIMS: usize = 20;

#[test]
fn twenty_sites_come_back_beside_living_neighbours() {
    let mut world = World::captured(SIZE, seed(1));
    world.follow();
    let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 200, threads: 2 });
    until("writers at work", || writers.committed() >= 200);
    let incident = Incident::delete(&world, VICTIMS, Duration::from_millis(20));
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    let gone = now();

    let detected = incident.detect(&world);
    for site in incident.sites() {
        let file = std::fs::read_to_string(world.path("incident.toml")).unwrap();
        assert!(file.contains(&format!("\"{site}\"")), "{site} is not in the incident file: {detected}");
    }
    let planned = incident.plan(&world, &["--proof", "full"]).ok();
    planned.says(&["20 sites", "next: muster apply plan.json"]);
    world.muster(&["apply", "plan.json", "--check-only"]).ok();
    world.muster(&["apply", "plan.json", "--run", "first"]).ok().says(&["20 sites restored, 0 not"]);

    let wrote = writers.stop().unwrap();
    assert!(wrote.committed >= 200);
    world.stop_following();
    incident.is_undone(&world, "first");
    let report = world.report("first");
    the_report_has_every_site(&world, &incident, &report);
    the_page_has_every_site(&world, &incident);
    a_site_can_be_looked_at(&world, &incident, &report, &gone);

    // Twice is once too often: the sites are alive.
    world.muster(&["apply", "plan.json", "--run", "second"]).code(4).says(&["live rows", "muster plan"]);
    // Resuming what has ended changes nothing.
    world.muster(&["resume", "first"]).ok();
    incident.is_undone(&world, "first");
}

fn the_report_has_every_site(world: &World, incident: &Incident, report: &Report) {
    assert_eq!(report.status, RunStatus::Restored);
    let reported: BTreeSet<String> = report.sites.iter().map(|site| site.site.to_string()).collect();
    assert_eq!(reported, incident.sites().into_iter().collect());
    assert_eq!((report.totals.sites, report.totals.sites_restored), (VICTIMS as u64, VICTIMS as u64));
    for site in &report.sites {
        assert!(site.failure.is_none() && site.handed_back_at.is_some(), "{site:?}");
        assert!(site.facts.name.is_some(), "the directory's facts of {}", site.site);
        let deleted = incident.log.sites.iter().find(|deleted| deleted.site == site.site.as_str()).unwrap();
        for store in &site.stores {
            let reached = store.reached.at.as_micros();
            assert!(reached <= deleted.ended_micros, "{}/{} is after its deletion", site.site, store.kind);
            assert!(store.publish.is_some_and(|publish| publish.ended_at.is_some()));
            let digested: u64 = store.tables.values().map(|table| table.rows).sum();
            assert_eq!(digested, store.rows, "rows of {}/{}", site.site, store.kind);
        }
    }
    assert_eq!(report.proof.marked_changes, report.totals.rows);
    assert_eq!(report.proof.sites_proven, VICTIMS as u64);
    assert!(!report.proof.shards.is_empty());
    for (shard, proof) in &report.proof.shards {
        assert!(proof.holds && proof.error.is_none(), "neighbours of {shard}: {proof:?}");
    }
    world.muster(&["report", "first"]).ok().says(&["20 of 20 sites restored"]);
    world.muster(&["status", "first"]).ok().says(&["20 of 20 sites"]);
    world.muster(&["runs"]).ok().says(&["first", "20 of 20"]);
}

fn the_page_has_every_site(world: &World, incident: &Incident) {
    world.muster(&["report", "first", "--html", "report.html"]).ok();
    let page = std::fs::read_to_string(world.path("report.html")).unwrap();
    for site in incident.sites() {
        assert!(
            page.contains(&site) || page.contains(site.trim_start_matches("site:")),
            "{site} is not on the page"
        );
    }
    assert!(page.contains("<svg"), "the page has a timeline");
    for outside in ["<script src", "<link rel=\"stylesheet\" href", "src=\"http"] {
        assert!(!page.contains(outside), "the page is not self-contained: `{outside}`");
    }
}

/// `show`, `diff`, `history` and `export` of the largest victim agree with SQL on the live shards.
fn a_site_can_be_looked_at(world: &World, incident: &Incident, report: &Report, gone: &str) {
    // Stores are targeted by position; where a poll fell into a site's deletion, they are of several moments.
    let one_moment = |site: &&SiteReport| site.stores.iter().all(|store| store.reached.at <= site.target);
    let rows = |site: &&SiteReport| site.stores.iter().map(|store| store.rows).sum::<u64>();
    let largest = report.sites.iter().filter(one_moment).max_by_key(rows);
    let (site, at) = largest.map(|site| (site.site.to_string(), site.target.to_string())).unwrap();
    let bare = site.trim_start_matches("site:");
    let deleted = incident.log.sites.iter().find(|deleted| deleted.site == bare).unwrap();
    let index = deleted.index;

    let shown = world.muster(&["show", &site, "--at", &at]).ok();
    world.muster(&["show", &site, "--at", &at, "--table", "site"]).ok().says(&[bare]);
    let region = muster_demo::REGIONS[world.fleet.sites[index].region];
    for kind in &world.fleet.sites[index].kinds {
        assert!(shown.stdout.contains(kind.name()), "{} is not shown: {shown}", kind.name());
    }

    // What was, was taken, and is back.
    world.muster(&["diff", &site, "--from", &at, "--to", "live"]).code(0);
    world.muster(&["diff", &site, "--from", &at, "--to", gone]).code(3).says(&["site removed"]);
    world.muster(&["history", &site]).ok().says(&["muster run first", "site"]);

    world.muster(&["export", &site, "--at", &at, "--out", "export", "--with-definitions"]).ok();
    for kind in &world.fleet.sites[index].kinds {
        exported_equals_live(world, bare, *kind, &format!("{region}-{}", kind.role().name()));
    }
    // Files that are there are not overwritten.
    world.muster(&["export", &site, "--at", &at, "--out", "export"]).code(1).says(&["exists"]);
}

/// Loads an exported store with the real `sqlite3` into an empty file, and compares it whole with the live shard.
fn exported_equals_live(world: &World, site: &str, kind: Kind, shard: &str) {
    let file = world.path(&format!("export/{site}.{}.sql", kind.name().replace(':', "+")));
    let loaded = world.path(&format!("export/{}.db", kind.name().replace(':', "+")));
    let input = std::fs::File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let output = Command::new("sqlite3")
        .arg("-bail")
        .arg(&loaded)
        .stdin(input)
        .output()
        .expect("sqlite3 is installed");
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    let owned = |table: &&Table| table.kind == kind && table.owner != Owner::Reference;
    for table in tables(kind.role()).iter().filter(owned) {
        let sql = rows_of_site(table, site);
        assert_eq!(query(&loaded, &sql), query(&world.shard(shard).path, &sql), "{} of {site}", table.name);
    }
}
