//! Capture of PostgreSQL while servers crash, sessions are killed, slots are lost, histories change and others write.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets an error fails"
)]

mod postgres_capture_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use muster_rows::{Change, Row};
use muster_services::{Postgres, StopMode};
use muster_stores::capture::{CaptureError, CaptureSource, ChangeSink};
use muster_stores::postgres::PostgresSource;
use muster_types::SiteId;
use muster_types::segment::{Commit, Mark, TableEvent};
use muster_types::table::CapturedTable;
use postgres_capture_support::{Own, Replay, Rows, Shard, session, truth_of};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const FAMILY: &str = "
    CREATE TABLE p (id int PRIMARY KEY, site text NOT NULL, v text);
    CREATE UNIQUE INDEX p_identity ON p (id, site);
    ALTER TABLE p REPLICA IDENTITY USING INDEX p_identity;
    CREATE TABLE c (id int PRIMARY KEY, up int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE, v text);
    ALTER TABLE c REPLICA IDENTITY FULL;
    CREATE TABLE g (up int REFERENCES c ON DELETE CASCADE ON UPDATE CASCADE, n int, v text, PRIMARY KEY (up, n));
    INSERT INTO p SELECT n, 'site' || n % 3, '' FROM generate_series(1, 9) n;
    INSERT INTO c SELECT n, n % 9 + 1, '' FROM generate_series(1, 30) n;
    INSERT INTO g SELECT n, 1, '' FROM generate_series(1, 30) n;";

const OWNERS: [(&str, Own); 3] =
    [("p", Own::T("site")), ("c", Own::P("up", "p", "id")), ("g", Own::P("up", "c", "id"))];

/// More than a poll keeps in memory: it comes in parts while the log is being read.
const LARGE: &str =
    "INSERT INTO c SELECT n, n % 2 + 8, repeat('x', 4000) FROM generate_series(1000, 20000) n";

fn family(server: &Postgres) -> Shard {
    Shard::new(server, FAMILY, &OWNERS)
}

fn write(shard: &mut Shard, round: u32) {
    shard.run(&format!("INSERT INTO c VALUES ({}, 9, 'new')", 100 + round));
    shard.run("UPDATE g SET v = v || 'x'; DELETE FROM c WHERE id = (SELECT min(id) FROM c)");
    shard.run(&format!("UPDATE p SET id = id + 100 WHERE id = {round}"));
}

/// Polls until the server answers; every failure before must be a passing one.
fn poll_through(shard: &mut Shard) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match shard.try_poll(false) {
            Ok(_) => return,
            Err(error) => assert!(error.transient && Instant::now() < until, "{error}"),
        }
    }
}

fn crash(server: &mut Postgres) {
    server.stop(StopMode::Immediate).unwrap();
    server.start().unwrap();
}

/// Does something at the first change that a poll hands on.
struct Tripping<'a> {
    inner: &'a mut Replay,
    trip: Option<Box<dyn FnOnce() + 'a>>,
}

impl ChangeSink for Tripping<'_> {
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError> {
        self.inner.table(table)
    }

    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: Change,
    ) -> Result<(), CaptureError> {
        if let Some(trip) = self.trip.take() {
            trip();
        }
        self.inner.change(site, table, mark, change)
    }

    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.inner.reread_row(site, table, row)
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        self.inner.table_event(event)
    }

    fn commit(&mut self, commit: Commit) -> Result<(), CaptureError> {
        self.inner.commit(commit)
    }
}

/// A poll in whose middle `trip` happens; why it failed.
fn tripped(shard: &mut Shard, trip: impl FnOnce()) -> CaptureError {
    shard.replay.begin();
    let failed = {
        let mut sink = Tripping { inner: &mut shard.replay, trip: Some(Box::new(trip)) };
        let failed = shard.source.poll(shard.boundary, false, &mut sink).unwrap_err();
        assert!(sink.trip.is_none(), "{failed}");
        failed
    };
    shard.replay.begin();
    failed
}

#[test]
fn a_server_that_crashes_between_polls_costs_nothing() {
    let mut server = Postgres::own(&[]).unwrap();
    let mut shard = family(&server);
    for round in 1..4 {
        write(&mut shard, round);
        if round == 2 {
            // What was delivered and not acknowledged is neither lost nor delivered again.
            shard.poll();
        }
        crash(&mut server);
        shard.conn = session(&shard.url);
        write(&mut shard, round + 3);
        poll_through(&mut shard);
        assert_eq!(shard.source.state().unwrap().broken, None);
        shard.check();
    }
    assert!(shard.events().is_empty(), "{:?}", shard.events());
}

#[test]
fn a_server_that_crashes_in_mid_poll_costs_nothing() {
    let mut server = Postgres::own(&[]).unwrap();
    let mut shard = family(&server);
    shard.run(LARGE);
    let failed = tripped(&mut shard, || crash(&mut server));
    assert!(failed.transient, "{failed}");
    shard.conn = session(&shard.url);
    write(&mut shard, 1);
    shard.poll_in_parts();
    shard.check();
}

#[test]
fn killed_sessions_cost_nothing() {
    let mut shard = family(&Postgres::shared().unwrap());
    let ours = "datname = current_database() AND pid <> pg_backend_pid()";
    let sender = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours} AND backend_type = 'walsender'"
    );
    let all = format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {ours}");
    for (round, kill) in [&sender, &all, &sender].into_iter().enumerate() {
        write(&mut shard, u32::try_from(round).unwrap() + 1);
        // What was killed at the end of the round before may be noticed only now.
        poll_through(&mut shard);
        shard.run(kill);
        write(&mut shard, u32::try_from(round).unwrap() + 4);
        poll_through(&mut shard);
        shard.run(kill);
        // The slot learns of it later, or from the next session.
        let until = Instant::now() + Duration::from_secs(30);
        shard.acknowledge_until(until);
        // The kill may be noticed only now.
        poll_through(&mut shard);
        shard.check();
    }
    shard.run(LARGE);
    let (url, kill) = (shard.url.clone(), sender.clone());
    let failed = tripped(&mut shard, || {
        // The poll's thread drives async work, and this client blocks.
        std::thread::spawn(move || session(&url).batch_execute(&kill).unwrap()).join().unwrap();
    });
    assert!(failed.transient, "{failed}");
    shard.poll_in_parts();
    shard.check();
}

#[test]
fn a_capture_that_ends_between_any_two_steps_loses_and_doubles_nothing() {
    let mut shard = family(&Postgres::shared().unwrap());
    for round in 1..4 {
        write(&mut shard, round);
        // What was read is lost with the process.
        shard.replay.begin();
        shard.source.poll(shard.boundary, false, &mut shard.replay).unwrap();
        shard.replay.begin();
        shard.restart();
        shard.poll();
        let delivered = shard.replay.delivered.len();
        assert!(delivered > 0);
        // It is durable, and the shard does not know.
        shard.restart();
        assert_eq!(shard.poll().changes, 0, "nothing twice");
        write(&mut shard, round + 3);
        shard.poll();
        shard.restart();
        shard.acknowledge();
        shard.restart();
        shard.check();
    }
}

#[test]
fn a_slot_that_is_gone_is_told_and_capture_begins_anew() {
    let mut shard = family(&Postgres::shared().unwrap());
    write(&mut shard, 1);
    shard.check();
    let slot = format!("muster_{}", shard.name);
    shard.run("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE database = current_database() AND active");
    shard.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()");
    write(&mut shard, 2);
    let failed = shard.try_poll(true).unwrap_err();
    assert!(failed.transient, "{failed}");
    let state = shard.source.state().unwrap();
    assert_eq!(state.broken, Some(format!("slot `{slot}` is gone")));
    shard.begin("0002-test");
    assert_eq!(shard.source.state().unwrap().broken, None);
    write(&mut shard, 3);
    shard.check();
}

#[test]
fn a_slot_made_by_another_hand_is_not_taken_for_ours() {
    let mut shard = family(&Postgres::shared().unwrap());
    write(&mut shard, 1);
    shard.check();
    shard.run("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE database = current_database() AND active");
    shard.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()");
    write(&mut shard, 2);
    shard.run(&format!("SELECT pg_create_logical_replication_slot('muster_{}', 'pgoutput')", shard.name));
    let broken = shard.source.state().unwrap().broken.unwrap();
    assert!(broken.contains("was moved on"), "{broken}");
    shard.begin("0002-test");
    shard.check();
}

/// Fills segments of the log, so that a checkpoint may remove older ones.
fn fill_log(shard: &mut Shard, segments: u32) {
    for _ in 0..segments {
        shard.run("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000))");
        shard.run("SELECT pg_switch_wal()");
    }
    shard.conn.batch_execute("CHECKPOINT").unwrap();
}

#[test]
fn a_slot_that_the_server_gives_up_is_told_and_capture_begins_anew() {
    let settings = [("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "48MB")];
    let server = Postgres::own(&settings).unwrap();
    let mut shard = family(&server);
    write(&mut shard, 1);
    shard.check();
    shard.restart();
    write(&mut shard, 2);
    fill_log(&mut shard, 6);
    let broken = shard.source.state().unwrap().broken.unwrap();
    assert!(broken.contains("was lost"), "{broken}");
    assert!(shard.try_poll(true).is_err());
    shard.begin("0002-test");
    assert_eq!(shard.source.state().unwrap().broken, None);
    write(&mut shard, 3);
    shard.check();
}

#[test]
fn a_slot_that_holds_back_too_much_is_given_up_and_capture_begins_anew() {
    let server = Postgres::own(&[]).unwrap();
    let mut shard = family(&server);
    let limited = |shard: &Shard| {
        PostgresSource::new(shard.name.clone(), &shard.url, shard.declared.clone())
            .with_wal_bytes_max(40 * 1024 * 1024)
    };
    shard.source = limited(&shard);
    fill_log(&mut shard, 1);
    assert_eq!(shard.source.state().unwrap().broken, None);
    fill_log(&mut shard, 3);
    let broken = shard.source.state().unwrap().broken.unwrap();
    assert!(broken.contains("held back") && broken.contains("41943040"), "{broken}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let left: i64 = shard.conn.query_one(slots, &[]).unwrap().get(0);
    assert_eq!(left, 0, "the shard's disk is free again");
    // Who comes next learns the same.
    shard.source = limited(&shard);
    assert_eq!(shard.source.state().unwrap().broken, Some(broken));
    shard.begin("0002-test");
    write(&mut shard, 1);
    shard.check();
    assert_eq!(shard.source.state().unwrap().broken, None);
}

#[test]
fn beginning_does_not_wait_for_ever_and_names_the_oldest_transaction() {
    let server = Postgres::shared().unwrap();
    let mut shard = Shard::uncaptured(&server, FAMILY, &OWNERS);
    shard.source.init().unwrap();
    shard.source = PostgresSource::new(shard.name.clone(), &shard.url, shard.declared.clone())
        .with_begin_wait(Duration::from_secs(1));
    let mut other = session(&shard.url);
    other.batch_execute("BEGIN; INSERT INTO c VALUES (70, 1, 'open')").unwrap();
    let pid: i32 = other.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let began = "0001-test".parse().unwrap();
    let failed = shard.source.begin_incarnation(&began).unwrap_err();
    assert!(failed.transient, "{failed}");
    let text = failed.to_string();
    assert!(text.contains(&format!("process {pid}")) && text.contains("`muster`"), "{text}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let left: i64 = shard.conn.query_one(slots, &[]).unwrap().get(0);
    assert_eq!(left, 0, "no slot is left half made");
    other.batch_execute("COMMIT").unwrap();
    shard.begin("0001-test");
    write(&mut shard, 1);
    shard.check();
}

/// A state that an open session exports, with the place from which the log goes on.
struct Exported {
    child: Child,
    _stdin: ChildStdin,
    from: u64,
    name: String,
}

impl Exported {
    fn new(server: &Postgres, url: &str, number: u64) -> Self {
        let mut child = Command::new(server.bin("psql"))
            .args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(format!("{url}?replication=database"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let slot = format!("judge_{}_{number}", std::process::id());
        writeln!(stdin, "CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export');")
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let fields: Vec<&str> = line.trim().split('|').collect();
        let (high, low) = fields[1].split_once('/').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        Self { child, _stdin: stdin, from: hex(high) << 32 | hex(low), name: fields[2].to_owned() }
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One transaction of the application on parents and children. A rough one moves parents to other sites and gives their
/// keys away, so that tables have to be read again; a gentle one deletes them, and takes keys that nobody had.
fn transaction(random: &mut ChaCha8Rng, rough: bool) -> String {
    let mut below = |end: u32| random.random_range(0..end);
    let parent = "(SELECT id FROM p ORDER BY random() LIMIT 1)";
    let child = "(SELECT id FROM c ORDER BY random() LIMIT 1)";
    let mut sql = "BEGIN;".to_owned();
    for _ in 0..=below(3) {
        let (key, site) = (below(30), below(4));
        sql += &match below(if rough { 20 } else { 16 }) {
            0 => format!("DELETE FROM p WHERE id = {parent};"),
            1..3 => format!("INSERT INTO p SELECT nextval('keys'), 'site{site}', '';"),
            3 => format!("DELETE FROM c WHERE id = {child};"),
            4..8 => format!("INSERT INTO c SELECT nextval('keys'), {parent}, 'new';"),
            8..10 => format!("INSERT INTO g SELECT {child}, {key}, '' ON CONFLICT DO NOTHING;"),
            10 => format!("UPDATE g SET v = v || 'y' WHERE up = {child};"),
            11 => format!("UPDATE p SET id = nextval('keys') WHERE id = {parent};"),
            12..16 => format!("UPDATE c SET v = 'v{key}' WHERE id = {child};"),
            16 => format!("UPDATE p SET site = 'site{site}' WHERE id = {parent};"),
            17 => format!("UPDATE c SET up = {parent} WHERE id = {child};"),
            18 => format!(
                "DELETE FROM p WHERE id = {key}; INSERT INTO p VALUES ({key}, 'site{site}', 'again');"
            ),
            _ => format!("INSERT INTO p VALUES ({key}, 'site{site}', '') ON CONFLICT DO NOTHING;"),
        };
    }
    sql + "COMMIT"
}

/// What writers and the test share.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    rough: AtomicBool,
    committed: AtomicU64,
}

impl Traffic {
    /// Writes until told to stop.
    fn write(&self, url: &str, seed: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut conn = session(url);
        while !self.stop.load(Ordering::Relaxed) {
            match conn.batch_execute(&transaction(&mut random, self.rough.load(Ordering::Relaxed))) {
                Ok(()) => {
                    self.committed.fetch_add(1, Ordering::Relaxed);
                }
                // Deadlocks, and rows that another session took away.
                Err(_) => conn.batch_execute("ROLLBACK").unwrap(),
            }
            std::thread::sleep(Duration::from_millis(random.random_range(2..15)));
        }
    }
}

/// Ends the writers also where an assertion fails.
struct StopOnDrop<'a>(&'a Traffic);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// What the database holds at a place of the log, while others write.
fn exported_truth(server: &Postgres, shard: &Shard, number: u32) -> (u64, Rows) {
    let exported = Exported::new(server, &shard.url, u64::from(number));
    let mut conn = session(&shard.url);
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", exported.name);
    conn.batch_execute(&begin).unwrap();
    (exported.from, truth_of(&shard.declared, &mut conn))
}

#[test]
fn what_others_write_while_capture_looks_is_told_exactly() {
    let server = Postgres::shared().unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, seconds) = (number("MUSTER_SEED").unwrap_or(1), number("MUSTER_SECONDS").unwrap_or(15));
    let mut shard = Shard::new(&server, &format!("{FAMILY} CREATE SEQUENCE keys START 1000;"), &OWNERS);
    shard.busy = true;
    let traffic = Traffic::default();
    let (mut changes, mut rereads, mut polls) = (0, 0, 0_u32);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&traffic);
        let url = shard.url.clone();
        for writer in 0..4 {
            let (url, traffic) = (url.clone(), &traffic);
            scope.spawn(move || traffic.write(&url, seed * 100 + writer));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        while Instant::now() < until {
            traffic.rough.store(polls % 8 > 5, Ordering::Relaxed);
            let truth = exported_truth(&server, &shard, polls);
            shard.exported.push(truth);
            changes += shard.poll().changes;
            rereads += shard.events().len();
            polls += 1;
            match random.random_range(0..4) {
                0 => shard.acknowledge(),
                1 => shard.restart(),
                _ => std::thread::sleep(Duration::from_millis(random.random_range(0..100))),
            }
        }
    });
    shard.poll();
    shard.compare_live();
    println!(
        "seed {seed}: {} commits, {polls} polls, {changes} changes, {} exported states, {rereads} tables read again",
        traffic.committed.into_inner(),
        shard.exported_compared
    );
    assert!(polls > 5 && changes > 100 && shard.exported_compared > 2);
}
