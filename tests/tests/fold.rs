//! Snapshots folded in the repository: restores start from them, and the shards' own are what folding gives.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::time::Duration;

use muster_demo::WriterConfig;
use muster_tests::{Incident, Size, World, seed, until};

const SIZE: Size = Size { sites: 12, rows_per_site: 60 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 2 };

fn live(world: &World, transactions: u64) {
    let writers = world.fleet.start_writers(WRITERS);
    for part in 1..=4 {
        until("writers at work", || writers.committed() >= transactions * part / 4);
        world.capture_once();
    }
    writers.stop().unwrap();
    world.capture_once();
}

fn fold_and_restore(world: &mut World) {
    live(world, 200);
    let folded = world.muster(&["repo", "fold"]).ok().says(&["folded from"]);
    let ids: Vec<&str> =
        folded.stdout.lines().filter_map(|line| line.split("snapshot ").nth(1)?.split(' ').next()).collect();
    assert_eq!(ids.len(), world.fleet.shards.len(), "{folded}");
    world.muster(&["repo", "fold", "--compare"]).ok().says(&["nothing to compare"]);
    world.muster(&["repo", "check"]).ok();

    live(world, 100);
    let incident = Incident::delete(world, 3, Duration::ZERO);
    world.follow();
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(world);
    incident.plan(world, &[]).ok();
    let plan = std::fs::read_to_string(world.path("plan.json")).unwrap();
    assert!(ids.iter().any(|id| plan.contains(id)), "the plan reads none of {ids:?}");
    world.muster(&["apply", "plan.json", "--run", "back"]).ok();
    world.stop_following();
    incident.is_undone(world, "back");

    // What the shards have is what is folded, after all this.
    live(world, 100);
    world.muster(&["capture", "--once", "--snapshot"]).ok();
    live(world, 50);
    let compared = world.muster(&["repo", "fold", "--compare"]).ok();
    assert_eq!(
        compared.stdout.matches("is what folding gives").count(),
        world.fleet.shards.len(),
        "{compared}"
    );
}

#[test]
fn sqlite_is_restored_from_a_folded_snapshot() {
    fold_and_restore(&mut World::captured(SIZE, seed(61)));
}

#[test]
fn postgres_is_restored_from_a_folded_snapshot() {
    let mut world = World::on_services(SIZE, seed(62));
    world.capture();
    fold_and_restore(&mut world);
}
