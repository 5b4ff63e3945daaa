//! The judge of PostgreSQL shards agrees with a right restore and finds every planted difference, to the commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postgres::Client;

use super::PostgresServer;
use crate::deletion::DeletionLog;
use crate::fleet::{Fleet, FleetConfig};
use crate::kind::{Kind, Role};
use crate::oracle::{Reached, Verdict};
use crate::record::{Intent, Outcome, Shard, now_micros, statement};
use crate::schema::{self, Owner, Table, tables};
use crate::writers::{WriterConfig, Writers};

/// A fleet whose databases go with it.
struct World {
    fleet: Arc<Fleet>,
    server: PostgresServer,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that fails says so itself; what it leaves is in a server for tests.
        let _ = self.server.drop_databases();
    }
}

fn world(seed: u64) -> World {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let services = muster_services::Postgres::shared().unwrap();
    let prefix = format!("judge_{}_{}_{number}", now_micros() / 1_000_000, std::process::id());
    let server = PostgresServer::new(&services.url("postgres"), &prefix).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = FleetConfig { sites: 20, rows_per_site: 150, seed, dir: dir.path().join("fleet") };
    let fleet = Fleet::generate_on(&server, &config).unwrap();
    for database in fleet.shards.iter().filter_map(|shard| shard.database.as_ref()) {
        services.adopt_database(&database.name).unwrap();
    }
    World { fleet, server, _dir: dir }
}

fn writers(fleet: &Arc<Fleet>) -> Writers {
    fleet.start_writers(WriterConfig { transactions_per_second: 1_000, threads: 4 })
}

/// Runs writers until they have committed `count` more transactions.
fn write(fleet: &Arc<Fleet>, count: u64) {
    let writers = writers(fleet);
    while writers.committed() < count {
        std::thread::yield_now();
    }
    writers.stop().unwrap();
}

fn client(shard: &Shard) -> Client {
    shard.database.as_ref().unwrap().connect().unwrap()
}

/// Copies every shard's rows into a schema of their own, writers or not, and says of which moment they are.
fn copy_all(fleet: &Fleet, schema: &str) -> Vec<i64> {
    fleet.shards.iter().map(|shard| copy_shard(shard, schema)).collect()
}

fn copy_shard(shard: &Shard, schema: &str) -> i64 {
    let mut client = client(shard);
    client.batch_execute(&format!("CREATE SCHEMA {schema}")).unwrap();
    let names: Vec<&str> = tables(shard.role).iter().map(|table| table.name).collect();
    // Nobody has written and not committed under this lock; to wait for it could deadlock with a writer.
    let lock = format!("LOCK TABLE {} IN SHARE MODE NOWAIT", names.join(", "));
    loop {
        let mut transaction = client.transaction().unwrap();
        match transaction.batch_execute(&lock) {
            Ok(()) => {
                let at = now_micros();
                for name in &names {
                    transaction
                        .batch_execute(&format!("CREATE TABLE {schema}.{name} AS TABLE public.{name}"))
                        .unwrap();
                }
                transaction.commit().unwrap();
                return at;
            }
            Err(error) => assert_eq!(error.code().unwrap().code(), "55P03", "{error}"),
        }
    }
}

fn owned(table: &Table, of: &str) -> String {
    match table.owner {
        Owner::Tenant(column) => format!("{column} = ANY ($1)"),
        Owner::Parent { column, table, key } => {
            let above = owned(schema::table(table).unwrap(), of);
            format!("{column} IN (SELECT {key} FROM {of}.{table} WHERE {above})")
        }
        Owner::Reference => "false AND $1::text[] IS NULL".to_owned(),
    }
}

/// What Muster does, in its simplest form: rows back from a copy, without the application's triggers.
fn restore(fleet: &Fleet, schema: &str, at: &[i64], log: &DeletionLog) -> Reached {
    let sites: Vec<&str> = log.sites.iter().map(|site| site.site.as_str()).collect();
    let mut reached = Reached::new();
    for (shard, at) in fleet.shards.iter().zip(at) {
        let mut client = client(shard);
        let mut transaction = client.transaction().unwrap();
        transaction.batch_execute("SET LOCAL session_replication_role = replica").unwrap();
        for table in tables(shard.role) {
            let (name, condition) = (table.name, owned(table, schema));
            let sql = format!("INSERT INTO public.{name} SELECT * FROM {schema}.{name} WHERE {condition}");
            transaction.execute(&sql, &[&sites]).unwrap();
            if let Owner::Tenant(column) = table.owner {
                let sql = format!("SELECT DISTINCT {column} FROM {schema}.{name} WHERE {condition}");
                for row in transaction.query(&sql, &[&sites]).unwrap() {
                    reached.insert((row.get(0), table.kind.name().to_owned()), *at);
                }
            }
        }
        transaction.commit().unwrap();
    }
    reached
}

/// Every store of the victims, empty ones too, at its shard's moment.
fn reached(fleet: &Fleet, log: &DeletionLog, at: &[i64]) -> Reached {
    let mut reached = Reached::new();
    for site in &log.sites {
        for kind in Kind::ALL.into_iter().filter(|kind| fleet.has(site.index, *kind)) {
            let at = at[fleet.shard_of(site.index, kind)];
            reached.insert((site.site.clone(), kind.name().to_owned()), at);
        }
    }
    reached
}

struct Case {
    world: World,
    log: DeletionLog,
    reached: Reached,
}

impl Case {
    fn judge(&self) -> Verdict {
        self.world.fleet.judge(&self.log, &self.reached, 0).unwrap()
    }
}

fn restored_case(seed: u64) -> Case {
    let world = world(seed);
    let fleet = &world.fleet;
    write(fleet, 400);
    let at = copy_all(fleet, "saved");
    let victims = fleet.pick_victims(5);
    let log = fleet.delete_victims(&victims, Duration::ZERO).unwrap();
    write(fleet, 300);
    let reached = restore(fleet, "saved", &at, &log);
    Case { world, log, reached }
}

#[test]
fn a_right_restore_is_right() {
    for seed in [1, 2] {
        let verdict = restored_case(seed).judge();
        assert!(verdict.holds(), "seed {seed}\n{verdict}");
        assert_eq!((verdict.victims_equal, verdict.victims_exact), (5, 5), "seed {seed}\n{verdict}");
        assert!(verdict.victim_rows > 0 && verdict.neighbour_rows > 0, "seed {seed}\n{verdict}");
    }
}

#[test]
fn a_restore_to_a_moment_amid_the_writing_is_right_to_the_commit() {
    let world = world(7);
    let fleet = &world.fleet;
    write(fleet, 200);
    let writers = fleet.start_writers(WriterConfig { transactions_per_second: 300, threads: 4 });
    let at = copy_all(fleet, "saved");
    let copied = writers.committed();
    while writers.committed() < copied + 300 {
        std::thread::yield_now();
    }
    let log = fleet.delete_victims(&fleet.pick_victims(8), Duration::ZERO).unwrap();
    writers.stop().unwrap();
    restore(fleet, "saved", &at, &log);
    let reached = reached(fleet, &log, &at);
    let verdict = fleet.judge(&log, &reached, 0).unwrap();
    assert!(verdict.holds(), "{verdict}");
    assert!(verdict.lost_transactions() > 0 && verdict.victims_exact < 8, "{verdict}");
}

/// One transaction that changes one user of a site.
fn touch(fleet: &Fleet, site: usize) {
    let shard = &fleet.shards[fleet.shard_of(site, Kind::Identity)];
    let intent = Intent { site: Some(site), kind: Kind::Identity, deletion: false, roll_back: false };
    let id = fleet.sites[site].id.clone();
    let sql = "UPDATE user_account SET email = 'touched' WHERE user_id =
               (SELECT min(user_id) FROM user_account WHERE site_id = ?1)";
    let mut session = shard.connect().unwrap();
    let touched = shard.commit(
        &mut session,
        fleet.turn(Some(site)),
        intent,
        || false,
        |_| Ok(vec![statement!(sql; id)]),
    );
    assert_eq!(touched.unwrap(), Outcome::Committed);
}

#[test]
fn one_commit_too_few_and_one_too_many_are_found() {
    let world = world(8);
    let fleet = &world.fleet;
    write(fleet, 100);
    let victim = fleet.pick_victims(1)[0];
    let before = copy_all(fleet, "before");
    touch(fleet, victim);
    let after = copy_all(fleet, "after");
    let log = fleet.delete_victims(&[victim], Duration::ZERO).unwrap();
    let wrong = |verdict: Verdict| {
        assert!(!verdict.holds() && verdict.victims_equal == 0 && verdict.neighbours_equal, "{verdict}");
        assert!(verdict.to_string().contains("email"), "{verdict}");
    };
    restore(fleet, "before", &before, &log);
    // The rows of one moment, said to be those of the other, and the truth.
    let reached = |at: &[i64]| reached(fleet, &log, at);
    wrong(fleet.judge(&log, &reached(&after), 0).unwrap());
    let verdict = fleet.judge(&log, &reached(&before), 0).unwrap();
    assert!(verdict.holds() && verdict.lost_transactions() == 1, "{verdict}");
    let again = fleet.delete_victims(&[victim], Duration::ZERO).unwrap();
    assert_eq!(again.sites[0].site, log.sites[0].site);
    restore(fleet, "after", &after, &log);
    wrong(fleet.judge(&log, &reached(&before), 0).unwrap());
    let verdict = fleet.judge(&log, &reached(&after), 0).unwrap();
    assert!(verdict.holds() && verdict.lost_transactions() == 0, "{verdict}");
}

/// Changes one row as no application would, looks for the difference, and takes the change back.
fn planted(case: &Case, role: Role, victim: bool, sql: &str) -> String {
    let fleet = &case.world.fleet;
    let region = fleet.sites[case.log.sites[0].index].region;
    let shard = fleet.shards.iter().find(|shard| shard.region == region && shard.role == role).unwrap();
    let names: Vec<&str> = tables(role).iter().map(|table| table.name).collect();
    let mut client = client(shard);
    client.batch_execute("SET session_replication_role = replica").unwrap();
    for name in &names {
        client.batch_execute(&format!("CREATE TEMP TABLE kept_{name} AS TABLE {name}")).unwrap();
    }
    let victims: Vec<String> = case.log.sites.iter().map(|site| format!("'{}'", site.site)).collect();
    let of = format!("{} ({})", if victim { "IN" } else { "NOT IN" }, victims.join(", "));
    assert_eq!(client.execute(&sql.replace("WHOSE", &of), &[]).unwrap(), 1, "{sql}");
    let verdict = case.judge();
    for name in &names {
        client.batch_execute(&format!("DELETE FROM {name}; INSERT INTO {name} TABLE kept_{name}")).unwrap();
    }
    assert!(!verdict.holds(), "not found: {sql}\n{verdict}");
    assert_eq!(verdict.neighbours_equal, victim, "{sql}\n{verdict}");
    assert_eq!(verdict.victims_equal, if victim { 4 } else { 5 }, "{sql}\n{verdict}");
    verdict.to_string()
}

#[test]
fn planted_differences_are_found() {
    let case = restored_case(5);
    for victim in [true, false] {
        let sql = "UPDATE site SET users = users + 1 WHERE site_id = (SELECT min(site_id) FROM site WHERE site_id WHOSE)";
        let changed = planted(&case, Role::Core, victim, sql);
        assert!(changed.contains("`users` must be integer"), "{changed}");
        let sql = "UPDATE site SET created_at = created_at + interval '1 microsecond'
                   WHERE site_id = (SELECT min(site_id) FROM site WHERE site_id WHOSE)";
        let moment = planted(&case, Role::Core, victim, sql);
        assert!(moment.contains("`created_at` must be integer") && moment.contains("is real"), "{moment}");
        let sql = "DELETE FROM group_member WHERE (group_id, user_id) IN (SELECT group_id, user_id FROM group_member
                   JOIN user_group USING (group_id) WHERE site_id WHOSE LIMIT 1)";
        let missing = planted(&case, Role::Identity, victim, sql);
        assert!(missing.contains("is missing"), "{missing}");
        let sql = "UPDATE site_configuration SET value = to_jsonb(value #>> '{}') WHERE key = 'timezone' AND site_id =
                   (SELECT min(site_id) FROM site_configuration WHERE key = 'timezone'
                    AND jsonb_typeof(value) = 'number' AND site_id WHOSE)";
        let class = planted(&case, Role::Core, victim, sql);
        assert!(class.contains("`value` must be integer") && class.contains("is text"), "{class}");
        let sql = "INSERT INTO site_contact SELECT 5000000000, site_id, 'planted', 'x', 'y', NULL FROM site
                   WHERE site_id WHOSE ORDER BY site_id LIMIT 1";
        let extra = planted(&case, Role::Core, victim, sql);
        assert!(extra.contains("row integer 5000000000 must not be there"), "{extra}");
    }
    let verdict = case.judge();
    assert!(verdict.holds(), "nothing is planted any more\n{verdict}");
}

#[test]
fn a_changed_definition_is_found() {
    let case = restored_case(6);
    let shard = case.world.fleet.shards.iter().find(|shard| shard.role == Role::Jira).unwrap();
    let mut client = client(shard);
    for (change, back, named) in [
        (
            "ALTER TABLE jsw_issue DISABLE TRIGGER jsw_issue_changed",
            "ALTER TABLE jsw_issue ENABLE TRIGGER jsw_issue_changed",
            "trigger jsw_issue.jsw_issue_changed",
        ),
        (
            "ALTER TABLE jsm_queue REPLICA IDENTITY DEFAULT",
            "ALTER TABLE jsm_queue REPLICA IDENTITY FULL",
            "table jsm_queue",
        ),
        ("CREATE TABLE left_behind (a int)", "DROP TABLE left_behind", "table left_behind"),
        (
            "ALTER TABLE jsw_comment DROP CONSTRAINT jsw_comment_issue_id_fkey",
            "ALTER TABLE jsw_comment ADD FOREIGN KEY (issue_id) REFERENCES jsw_issue (issue_id) ON DELETE CASCADE",
            "constraint jsw_comment.jsw_comment_issue_id_fkey",
        ),
    ] {
        client.batch_execute(change).unwrap();
        let verdict = case.judge();
        assert!(!verdict.holds() && verdict.to_string().contains(named), "{change}\n{verdict}");
        client.batch_execute(back).unwrap();
    }
    let verdict = case.judge();
    assert!(verdict.holds(), "{verdict}");
}

#[test]
fn transactions_of_different_sites_overlap() {
    let world = world(9);
    let fleet = &world.fleet;
    let place = |site: usize| fleet.shard_of(site, Kind::Identity);
    let sites: Vec<usize> = (0..fleet.sites.len()).filter(|site| place(*site) == place(0)).take(2).collect();
    let shard = &fleet.shards[place(0)];
    let mut holder = client(shard);
    let mut transaction = holder.transaction().unwrap();
    let lock = "SELECT FROM user_account WHERE site_id = $1 FOR UPDATE";
    transaction.execute(lock, &[&fleet.sites[sites[0]].id]).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| touch(fleet, sites[0]));
        // Beside a transaction that waits for a row of its own site, others go on.
        touch(fleet, sites[1]);
        assert!(!waiting.is_finished());
        transaction.rollback().unwrap();
        waiting.join().unwrap();
    });
    let order: Vec<_> = shard.ledger().entries.iter().map(|entry| entry.site).collect();
    assert_eq!(order, [Some(sites[1]), Some(sites[0])]);
}

#[test]
fn databases_of_a_fleet_are_dropped_with_their_slots() {
    let world = world(10);
    let names: BTreeSet<String> =
        world.server.databases(world.server.prefix()).unwrap().into_iter().collect();
    assert_eq!(names.len(), world.fleet.shards.len());
    let slot = format!("{}_slot", world.server.prefix());
    let mut client = client(&world.fleet.shards[0]);
    client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).unwrap();
    drop(client);
    let dropped: BTreeSet<String> = world.server.drop_databases().unwrap().into_iter().collect();
    assert_eq!(dropped, names);
    assert!(world.server.databases(world.server.prefix()).unwrap().is_empty());
}
