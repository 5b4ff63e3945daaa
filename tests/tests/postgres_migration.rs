//! Sites of before a schema change come back behind it, by a declared migration.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use muster_tests::{Incident, Size, World, connect, seed};
use muster_types::report::RunStatus;

const SIZE: Size = Size { sites: 8, rows_per_site: 60 };
const VICTIMS: usize = 3;

/// What the application does to its table after the sites were deleted.
const RESHAPED: &str = "ALTER TABLE user_account RENAME COLUMN display_name TO shown_name;
    ALTER TABLE user_account ALTER last_seen TYPE text USING coalesce(last_seen::text, 'never'), ALTER last_seen SET NOT NULL;
    ALTER TABLE user_account ADD CONSTRAINT seen CHECK (last_seen <> '')";

const MIGRATION: &str = r#"
[[tables.user_account.migrations]]
name = "shown-name"
has_columns = ["display_name"]
sql = ["ALTER TABLE {staged} RENAME COLUMN display_name TO shown_name"]

[[tables.user_account.migrations]]
name = "last-seen"
has_columns = ["shown_name", "last_seen double precision"]
sql = ["ALTER TABLE {staged} ALTER last_seen TYPE text USING coalesce(last_seen::text, 'never')"]
"#;

/// Accounts of the world, `columns` as one text each.
fn accounts(world: &World, columns: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for connection in connections(world) {
        let sql = format!("SELECT concat_ws('|', {columns}) FROM user_account");
        let rows = connect(&connection).query(&sql, &[]).unwrap();
        found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    found
}

/// Shards with accounts.
fn connections(world: &World) -> Vec<String> {
    let all = world.fleet.shards.iter().map(|shard| shard.database.as_ref().unwrap().connection.clone());
    let there = "SELECT to_regclass('user_account') IS NOT NULL";
    all.filter(|connection| connect(connection).query_one(there, &[]).unwrap().get(0)).collect()
}

#[test]
fn sites_of_before_a_schema_change_come_back_behind_it() {
    let mut world = World::on_services(SIZE, seed(6));
    world.muster(&["capture", "init"]).ok();
    world.muster(&["check"]).ok();
    world.capture_once();
    let before = accounts(
        &world,
        "user_id, site_id, username, email, display_name, active, coalesce(last_seen::text, 'never'), avatar",
    );
    let incident = Incident::delete(&world, VICTIMS, Duration::from_millis(10));
    world.capture_once();
    for connection in connections(&world) {
        connect(&connection).batch_execute(RESHAPED).unwrap();
    }
    world.follow();
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(&world);

    incident.plan(&world, &[]).ok().says(&["column `display_name` was dropped or renamed"]);
    let topology = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    std::fs::write(world.path("muster.toml"), topology + MIGRATION).unwrap();
    incident.plan(&world, &[]).ok().says(&["`shown-name`, `last-seen`"]);
    world.muster(&["apply", "plan.json", "--run", "first"]).ok().says(&["3 sites restored, 0 not"]);
    world.stop_following();

    let columns = "user_id, site_id, username, email, shown_name, active, last_seen, avatar";
    assert_eq!(accounts(&world, columns), before);
    let report = world.report("first");
    assert_eq!(report.status, RunStatus::Restored);
    let migrated: Vec<_> = report.notes.iter().filter(|note| note.code == "migrated").collect();
    assert_eq!(migrated.len(), 2 * VICTIMS, "{migrated:?}");
    assert!(migrated[0].text.contains("migration `shown-name` was applied to table `user_account`"));
    assert!(report.proof.shards.values().all(|proof| proof.holds));
}
