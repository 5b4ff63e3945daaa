//! Drills on SQLite: verified, nothing left, crashes cleaned, damage named, wrong input refused, a real run first.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use muster_demo::{REGIONS, WriterConfig};
use muster_tests::{Engine, Harmed, Incident, Moment, Size, World, copy_shard, query, seed, until};
use muster_types::drill::{DrillClass, DrillRecord, Verdict};

const SIZE: Size = Size { sites: 20, rows_per_site: 60 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 2 };

/// A captured world with a sandbox for each region, some history, and all of it covered.
fn world(seed: u64) -> World {
    let world = World::captured(SIZE, seed);
    let mut text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    for region in REGIONS {
        writeln!(text, "\n[sandbox.{region}]\ndriver = \"sqlite\"\ndir = \"sandbox\"\nregion = \"{region}\"")
            .unwrap();
    }
    std::fs::write(world.path("muster.toml"), text).unwrap();
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 100);
    world.capture_once();
    until("writers at work", || writers.committed() >= 250);
    writers.stop().unwrap();
    world.capture_once();
    world
}

fn file(world: &World, class: DrillClass, more: &str) -> String {
    let name = format!("{}.toml", class.name());
    let text = format!(
        "format = 1\nname = \"{0}\"\nclass = \"{0}\"\nwindow_seconds = 3600\nsettle_seconds = 1\nseed = {1}\n{more}",
        class.name(),
        world.seed
    );
    std::fs::write(world.path(&name), text).unwrap();
    name
}

fn left(world: &World) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(world.path("sandbox")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Everything in a live shard file, Muster's own tables included.
fn image(path: &Path, scratch: &Path) -> Vec<u8> {
    let _ = std::fs::remove_file(scratch);
    copy_shard(path, scratch);
    std::fs::read(scratch).unwrap()
}

#[test]
fn every_class_is_proven_and_leaves_nothing() {
    let world = world(seed(41));
    let before: Vec<Vec<u8>> =
        world.fleet.shards.iter().map(|shard| image(&shard.path, &world.path("image.db"))).collect();
    for class in DrillClass::ALL {
        let more = if class == DrillClass::ManySites { "sites = 6\n" } else { "" };
        let drill = file(&world, class, more);
        let ran = world.muster(&["drill", "run", &drill, "--json"]).ok();
        let record: DrillRecord = serde_json::from_value(ran.json()).unwrap();
        assert_eq!((record.verdict, record.class), (Verdict::Passed, class), "{record:?}");
        assert!(record.rows > 0 && record.left.is_empty() && !record.made.is_empty(), "{record:?}");
        assert!(record.rto_seconds.is_some() && record.rpo_seconds.is_some(), "{record:?}");
        let stores: usize = record.sites.iter().map(|site| site.stores.len()).sum();
        assert!(record.sites.iter().flat_map(|site| &site.stores).all(|store| store.proven), "{record:?}");
        match class {
            DrillClass::OneStore => assert_eq!((record.sites.len(), stores), (1, 1)),
            DrillClass::OneSite | DrillClass::Corruption => assert_eq!(record.sites.len(), 1),
            DrillClass::ManySites => assert_eq!(record.sites.len(), 6),
            DrillClass::LostShard => assert!(record.sites.len() > 1, "{record:?}"),
        }
        assert_eq!(left(&world), Vec::<String>::new());
    }
    let after: Vec<Vec<u8>> =
        world.fleet.shards.iter().map(|shard| image(&shard.path, &world.path("image.db"))).collect();
    assert!(before == after, "a drill changed a live shard");
    world.muster(&["runs"]).ok().says(&["drill-"]);
    let history = world.muster(&["drill", "history", "--json"]).ok().json();
    assert!(history["sites"]["proven"].as_u64().unwrap() >= 6, "{history}");
    assert!(
        history["classes"].as_array().unwrap().iter().all(|class| class["proven_at"].is_string()),
        "{history}"
    );
    world.muster(&["drill", "history", "--html", "drills.html"]).ok().says(&["lost-shard", "many-sites"]);
    let page = std::fs::read_to_string(world.path("drills.html")).unwrap();
    assert!(page.contains("No alarm") && page.contains("Trend of corruption"), "{page}");
}

#[test]
fn a_killed_drill_is_cleaned_by_the_next() {
    let world = world(seed(42));
    let drill =
        file(&world, DrillClass::ManySites, "sites = 12\n[limits]\nstage_bytes_per_second_max = 2000\n");
    let mut child = world.command(&["drill", "run", &drill]).spawn().unwrap();
    until("a shard of the drill", || {
        left(&world).iter().any(|name| name.ends_with(".db-wal")) || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "it ended by itself");
    assert!(!left(&world).is_empty());
    let one = file(&world, DrillClass::OneSite, "");
    world.muster(&["drill", "run", &one]).ok().says(&["passed", "removed all of it"]);
    assert_eq!(left(&world), Vec::<String>::new());
    world.muster(&["runs"]).ok().says(&["Abandoned"]);
    // What others left alone is nobody's here.
    std::fs::write(world.path("sandbox/muster_drill_00ff_0_x.db"), "").unwrap();
    world.muster(&["drill", "clean"]).ok().says(&["removed nothing", "muster_drill_00ff_0_x"]);
    assert_eq!(left(&world).len(), 1);
}

#[test]
fn damage_in_a_pack_fails_the_drill_with_the_store_named() {
    let world = world(seed(43));
    let packs = world.objects("shards").into_iter().filter(|path| path.to_string_lossy().contains("pack-"));
    let harmed: Vec<Harmed> =
        packs.map(|path| Harmed::flipped(&path, std::fs::metadata(&path).unwrap().len() / 2)).collect();
    let drill = file(&world, DrillClass::ManySites, "sites = 20\n");
    let ran = world.muster(&["drill", "run", &drill]).code(3).says(&[
        "FAILED",
        "site:",
        "pack-",
        "removed all of it",
    ]);
    drop(harmed);
    assert!(ran.stdout.contains("stage/site:") || ran.stdout.contains("/product:"), "{ran}");
    assert_eq!(left(&world), Vec::<String>::new());
    world.muster(&["drill", "history"]).code(3).says(&["ALARM drill many-sites failed"]);
    world.muster(&["drill", "run", &drill]).ok();
    world.muster(&["drill", "history"]).ok();
}

#[test]
fn a_real_run_comes_first() {
    let world = world(seed(44));
    let incident = Incident::delete(&world, 3, Duration::from_millis(10));
    world.capture_once();
    incident.detect(&world);
    incident.plan(&world, &[]).ok();
    let slow =
        file(&world, DrillClass::ManySites, "sites = 12\n[limits]\nstage_bytes_per_second_max = 500\n");
    let mut command = world.command(&["drill", "run", &slow]);
    let mut drill = command.stdout(Stdio::piped()).spawn().unwrap();
    until("a shard of the drill", || {
        left(&world).iter().any(|name| name.ends_with(".db-wal")) || drill.try_wait().unwrap().is_some()
    });
    let mut engine = Engine::start(&world, "real", &["apply", "plan.json", "--run", "real"]);
    engine.wait_for(Moment::Journal(1));
    // As a crash would leave it: open, whatever it did.
    assert!(engine.kill(), "the run ended before it could be killed");
    let stopped = drill.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stopped.stdout).into_owned();
    assert!(stopped.status.code() == Some(4) && said.contains("make way for real runs"), "{said}");
    assert_eq!(left(&world), Vec::<String>::new());
    let drill = file(&world, DrillClass::OneSite, "");
    world.muster(&["drill", "run", &drill]).code(4).says(&["run real is open"]);
    world.muster(&["resume", "real"]).ok();
    world.muster(&["drill", "run", &drill]).ok();
    // Nor does a real run take the name of a drill's.
    world
        .muster(&["apply", "plan.json", "--run", "drill-1"])
        .code(2)
        .says(&["named like the run of a drill"]);
}

#[test]
fn a_drill_over_a_gap_fails_and_names_it() {
    let world = world(seed(46));
    let shard = world.fleet.shards.iter().find(|shard| shard.name.ends_with("-core")).unwrap().name.clone();
    let indexes = || -> Vec<_> {
        let all = world.objects(&format!("shards/{shard}"));
        all.into_iter()
            .filter(|path| {
                path.to_string_lossy().contains("/log/") && path.to_string_lossy().ends_with(".json.zst")
            })
            .collect()
    };
    world.capture_once();
    let (known, at) = (indexes(), muster_tests::now());
    world.capture_once();
    let lost: Vec<Harmed> =
        indexes().iter().filter(|path| !known.contains(path)).map(|path| Harmed::missing(path)).collect();
    assert!(!lost.is_empty());
    world.capture_once();
    let drill = file(&world, DrillClass::OneSite, &format!("shard = \"{shard}\"\nat = \"{at}\"\n"));
    world.muster(&["drill", "run", &drill]).code(3).says(&["FAILED", "log-gap", &shard]);
    assert_eq!(left(&world), Vec::<String>::new());
    drop(lost);
}

/// A figure of the last drill of a name.
fn last_rto(world: &World) -> f64 {
    let history = world.muster(&["drill", "history", "--json"]);
    history.json()["trends"][0]["rto_seconds"].as_f64().unwrap()
}

#[test]
fn a_shard_slowed_threefold_is_an_alarm_within_two_drills() {
    let world = world(seed(47));
    // Loading takes most of the time: how long follows from the rate, and the choice is the same each time.
    let drill = |bytes_per_second: u64| {
        let at = format!("sites = 8\n[limits]\nstage_bytes_per_second_max = {bytes_per_second}\n");
        file(&world, DrillClass::ManySites, &at)
    };
    let trial = 8_000;
    world.muster(&["drill", "run", &drill(trial)]).ok();
    // Ten seconds: a busy machine takes a few more.
    let rate = (trial as f64 * last_rto(&world) / 10.0).max(300.0) as u64;
    let steady = drill(rate);
    for _ in 0..4 {
        world.muster(&["drill", "run", &steady]).ok();
    }
    world.muster(&["drill", "history"]).ok();
    let before = last_rto(&world);
    let slow = drill(rate / 3);
    world.muster(&["drill", "run", &slow]).ok();
    world.muster(&["drill", "run", &slow]).ok();
    let said = world.muster(&["drill", "history"]).code(3);
    said.says(&["ALARM drill many-sites: its recovery time", "times the trailing median"]);
    assert!(last_rto(&world) > before * 2.0, "{before}");
}

#[test]
fn wrong_input_is_told() {
    let world = world(seed(45));
    let run = |more: &str| world.muster(&["drill", "run", &file(&world, DrillClass::OneSite, more)]);
    run("at = \"2001-01-01T00:00:00Z\"\n").code(2).says(&["outside of the promised window"]);
    run("shard = \"nowhere\"\n").code(2).says(&["covers no moment"]);
    run("colour = \"red\"\n").code(2).says(&["colour"]);
    run("sites = 3\n").code(2).says(&["many-sites"]);
    let text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(world.path("muster.toml"), text.replace(from, to)).unwrap();
    };
    with("dir = \"sandbox\"\n", "dir = \"sandbox\"\nbytes_max = 10\n");
    run("").code(3).says(&["has no room", "bytes_max"]);
    assert_eq!(left(&world), Vec::<String>::new());
    with("dir = \"sandbox\"", "dir = \"no/such/folder\"");
    run("").code(1).says(&["the folder above it"]);
    // It never came to its sandbox, and is in the history all the same.
    world.muster(&["drill", "history"]).code(3).says(&["ALARM drill one-site failed", "the folder above it"]);
    // A folder that is the staging folder of a living shard, through a link.
    let shard = &world.fleet.shards[0];
    let staging = format!("{}.muster", shard.path.display());
    std::fs::create_dir_all(&staging).unwrap();
    std::os::unix::fs::symlink(&staging, world.path("link")).unwrap();
    with("dir = \"sandbox\"", "dir = \"link\"");
    run("").code(4).says(&["is refused", "live shard"]);
    // A sandbox whose file is a living shard.
    with("dir = \"sandbox\"", &format!("dir = \"{}\"", shard.path.display()));
    run("").code(4).says(&["is refused"]);
    // Living shards that are named like a drill's.
    let named = "\n[shards.muster_drill_x]\ndriver = \"sqlite\"\npath = \"x.db\"\nregion = \"eu\"\nkinds = [\"metadata\"]\n";
    std::fs::write(world.path("muster.toml"), format!("{text}{named}")).unwrap();
    run("").code(2).says(&["named like what drills make"]);
    // Without a sandbox, the section that would help is named.
    std::fs::write(world.path("muster.toml"), text.split("\n[sandbox.").next().unwrap()).unwrap();
    run("").code(2).says(&["declare [sandbox.NAME]"]);
    assert!(query(&shard.path, "SELECT 1").len() == 1);
}
