//! The fleet is what its seed says, and its victims are those of the incident.
#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use muster_demo::{Fleet, FleetConfig, RepositoryPlace, Shard, TopologyOptions, all_tables, tables};
use rusqlite::Connection;
use rusqlite::types::Value;

fn fleet(dir: &Path, name: &str, sites: usize, seed: u64) -> Arc<Fleet> {
    Fleet::generate(&FleetConfig { sites, rows_per_site: 60, seed, dir: dir.join(name) }).unwrap()
}

fn rows(shard: &Shard) -> Vec<Vec<Value>> {
    let connection = Connection::open(&shard.path).unwrap();
    let mut all = Vec::new();
    for table in tables(shard.role) {
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {} ORDER BY {}", table.name, table.key.join(", ")))
            .unwrap();
        let columns = statement.column_count();
        let found =
            statement.query_map([], |row| (0..columns).map(|index| row.get(index)).collect()).unwrap();
        all.extend(found.map(Result::unwrap));
    }
    all
}

#[test]
fn the_same_seed_gives_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (fleet(dir.path(), "a", 12, 5), fleet(dir.path(), "b", 12, 5));
    let other = fleet(dir.path(), "c", 12, 6);
    let all = |fleet: &Fleet| fleet.shards.iter().map(rows).collect::<Vec<_>>();
    assert_eq!(all(&a), all(&b));
    assert_ne!(all(&a), all(&other));
    assert_eq!(a.rows(), all(&a).iter().map(|rows| rows.len() as u64).sum::<u64>());
    for shard in &a.shards {
        let mode: String = Connection::open(&shard.path)
            .unwrap()
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal", "{}", shard.name);
    }
}

#[test]
fn victims_are_small_and_a_fifth_are_the_operators_own() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = fleet(dir.path(), "a", 400, 1);
    let victims = fleet.pick_victims(150);
    assert_eq!(victims.iter().collect::<BTreeSet<_>>().len(), 150);
    assert_eq!(victims.iter().filter(|victim| fleet.sites[**victim].internal).count(), 30);
    let mean = |sites: &mut dyn Iterator<Item = usize>| {
        let rows: Vec<usize> = sites.map(|site| fleet.sites[site].rows).collect();
        rows.iter().sum::<usize>() / rows.len()
    };
    assert!(mean(&mut victims.iter().copied()) < mean(&mut (0..fleet.sites.len())));
    assert_eq!(fleet.pick_victims(1_000).len(), 400, "never more than there are");
}

#[test]
fn every_table_is_in_the_topology_once() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = fleet(dir.path(), "a", 1, 1);
    let repository = RepositoryPlace::Embedded { folder: "repository".into(), port: 9310 };
    let options = TopologyOptions { bucket: "b".to_owned(), repository, poll_interval_milliseconds: 500 };
    let text = fleet.topology(&options);
    for table in all_tables() {
        assert_eq!(text.matches(&format!("[tables.{}]\n", table.name)).count(), 1, "{}", table.name);
    }
    assert_eq!(text.matches("driver = \"sqlite\"").count(), 10);
}
