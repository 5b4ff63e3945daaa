//! Drills on PostgreSQL and MinIO: verified, nothing left, a crash cleaned, a sandbox that is alive refused.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::fmt::Write as _;

use muster_demo::{REGIONS, WriterConfig};
use muster_services::Postgres;
use muster_tests::{Size, World, seed, until};
use muster_types::drill::{DrillClass, DrillRecord, Verdict};

const SIZE: Size = Size { sites: 12, rows_per_site: 50 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 120, threads: 2 };

/// Appends a sandbox for each region, on this connection.
fn with_sandboxes(topology: &str, connection: &str) -> String {
    let mut text = topology.to_owned();
    for region in REGIONS {
        writeln!(text, "\n[sandbox.{region}]\ndriver = \"postgres\"\nconnection = \"{connection}\"\nregion = \"{region}\"").unwrap();
    }
    text
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

/// Databases of drills that are not of other tests: by the ids that the repository knows.
fn databases(server: &Postgres, id: &str) -> String {
    let sql = format!("SELECT datname FROM pg_database WHERE starts_with(datname, 'muster_drill_{id}')");
    server.psql("postgres", &sql).unwrap().trim().to_owned()
}

#[test]
fn drills_are_proven_cleaned_and_never_alive() {
    let mut world = World::on_services(SIZE, seed(51));
    let server = Postgres::shared().unwrap();
    world.muster(&["capture", "init"]).ok();
    world.capture_once();
    world.follow();
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 300);
    writers.stop().unwrap();
    world.stop_following();
    let plain = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let place = |connection: &str| {
        std::fs::write(world.path("muster.toml"), with_sandboxes(&plain, connection)).unwrap();
    };
    place(&server.url("postgres"));
    for class in [DrillClass::OneStore, DrillClass::ManySites, DrillClass::LostShard, DrillClass::Corruption]
    {
        let more = if class == DrillClass::ManySites { "sites = 4\n" } else { "" };
        let ran = world.muster(&["drill", "run", &file(&world, class, more), "--json"]).ok();
        let record: DrillRecord = serde_json::from_value(ran.json()).unwrap();
        assert_eq!((record.verdict, record.class), (Verdict::Passed, class), "{record:?}");
        assert!(record.rows > 0 && record.left.is_empty() && !record.made.is_empty(), "{record:?}");
        assert_eq!(databases(&server, record.id.as_str()), "");
    }

    let slow = file(&world, DrillClass::ManySites, "sites = 8\n[limits]\nstage_bytes_per_second_max = 500\n");
    let mut child = world.command(&["drill", "run", &slow]).spawn().unwrap();
    // Its own, by the comment that no drill of another test has: none is there that the repository did not note.
    let mut mine = String::new();
    until("a database of the drill", || {
        let listed = databases(&server, "");
        mine = listed.lines().next().unwrap_or_default().to_owned();
        !mine.is_empty() || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "it ended by itself");
    let id = mine.trim_start_matches("muster_drill_").split('_').next().unwrap().to_owned();
    assert_ne!(databases(&server, &id), "");
    // The server notices that its client is gone.
    until("the drill's things to be free", || {
        world.muster(&["drill", "clean"]).ok();
        databases(&server, &id).is_empty()
    });
    world.muster(&["drill", "run", &file(&world, DrillClass::OneSite, "")]).ok().says(&["passed"]);

    // The database of a living shard, under another name of this machine.
    let live = &world.fleet.shards[0].database.as_ref().unwrap().connection;
    place(&live.replace("127.0.0.1", "localhost"));
    world
        .muster(&["drill", "run", &file(&world, DrillClass::OneSite, "")])
        .code(4)
        .says(&["is refused", "live shard"]);
    place("postgresql://nobody@127.0.0.1:1/postgres");
    world.muster(&["drill", "run", &file(&world, DrillClass::OneSite, "")]).code(1).says(&["sandbox `"]);
}
