//! A site is forgotten: no value of its rows is left anywhere in the repository, and a restore that was made stays readable.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use muster_tests::{Incident, Size, World, query_text, rows_of_site, seed};

/// Shorter values stand in other places by chance.
const VALUE_BYTES_MIN: usize = 10;

/// Texts of rows that a shard holds: of one site, or of all.
fn values(world: &World, site: Option<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for shard in &world.fleet.shards {
        let there = query_text(&shard.path, "SELECT name FROM sqlite_master WHERE type = 'table'").concat();
        for table in muster_demo::all_tables().filter(|table| there.iter().any(|name| name == table.name)) {
            let sql = match site {
                Some(site) => rows_of_site(table, site),
                None => format!("SELECT * FROM {}", table.name),
            };
            found.extend(query_text(&shard.path, &sql).concat());
        }
    }
    let plain = |value: &String| value.len() >= VALUE_BYTES_MIN && !value.contains(['\\', '\t', '\n', '\r']);
    found.into_iter().filter(plain).collect()
}

/// Of `values`, those that stand in any object, decompressed where it is compressed.
fn held(world: &World, values: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in world.objects("") {
        let body = std::fs::read(&path).unwrap();
        let text = match path.extension().is_some_and(|extension| extension == "zst") {
            true => zstd::stream::decode_all(&body[..]).unwrap(),
            false => body,
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        found.extend(values.iter().filter(|value| text.contains(value.as_str())).cloned());
    }
    found
}

#[test]
fn no_value_of_a_forgotten_site_is_left() {
    let world = World::captured(Size { sites: 8, rows_per_site: 60 }, seed(71));
    let incident = Incident::delete(&world, 2, Duration::ZERO);
    world.capture_once();
    incident.detect(&world);
    incident.plan(&world, &[]).ok();
    world.muster(&["apply", "plan.json", "--run", "back"]).ok();
    incident.is_undone(&world, "back");
    world.capture_once();
    world.muster(&["repo", "fold"]).ok();

    let gone = incident.log.sites[0].site.clone();
    let typed = format!("site:{gone}");
    let forget = ["repo", "forget", &typed, "--reason", "asked for"];
    world.muster(&forget).code(4).says(&["saved plan", "it has rows in shard"]);
    let of_site = values(&world, Some(&gone));
    let victims = world.fleet.pick_victims(2);
    // In the order of the log.
    let deleted = world.fleet.delete_victims(&victims[..1], Duration::ZERO).unwrap();
    assert_eq!(deleted.sites[0].site, gone);
    world.capture_once();
    let of_others = values(&world, None);
    let is_own = |value: &&String| !of_others.iter().any(|other| other.contains(value.as_str()));
    let own: BTreeSet<String> = of_site.iter().filter(is_own).cloned().collect();
    assert!(held(&world, &own).len() > 20, "the search finds nothing of {own:?}");

    world.muster(&[&forget[..], &["--dry-run"]].concat()).ok().says(&["would be rewritten", "run back"]);
    assert!(held(&world, &own).len() > 20, "a dry run changes nothing");
    let done = world.muster(&[&forget[..], &["--despite-claims"]].concat()).ok();
    let done = done.says(&["digest before", "runs/back/plan.json.zst", "receipt: forgotten/receipts/"]);
    let left = held(&world, &own);
    assert!(left.is_empty(), "{left:?} are left; {done}");

    world.muster(&["repo", "check"]).ok();
    world.muster(&["report", "back", "--json"]).ok();
    world.muster(&["show", &typed, "--at", &incident.from]).code(2);
    let other = format!("site:{}", incident.log.sites[1].site);
    world.muster(&["show", &other, "--at", &incident.from]).ok();
    world.muster(&[&forget[..], &["--despite-claims"]].concat()).ok();
}
