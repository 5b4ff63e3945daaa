//! From bucket and credentials alone: the topology is kept in the repository, and a machine that has nothing restores.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::time::Duration;

use muster_tests::{Incident, Size, World, seed};

const SIZE: Size = Size { sites: 10, rows_per_site: 60 };

/// The topology file is lost with its machine; an empty folder, a bucket and credentials are what is left.
fn restore(world: &mut World) {
    let incident = Incident::delete(world, 3, Duration::ZERO);
    world.capture_once();
    let (kept, lost) = (world.path("muster.toml"), world.path("lost.toml"));
    std::fs::rename(&kept, &lost).unwrap();

    let empty = tempfile::tempdir().unwrap();
    // The proof of a run reads what capture records of it.
    world.follow_bare(empty.path());
    let bare = |args: &[&str]| world.bare(empty.path(), args);
    let text = bare(&["repo", "topology", "show"]).ok().stdout;
    assert_eq!(text, std::fs::read_to_string(&lost).unwrap());
    bare(&["check"]).ok().says(&["the shards are as the topology says"]);
    bare(&["detect", "--from", &incident.from, "--out", "incident.toml"]).ok();
    bare(&["plan", "--incident", "incident.toml"]).ok();
    bare(&["apply", "plan.json", "--run", "bare"]).ok();
    bare(&["report", "bare"]).ok();
    bare(&["status", "bare"]).ok();

    std::fs::rename(&lost, &kept).unwrap();
    incident.is_undone(world, "bare");
}

#[test]
fn sqlite_is_restored_from_a_bare_machine() {
    restore(&mut World::captured(SIZE, seed(51)));
}

#[test]
fn postgres_is_restored_from_a_bare_machine() {
    let mut world = World::on_services(SIZE, seed(52));
    world.capture();
    restore(&mut world);
}

#[test]
fn versions_are_kept_and_differences_told() {
    let world = World::captured(SIZE, seed(53));
    let path = world.path("muster.toml");
    let first = std::fs::read_to_string(&path).unwrap();
    world.muster(&["check"]).ok();
    world.capture_once();
    assert_eq!(world.objects("topology").len(), 1, "an equal one is not stored again");

    let second = first.replace("poll_interval_milliseconds = 1000", "poll_interval_milliseconds = 1500");
    assert_ne!(first, second);
    std::fs::write(&path, &second).unwrap();
    let differs = "capture.poll_interval_milliseconds: 1000 → 1500";
    world.muster(&["check"]).ok().says(&["the repository keeps version 1", differs]);
    world.capture_once();
    assert!(!world.muster(&["check"]).ok().stdout.contains("keeps version"));
    world.muster(&["repo", "topology", "list"]).ok().says(&["1", "2"]);
    assert_eq!(world.muster(&["repo", "topology", "show", "--version", "1"]).ok().stdout, first);
    assert_eq!(world.muster(&["repo", "topology", "show"]).ok().stdout, second);
    world.muster(&["repo", "topology", "show", "--at", "1d ago"]).code(2).says(&["no such version"]);

    let secret = format!("{second}\n# was: postgresql://muster:hunter2@db/x\n");
    std::fs::write(&path, &secret).unwrap();
    let told = world.muster(&["capture", "--once"]).ok().says(&["has a password in line"]);
    assert!(!told.stderr.contains("hunter2"), "{told}");
    let refused = world.muster(&["repo", "topology", "store"]).code(2);
    assert!(!refused.stderr.contains("hunter2"), "{refused}");
    assert_eq!(world.objects("topology").len(), 2);

    let empty = tempfile::tempdir().unwrap();
    world.bare(empty.path(), &["--topology", "s3://muster?regoin=x", "check"]).code(2).says(&["regoin"]);
    world.bare(empty.path(), &["--topology", "s3://nowhere", "check"]).code(1).says(&["nowhere"]);
}
