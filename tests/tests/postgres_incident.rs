//! A small incident on PostgreSQL and MinIO, end to end, as its responder sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_demo::{Kind, Owner, Table, Verdict, WriterConfig, Writers, tables};
use muster_services::Postgres;
use muster_tests::{Incident, Size, World, connect, now, rows_of_site, seed, until};
use muster_types::plan::{Plan, SitePlan};
use muster_types::report::{Report, RunStatus, SiteReport};

const SIZE: Size = Size { sites: 24, rows_per_site: 120 };
const VICTIMS: usize = 8;

/// Writers of several sites of a shard at once: their transactions overlap in its log.
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 4 };

/// What `detect` reads has one entry for a poll. One takes a second, and several where other tests have the machine.
const POLL_MILLISECONDS_MAX: f64 = 10_000.0;

#[test]
fn sites_come_back_as_detected() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut world, writers, incident) = deleted(seed(4));
    incident.detect(&world);
    let file = std::fs::read_to_string(world.path("incident.toml")).unwrap();
    for site in incident.sites() {
        assert!(file.contains(&format!("\"{site}\"")), "{site} is not in the incident file:\n{file}");
    }
    incident.plan(&world, &["--proof", "full"]).ok().says(&["8 sites", "next: muster apply plan.json"]);
    let verdict = applied(&mut world, writers, &incident);
    // What a writer deleted in the poll of the script's deletion may count as part of it, and no more than that.
    for loss in &verdict.lost {
        assert!(loss.milliseconds <= POLL_MILLISECONDS_MAX, "{loss:?}\n{verdict}");
    }
    the_report_is_whole(&incident, &world.report("first"));

    exports_load_and_equal_the_live_rows(&world, &world.report("first"));

    // Twice is once too often: the sites are alive.
    world.muster(&["apply", "plan.json", "--run", "second"]).code(4).says(&["live rows", "muster plan"]);
    // Resuming what has ended changes nothing.
    world.muster(&["resume", "first"]).ok();
    incident.is_undone(&world, "first");
    no_key_is_told(&world);
}

/// Of a site's transactions, all had returned before the moment asked for: they are all there, and no part of its deletion
/// that began right behind it.
#[test]
fn a_time_between_two_commits_loses_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut world, writers, incident) = deleted(seed(5));
    let time = |micros: i64| muster_types::Timestamp::from_micros(micros).to_string();
    let mut file = format!("format = 1\ntitle = 'by time'\ndeclared_at = '{}'\nid_source = 'test'\n", now());
    for site in &incident.log.sites {
        let target = time(site.began_micros - 1);
        file.push_str(&format!("[[sites]]\nsite = 'site:{}'\ntarget = '{target}'\n", site.site));
    }
    std::fs::write(world.path("incident.toml"), file).unwrap();
    incident.plan(&world, &["--proof", "full"]).ok().says(&["8 sites"]);
    let verdict = applied(&mut world, writers, &incident);
    assert_eq!(
        (verdict.victims_exact, verdict.lost_transactions()),
        (VICTIMS, 0),
        "{verdict}\n{}",
        points(&world, &verdict)
    );
}

/// The index of the log has one entry for both, which nets out to nothing; its commits are told apart all the same.
#[test]
fn a_store_that_came_and_fell_within_one_poll_comes_back() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut world = World::on_services(SIZE, seed(6));
    // Seeds differ in who has what.
    let mut brief = [Kind::Statuspage, Kind::Opsgenie, Kind::Confluence].into_iter();
    let has = |kind: Kind| world.fleet.sites.iter().position(|site| site.kinds.contains(&kind));
    let (kind, victim) = brief.find_map(|kind| Some((kind, has(kind)?))).expect("a site with a product");
    let kept = take_rows(&world, victim, kind);
    world.muster(&["capture", "init"]).ok();
    world.capture_once();
    let from = now();

    // An ordinary deletion before it came: for the index, the fall of the site begins there.
    let mut wanted = site_rows(&world, victim);
    let (identity, tables) = place_of(&world, victim, Kind::Identity);
    let leaf = tables.last().unwrap();
    let rows = rows_of_site(leaf, &world.fleet.sites[victim].id);
    let key = leaf.key.join(", ");
    let sql = format!("DELETE FROM {} WHERE ({key}) IN (SELECT {key} FROM ({rows}) gone LIMIT 1)", leaf.name);
    assert_eq!(connect(&identity).execute(&sql, &[]).unwrap(), 1);
    give_rows(&world, victim, kind, &kept);
    let came = site_rows(&world, victim);
    wanted.extend(came.into_iter().filter(|(table, _)| kept.iter().any(|(kept, _)| kept == table)));
    let log = world.fleet.delete_victims(&[victim], Duration::ZERO).unwrap();
    world.capture_once();
    assert_ne!(site_rows(&world, victim), wanted);

    let incident = Incident { log, from };
    incident.detect(&world);
    let shown = incident.plan(&world, &["--proof", "full"]).ok();
    shown.says(&["1 sites"]);
    // The proof reads what was published back from the log.
    world.follow();
    world.muster(&["apply", "plan.json", "--run", "first"]).ok().says(&["1 sites restored, 0 not"]);
    world.stop_following();
    assert_eq!(site_rows(&world, victim), wanted, "seed {}", world.seed);
}

/// Where a site's rows of a kind are, and its tables, parents first.
fn place_of(world: &World, site: usize, kind: Kind) -> (String, Vec<&'static Table>) {
    let region = world.fleet.sites[site].region;
    let mut shards = world.fleet.shards.iter();
    let shard = shards.find(|shard| shard.role == kind.role() && shard.region == region).unwrap();
    let owned = |table: &&Table| table.kind == kind && table.owner != Owner::Reference;
    (shard.database.as_ref().unwrap().connection.clone(), tables(kind.role()).iter().filter(owned).collect())
}

/// All rows of a site, by table.
fn site_rows(world: &World, site: usize) -> BTreeMap<&'static str, Vec<Vec<Option<String>>>> {
    let mut rows = BTreeMap::new();
    for kind in Kind::ALL {
        let (url, tables) = place_of(world, site, kind);
        for table in tables {
            let sql = rows_of_site(table, &world.fleet.sites[site].id);
            rows.insert(table.name, postgres_rows(&url, &sql));
        }
    }
    rows
}

/// Takes a store's rows away, as JSON by table.
fn take_rows(world: &World, site: usize, kind: Kind) -> Vec<(&'static str, String)> {
    let (url, tables) = place_of(world, site, kind);
    let mut client = connect(&url);
    let mut kept = Vec::new();
    for table in &tables {
        let rows = rows_of_site(table, &world.fleet.sites[site].id);
        let sql = format!("SELECT coalesce(json_agg(kept), '[]')::text FROM ({rows}) kept");
        kept.push((table.name, client.query_one(&sql, &[]).unwrap().get(0)));
    }
    for table in tables.iter().rev() {
        let rows = rows_of_site(table, &world.fleet.sites[site].id);
        let key = table.key.join(", ");
        let sql = format!("DELETE FROM {} WHERE ({key}) IN (SELECT {key} FROM ({rows}) gone)", table.name);
        client.batch_execute(&sql).unwrap();
    }
    assert!(kept.iter().any(|(_, rows)| rows != "[]"), "{kind:?} had no rows");
    kept
}

/// Brings them in one transaction.
fn give_rows(world: &World, site: usize, kind: Kind, kept: &[(&'static str, String)]) {
    let mut client = connect(&place_of(world, site, kind).0);
    let mut transaction = client.transaction().unwrap();
    for (table, rows) in kept {
        let sql = format!(
            "INSERT INTO {table} OVERRIDING SYSTEM VALUE \
             SELECT * FROM json_populate_recordset(NULL::{table}, $1::text::json)"
        );
        transaction.execute(&sql, &[rows]).unwrap();
    }
    transaction.commit().unwrap();
}

/// Why the stores of sites that lost something were restored to where they were.
fn points(world: &World, verdict: &Verdict) -> String {
    let plan = std::fs::read_to_string(world.path("plan.json")).unwrap();
    let plan: Plan = serde_json::from_str(&plan).unwrap();
    let lost = |site: &&SitePlan| verdict.lost.iter().any(|loss| loss.site == site.site.as_str());
    let mut text = String::new();
    for site in plan.sites.iter().filter(lost) {
        text += &format!("{} to {}\n", site.site, site.target);
        for store in &site.stores {
            text += &format!("  {}: {} {}\n", store.kind, store.reached.at, store.reached_because);
        }
    }
    for note in &plan.notes {
        text += &format!("{note:?}\n");
    }
    text
}

/// One world at a time: two, each with its writers, its capture and its engine, take longer together than in turn.
static TURN: Mutex<()> = Mutex::new(());

/// A captured world whose victims were deleted amid the writing, all of it in the log.
fn deleted(seed: u64) -> (World, Writers, Incident) {
    let mut world = World::on_services(SIZE, seed);
    world.muster(&["capture", "init"]).ok();
    world.muster(&["check"]).ok();
    world.capture_once();
    world.follow();
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 200);
    let incident = Incident::delete(&world, VICTIMS, Duration::from_millis(50));
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    (world, writers, incident)
}

/// The plan is applied beside the writers; then the oracle agrees.
fn applied(world: &mut World, writers: Writers, incident: &Incident) -> Verdict {
    world.muster(&["apply", "plan.json", "--check-only"]).ok();
    world.muster(&["apply", "plan.json", "--run", "first"]).ok().says(&["8 sites restored, 0 not"]);
    writers.stop().unwrap();
    world.stop_following();
    let verdict = incident.judge(world, "first");
    assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
    assert_eq!((verdict.victims, verdict.victims_equal), (VICTIMS, VICTIMS), "{verdict}");
    verdict
}

fn the_report_is_whole(incident: &Incident, report: &Report) {
    assert_eq!(report.status, RunStatus::Restored);
    let reported: BTreeSet<String> = report.sites.iter().map(|site| site.site.to_string()).collect();
    assert_eq!(reported, incident.sites().into_iter().collect());
    assert_eq!((report.totals.sites, report.totals.sites_restored), (VICTIMS as u64, VICTIMS as u64));
    for site in &report.sites {
        assert!(site.failure.is_none() && site.handed_back_at.is_some(), "{site:?}");
        assert!(site.facts.name.is_some(), "the directory's facts of {}", site.site);
        for store in &site.stores {
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
}

/// Every store of the largest victim: exported, loaded by `psql` into an empty database, compared whole with what is live.
fn exports_load_and_equal_the_live_rows(world: &World, report: &Report) {
    let rows = |site: &&SiteReport| site.stores.iter().map(|store| store.rows).sum::<u64>();
    let site = report.sites.iter().max_by_key(rows).unwrap();
    let (name, bare) = (site.site.to_string(), site.site.as_str());
    let index = world.fleet.sites.iter().position(|known| known.id == bare).unwrap();
    let region = world.fleet.sites[index].region;
    let server = Postgres::shared().unwrap();
    let wrong =
        ["export", &name, "--at", "now", "--out", "wrong", "--with-definitions", "--format", "sqlite"];
    world.muster(&wrong).code(2).says(&["leave --with-definitions out", "--format postgres"]);
    let mut compared = 0;
    for store in &site.stores {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == store.kind.to_string()).unwrap();
        let folder = format!("export-{}", store.kind.file_name());
        // Later than the run by nothing: the store is as it came back.
        world.muster(&["export", &name, "--at", "now", "--out", &folder, "--with-definitions"]).ok();
        let file = world.path(&format!("{folder}/{bare}.{}.sql", store.kind.file_name()));
        let loaded = server.create_database("exported").unwrap();
        let shard =
            world.fleet.shards.iter().find(|shard| shard.role == kind.role() && shard.region == region);
        let database = shard.unwrap().database.as_ref().unwrap();
        let live = &database.connection;
        // Types have to be there.
        let types = server.psql(&database.name, ENUMS).unwrap();
        server.psql(&loaded, &types).unwrap();
        server.psql(&loaded, &std::fs::read_to_string(&file).unwrap()).unwrap();
        let owned = |table: &&Table| table.kind == kind && table.owner != Owner::Reference;
        for table in tables(kind.role()).iter().filter(owned) {
            let sql = rows_of_site(table, bare);
            let (found, wanted) = (postgres_rows(&server.url(&loaded), &sql), postgres_rows(live, &sql));
            assert_eq!(found, wanted, "{} of {bare}", table.name);
            compared += found.len();
        }
    }
    assert!(compared > 50, "only {compared} rows were compared");
}

/// Statements that make the enums of a database again.
const ENUMS: &str = "SELECT format('CREATE TYPE %s AS ENUM (%s);', t.oid::regtype, \
    string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)) \
    FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.oid";

/// Rows as the server's text, in the order of the query.
fn postgres_rows(url: &str, sql: &str) -> Vec<Vec<Option<String>>> {
    let row = |message: postgres::SimpleQueryMessage| match message {
        postgres::SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
        }
        _ => None,
    };
    connect(url).simple_query(sql).unwrap().into_iter().filter_map(row).collect()
}

/// Secrets are in the environment, and stay there.
fn no_key_is_told(world: &World) {
    world.muster(&["report", "first", "--html", "report.html"]).ok();
    for name in ["plan.json", "incident.toml", "report.html", "follow.log", "muster.toml"] {
        let text = std::fs::read_to_string(world.path(name)).unwrap();
        assert!(!text.contains("muster-loopback"), "{name} holds the secret key");
    }
}
