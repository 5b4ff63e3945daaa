//! The judge agrees with a right restore, whatever moment it reached, and finds every planted difference.

#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_demo::{
    DeletionLog, Fleet, FleetConfig, Owner, REGIONS, Reached, Shard, Table, WriterConfig, tables,
};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// The copies below take far less, and the stamp is taken after them.
const POLL_INTERVAL_MICROS: i64 = 20_000_000;

fn now_micros() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn small_fleet(dir: &Path, seed: u64) -> Arc<Fleet> {
    let config = FleetConfig { sites: 20, rows_per_site: 150, seed, dir: dir.join("fleet") };
    Fleet::generate(&config).unwrap()
}

/// Runs writers until they have committed `count` more transactions.
fn write(fleet: &Arc<Fleet>, count: u64) {
    let writers = fleet.start_writers(WriterConfig { transactions_per_second: 20_000, threads: 2 });
    while writers.committed() < count {
        std::thread::yield_now();
    }
    writers.stop().unwrap();
}

fn copy_of(shard: &Shard, dir: &Path) -> PathBuf {
    dir.join(format!("{}.copy.db", shard.name))
}

/// Copies every shard's committed state, and says when.
fn copy_all(fleet: &Fleet, dir: &Path) -> i64 {
    for shard in &fleet.shards {
        let path = copy_of(shard, dir);
        let connection = Connection::open(&shard.path).unwrap();
        connection.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    }
    now_micros()
}

fn owned(table: &Table, owner_table: &'static [Table]) -> String {
    match table.owner {
        Owner::Tenant(column) => format!("{column} = ?1"),
        Owner::Parent { column, table, key } => {
            let parent = owner_table.iter().find(|other| other.name == table).unwrap();
            format!("{column} IN (SELECT {key} FROM copy.{table} WHERE {})", owned(parent, owner_table))
        }
        Owner::Reference => "false".to_owned(),
    }
}

/// What Muster does, in its simplest form: rows back from the copies, without the application's triggers.
fn restore(fleet: &Fleet, dir: &Path, log: &DeletionLog, at: i64) -> Reached {
    let mut reached = Reached::new();
    for shard in &fleet.shards {
        let connection = Connection::open(&shard.path).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
        connection.execute("ATTACH ?1 AS copy", [copy_of(shard, dir).to_str().unwrap()]).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for deleted in &log.sites {
            for table in tables(shard.role) {
                let condition = owned(table, tables(shard.role));
                let name = table.name;
                let sql = format!("INSERT INTO main.{name} SELECT * FROM copy.{name} WHERE {condition}");
                let parameters = usize::from(condition.contains("?1"));
                let count = connection
                    .execute(&sql, rusqlite::params_from_iter([&deleted.site].iter().take(parameters)));
                if count.unwrap() > 0 {
                    reached.insert((deleted.site.clone(), table.kind.name().to_owned()), at);
                }
            }
        }
        connection.execute_batch("COMMIT; DETACH copy; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    }
    reached
}

struct Case {
    fleet: Arc<Fleet>,
    log: DeletionLog,
    reached: Reached,
    _dir: tempfile::TempDir,
    dir: PathBuf,
}

fn restored_case(seed: u64) -> Case {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().to_owned();
    let fleet = small_fleet(&dir, seed);
    write(&fleet, 400);
    let at = copy_all(&fleet, &dir);
    let victims = fleet.pick_victims(5);
    assert_eq!(victims.len(), 5);
    let log = fleet.delete_victims(&victims, Duration::ZERO).unwrap();
    write(&fleet, 300);
    let reached = restore(&fleet, &dir, &log, at);
    Case { fleet, log, reached, _dir: temporary, dir }
}

#[test]
fn a_right_restore_is_right() {
    for seed in [1, 2, 3] {
        let case = restored_case(seed);
        let verdict = case.fleet.judge(&case.log, &case.reached, POLL_INTERVAL_MICROS).unwrap();
        assert!(verdict.holds(), "seed {seed}\n{verdict}");
        assert_eq!((verdict.victims_equal, verdict.victims_exact), (5, 5), "seed {seed}\n{verdict}");
        assert!(verdict.victim_rows > 0 && verdict.neighbour_rows > 0, "seed {seed}\n{verdict}");
    }
}

#[test]
fn a_restore_to_a_moment_amid_the_writing_is_right_and_its_loss_is_counted() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let fleet = small_fleet(dir, 7);
    write(&fleet, 200);
    let writers = fleet.start_writers(WriterConfig { transactions_per_second: 2_000, threads: 2 });
    let at = copy_all(&fleet, dir);
    let copied = writers.committed();
    while writers.committed() < copied + 300 {
        std::thread::yield_now();
    }
    let log = fleet.delete_victims(&fleet.pick_victims(8), Duration::ZERO).unwrap();
    writers.stop().unwrap();
    let reached = restore(&fleet, dir, &log, at);
    let verdict = fleet.judge(&log, &reached, POLL_INTERVAL_MICROS).unwrap();
    assert!(verdict.holds(), "{verdict}");
    assert!(verdict.lost_transactions() > 0 && verdict.victims_exact < 8, "{verdict}");
}

#[test]
fn a_state_of_the_wrong_moment_is_found() {
    let case = restored_case(4);
    // The rows are those at `reached`; whoever says that it was much earlier, or that nothing came back, is wrong.
    let earlier: Reached = case.reached.keys().map(|store| (store.clone(), 0)).collect();
    let verdict = case.fleet.judge(&case.log, &earlier, 1_000).unwrap();
    assert!(!verdict.holds(), "{verdict}");
    let verdict = case.fleet.judge(&case.log, &Reached::new(), POLL_INTERVAL_MICROS).unwrap();
    assert!(!verdict.holds() && verdict.to_string().contains("no recovery point is known"), "{verdict}");
    // Nothing came back at all.
    let log = case.fleet.delete_victims(&[case.log.sites[0].index], Duration::ZERO).unwrap();
    assert_eq!(log.sites[0].site, case.log.sites[0].site);
    let verdict = case.fleet.judge(&case.log, &Reached::new(), POLL_INTERVAL_MICROS).unwrap();
    assert!(verdict.to_string().contains("was not restored"), "{verdict}");
}

#[test]
fn stores_of_two_different_cuts_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, early) = (temporary.path(), temporary.path().join("early"));
    std::fs::create_dir(&early).unwrap();
    let fleet = small_fleet(dir, 9);
    write(&fleet, 200);
    copy_all(&fleet, &early);
    write(&fleet, 600);
    let at = copy_all(&fleet, dir);
    let log = fleet.delete_victims(&fleet.pick_victims(10), Duration::ZERO).unwrap();
    let half = |sites: &[muster_demo::DeletedSite]| DeletionLog { sites: sites.to_vec() };
    let mut reached = restore(&fleet, dir, &half(&log.sites[..5]), at);
    reached.extend(restore(&fleet, &early, &half(&log.sites[5..]), at));
    let verdict = fleet.judge(&log, &reached, POLL_INTERVAL_MICROS).unwrap();
    assert!(!verdict.holds() && verdict.to_string().contains("no single state"), "{verdict}");
}

/// Changes one row as no application would, and gives what the judge must say.
fn planted(case: &Case, role: usize, victim: bool, sql: &str) -> String {
    let region = case.fleet.sites[case.log.sites[0].index].region;
    let shard =
        case.fleet.shards.iter().filter(|shard| REGIONS[shard.region] == REGIONS[region]).nth(role).unwrap();
    let keep = case.dir.join("kept.db");
    std::fs::copy(&shard.path, &keep).unwrap();
    {
        let connection = Connection::open(&shard.path).unwrap();
        connection.execute_batch("CREATE TEMP TABLE v (site TEXT)").unwrap();
        for site in case.log.sites.iter().map(|site| &site.site) {
            connection.execute("INSERT INTO v VALUES (?1)", [site]).unwrap();
        }
        let sql = sql
            .replace("WHOSE", if victim { "IN (SELECT site FROM v)" } else { "NOT IN (SELECT site FROM v)" });
        assert_eq!(connection.execute(&sql, []).unwrap(), 1, "{sql}");
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    }
    let verdict = case.fleet.judge(&case.log, &case.reached, POLL_INTERVAL_MICROS).unwrap();
    std::fs::copy(&keep, &shard.path).unwrap();
    assert!(!verdict.holds(), "not found: {sql}\n{verdict}");
    assert_eq!(verdict.neighbours_equal, victim, "{sql}\n{verdict}");
    assert_eq!(verdict.victims_equal, if victim { 4 } else { 5 }, "{sql}\n{verdict}");
    verdict.to_string()
}

#[test]
fn planted_differences_are_found() {
    let case = restored_case(5);
    for victim in [true, false] {
        let changed = planted(
            &case,
            0,
            victim,
            "UPDATE site SET users = users + 1 WHERE site_id = (SELECT min(site_id) FROM site WHERE site_id WHOSE)",
        );
        assert!(changed.contains("`users` must be integer"), "{changed}");
        let missing = planted(
            &case, 1, victim,
            "DELETE FROM group_member WHERE (group_id, user_id) IN (SELECT group_id, user_id FROM group_member
             JOIN user_group USING (group_id) WHERE site_id WHOSE LIMIT 1)",
        );
        assert!(missing.contains("is missing"), "{missing}");
        let class = planted(
            &case,
            0,
            victim,
            "UPDATE site_configuration SET value = CAST(value AS TEXT) WHERE key = 'timezone' AND site_id =
             (SELECT min(site_id) FROM site_configuration WHERE key = 'timezone' AND typeof(value) = 'integer'
              AND site_id WHOSE)",
        );
        assert!(class.contains("`value` must be integer") && class.contains("is text"), "{class}");
        let extra = planted(
            &case,
            0,
            victim,
            "INSERT INTO site_contact SELECT 5000000000, site_id, 'planted', 'x', 'y', NULL FROM site
             WHERE site_id WHOSE ORDER BY site_id LIMIT 1",
        );
        assert!(extra.contains("row integer 5000000000 must not be there"), "{extra}");
    }
    let verdict = case.fleet.judge(&case.log, &case.reached, POLL_INTERVAL_MICROS).unwrap();
    assert!(verdict.holds(), "nothing is planted any more\n{verdict}");
}

#[test]
fn a_changed_definition_is_found() {
    let case = restored_case(6);
    Connection::open(&case.fleet.shards[2].path)
        .unwrap()
        .execute_batch("DROP TRIGGER jsw_issue_changed")
        .unwrap();
    let verdict = case.fleet.judge(&case.log, &case.reached, POLL_INTERVAL_MICROS).unwrap();
    assert!(!verdict.holds() && verdict.to_string().contains("jsw_issue_changed"), "{verdict}");
}
