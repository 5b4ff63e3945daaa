//! The commands that keep a repository fit, run as an operator runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use muster_tests::{Incident, Size, World, seed};

const SIZE: Size = Size { sites: 10, rows_per_site: 60 };

fn promise(world: &World, text: &str) {
    let path = world.path("muster.toml");
    let topology = std::fs::read_to_string(&path).unwrap();
    let topology = topology.split("\n[retention]").next().unwrap().to_owned();
    std::fs::write(path, format!("{topology}\n[retention]\n{text}\n")).unwrap();
}

fn objects(world: &World) -> BTreeSet<PathBuf> {
    world.objects("shards").into_iter().collect()
}

#[test]
fn a_repository_is_compacted_pruned_and_restored_from() {
    let world = World::captured(SIZE, seed(11));
    for _ in 0..20 {
        world.capture_once();
    }
    let incident = Incident::delete(&world, 3, Duration::ZERO);
    world.capture_once();

    let refused = world.muster(&["repo", "prune"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("[retention]"), "{}", refused.stderr);

    promise(&world, "every_moment_days = 14\ndaily_days = 90\ngrace_hours = 2");
    let before = objects(&world);
    let compacted = world.muster(&["repo", "compact"]).ok();
    assert!(compacted.stdout.contains("compacted"), "{}", compacted.stdout);
    let after = objects(&world);
    assert!(before.is_subset(&after) && before != after);

    // Saved, it holds its objects; held, everything stays.
    incident.detect(&world);
    incident.plan(&world, &[]).ok();
    world.muster(&["repo", "hold", "audit", "--reason", "asked for", "--from", "1d ago"]).ok();
    let again = world.muster(&["repo", "hold", "audit", "--reason", "again"]);
    assert_ne!(again.code, Some(0));
    assert!(again.stderr.contains("audit"), "{}", again.stderr);
    let holds = world.muster(&["repo", "holds"]).ok();
    assert!(holds.stdout.contains("audit") && holds.stdout.contains("plan "), "{}", holds.stdout);

    let dry = world.muster(&["repo", "prune", "--dry-run"]).ok();
    assert!(dry.stdout.contains("a compacted segment stands for it"), "{}", dry.stdout);
    assert!(dry.stdout.contains("would be condemned"), "{}", dry.stdout);
    assert_eq!(world.objects("prune"), [] as [PathBuf; 0], "a dry run changes nothing");
    world.muster(&["repo", "prune"]).ok();
    assert_eq!(world.objects("prune/condemned").len(), 1);
    let second = world.muster(&["repo", "prune"]).ok();
    assert!(second.stdout.contains("within its grace"), "{}", second.stdout);
    assert_eq!(objects(&world), after, "nothing goes within the grace");

    world.muster(&["repo", "unhold", "audit"]).ok();
    let unknown = world.muster(&["repo", "unhold", "audit"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);

    // From compacted segments.
    world.muster(&["apply", "plan.json", "--run", "back"]).ok();
    incident.is_undone(&world, "back");
}
