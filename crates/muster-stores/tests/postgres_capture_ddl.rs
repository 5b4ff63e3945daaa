//! Named traps of DDL under capture, one test each: which commits are recovery points around it, and what is told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets an error fails")]

mod postgres_capture_support;

use muster_services::Postgres;
use muster_stores::capture::CaptureSource;
use muster_stores::postgres::{PostgresSource, capture_notes};
use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::{Position, Timestamp};
use postgres_capture_support::{Own, Shard, session};

const TENANT: &str = "CREATE TABLE p (site text NOT NULL, id int, v text, PRIMARY KEY (site, id));
    CREATE TABLE q (site text NOT NULL, id int, v text, PRIMARY KEY (site, id));
    INSERT INTO p VALUES ('a', 1, 'x'), ('b', 1, NULL); INSERT INTO q VALUES ('a', 1, 'x'), ('c', 1, NULL);";

const FAMILY: &str =
    "CREATE TABLE p (id int PRIMARY KEY, site text NOT NULL, v text); ALTER TABLE p REPLICA IDENTITY FULL;
    CREATE TABLE c (id int PRIMARY KEY, up int NOT NULL, v text); ALTER TABLE c REPLICA IDENTITY FULL;
    INSERT INTO p VALUES (1, 'a', ''), (2, 'b', ''); INSERT INTO c VALUES (1, 1, ''), (2, 2, '');";

const PARTITIONED: &str = "
    CREATE TABLE p (site text, id int, v text, PRIMARY KEY (site, id)) PARTITION BY LIST (site);
    CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a'); CREATE TABLE p_b PARTITION OF p FOR VALUES IN ('b');
    INSERT INTO p VALUES ('a', 1, ''), ('b', 1, '');";

fn tenant() -> Shard {
    Shard::new(&Postgres::shared().unwrap(), TENANT, &[("p", Own::T("site")), ("q", Own::T("site"))])
}

fn family() -> Shard {
    let tables = [("p", Own::T("site")), ("c", Own::P("up", "p", "id"))];
    Shard::new(&Postgres::shared().unwrap(), FAMILY, &tables)
}

fn partitioned() -> Shard {
    Shard::new(&Postgres::shared().unwrap(), PARTITIONED, &[("p", Own::T("site"))])
}

fn end_of_log(shard: &mut Shard) -> Position {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
    Position(shard.conn.query_one(sql, &[]).unwrap().get::<_, i64>(0).cast_unsigned())
}

/// Runs `sql` in one transaction; gives where its commit can lie, and its time.
fn run_timed(shard: &mut Shard, sql: &str) -> (std::ops::Range<Position>, Timestamp) {
    let before = end_of_log(shard);
    let mut transaction = shard.conn.transaction().unwrap();
    transaction.batch_execute(sql).unwrap();
    let id: String = transaction.query_one("SELECT pg_current_xact_id()::text", &[]).unwrap().get(0);
    transaction.commit().unwrap();
    shard.keep_truth();
    let sql =
        format!("SELECT round(extract(epoch FROM pg_xact_commit_timestamp('{id}'::xid)) * 1000000)::bigint");
    let at = Timestamp::from_micros(shard.conn.query_one(&sql, &[]).unwrap().get(0));
    (before..end_of_log(shard), at)
}

fn dropped(shard: &Shard, table: &str) -> TableEvent {
    let mut found = shard
        .last_events
        .iter()
        .filter(|event| event.event == TableEventKind::Dropped && event.table == table);
    let event = found.next().unwrap_or_else(|| panic!("{:?}", shard.events())).clone();
    assert!(found.next().is_none(), "twice: {:?}", shard.last_events);
    event
}

fn dropped_at(shard: &Shard, table: &str, timed: &(std::ops::Range<Position>, Timestamp)) {
    let event = dropped(shard, table);
    assert!(timed.0.contains(&event.position.unwrap()), "{event:?} in {timed:?}");
    assert_eq!(event.at, timed.1, "{event:?}");
}

#[test]
fn every_commit_up_to_an_altered_table_is_a_recovery_point() {
    for alter in [
        "ALTER TABLE p ADD COLUMN n int DEFAULT 7",
        "ALTER TABLE p DROP COLUMN v",
        "ALTER TABLE p RENAME COLUMN v TO w",
        // Nothing about the rows in the log shows it.
        "ALTER TABLE p ALTER v TYPE text USING upper(v || 'y')",
        "ALTER TABLE p ALTER id TYPE bigint",
    ] {
        let mut shard = tenant();
        shard.run("INSERT INTO p VALUES ('a', 2, 'x')").run("UPDATE p SET v = 'z' WHERE id = 2");
        shard.run("DELETE FROM q WHERE site = 'c'");
        shard.run(alter);
        shard.run("INSERT INTO p (site, id) VALUES ('a', 3)").run("UPDATE q SET v = 'later'");
        shard.poll();
        assert_eq!((shard.polls, shard.events()), (2, vec!["Reread p".to_owned()]), "{alter}");
        // Three commits, the end there, and the end behind the reading.
        assert_eq!(shard.compared, 5, "{alter}");
        shard.check();
    }
}

#[test]
fn what_a_transaction_with_ddl_writes_belongs_to_it() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    shard.run(
        "INSERT INTO p VALUES ('a', 3, 'x'); ALTER TABLE p ADD n int; UPDATE p SET n = id; DELETE FROM q",
    );
    shard.run("INSERT INTO p VALUES ('a', 4, 'x', 4)");
    shard.poll();
    assert_eq!((shard.polls, shard.compared), (2, 3));
    assert_eq!(shard.events(), ["Reread p"]);
    shard.check();
}

#[test]
fn a_capture_that_was_away_has_every_commit_before_the_ddl() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')").check();
    shard.run("INSERT INTO p VALUES ('a', 3, 'x')").run("INSERT INTO p VALUES ('a', 4, 'x')");
    shard.run("ALTER TABLE p DROP COLUMN v");
    shard.run("INSERT INTO p VALUES ('a', 5)");
    shard.restart();
    shard.compared = 0;
    shard.poll();
    assert_eq!(shard.polls, 2);
    // Two commits, the end there, the end; and of heartbeats.
    assert!(shard.compared >= 4, "{}", shard.compared);
    shard.check();
}

#[test]
fn ddl_that_changes_no_row_is_passed_over() {
    let mut shard = tenant();
    for ddl in [
        "CREATE INDEX p_v ON p (v)",
        "ALTER INDEX p_v RENAME TO p_w",
        "ALTER TABLE p ADD CONSTRAINT positive CHECK (id > 0)",
        "ALTER TABLE p ADD CONSTRAINT p_q FOREIGN KEY (site, id) REFERENCES q NOT VALID",
        "COMMENT ON TABLE p IS 'text'",
        "ALTER TABLE p ALTER v SET DEFAULT 'd', ALTER v SET STATISTICS 100",
        "GRANT SELECT ON p TO PUBLIC",
        "ALTER TABLE p ENABLE ROW LEVEL SECURITY",
        "CREATE TABLE nobodys (id int); ALTER TABLE nobodys ADD n int; DROP TABLE nobodys",
        "CREATE TEMP TABLE p (id int); ALTER TABLE pg_temp.p ADD n int; DROP TABLE pg_temp.p",
        "CREATE SCHEMA other CREATE TABLE p (id int); DROP SCHEMA other CASCADE",
        "CREATE TABLE copy AS SELECT * FROM p; DROP TABLE copy",
        "CREATE VIEW seen AS SELECT * FROM p; DROP VIEW seen",
    ] {
        shard.compared = 0;
        shard.run("UPDATE q SET v = 'before'").run(ddl).run("UPDATE q SET v = 'behind'");
        shard.poll();
        assert_eq!((shard.polls, shard.events()), (1, vec![]), "{ddl}");
        assert!(shard.compared >= 4, "{ddl}: {}", shard.compared);
        shard.check();
    }
}

#[test]
fn ddl_that_is_rolled_back_leaves_nothing() {
    let mut shard = tenant();
    shard.run("BEGIN; UPDATE q SET v = 'void'; ALTER TABLE p ADD n int; DROP TABLE q; ROLLBACK");
    shard.run("BEGIN; UPDATE q SET v = 'stays'; SAVEPOINT s; DROP TABLE p; ROLLBACK TO s; UPDATE p SET v = 'y'; COMMIT");
    shard.poll();
    assert_eq!((shard.polls, shard.events()), (1, vec![]));
    assert_eq!(shard.log().len(), 4, "{:?}", shard.log());
    shard.check();
}

#[test]
fn a_dropped_table_is_timed_by_its_commit() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')").run("INSERT INTO q VALUES ('a', 2, 'x')");
    let timed = run_timed(&mut shard, "UPDATE p SET v = 'void'; DROP TABLE p; UPDATE q SET v = 'y'");
    shard.run("INSERT INTO q VALUES ('a', 3, 'x')");
    shard.poll();
    assert_eq!((shard.polls, shard.events()), (1, vec!["Dropped p".to_owned()]));
    dropped_at(&shard, "p", &timed);
    // Four commits, those of heartbeats, and the end.
    assert!(shard.compared >= 6, "{}", shard.compared);
    shard.check();
}

#[test]
fn tables_dropped_one_by_one_are_each_timed() {
    let mut shard = tenant();
    let first = run_timed(&mut shard, "DROP TABLE p");
    shard.run("INSERT INTO q VALUES ('a', 3, 'x')");
    let second = run_timed(&mut shard, "DROP TABLE q");
    shard.poll();
    assert_eq!(shard.events(), ["Dropped p", "Dropped q"]);
    dropped_at(&shard, "p", &first);
    dropped_at(&shard, "q", &second);
    assert!(shard.compared >= 3, "{}", shard.compared);
    shard.check();
}

#[test]
fn a_schema_that_goes_takes_its_tables_at_one_commit() {
    let tables = [("s.t", Own::T("site")), ("s.u", Own::T("site"))];
    let sql = "CREATE SCHEMA s; CREATE TABLE s.t (site text, id int, PRIMARY KEY (site, id));
        CREATE TABLE s.u (site text, id int, PRIMARY KEY (site, id))";
    let mut shard = Shard::uncaptured(&Postgres::shared().unwrap(), sql, &tables);
    // The harness looks for tables in `public` only.
    shard.declared.clear();
    shard.source.init().unwrap();
    shard.begin("0001-test");
    let timed = run_timed(&mut shard, "DROP SCHEMA s CASCADE");
    shard.poll_unchecked();
    let mut events = shard.events();
    events.sort();
    assert_eq!(events, ["Dropped s.t", "Dropped s.u"]);
    dropped_at(&shard, "s.t", &timed);
    dropped_at(&shard, "s.u", &timed);
}

#[test]
fn a_table_that_is_renamed_away_is_gone_at_that_commit() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    let timed = run_timed(&mut shard, "ALTER TABLE p RENAME TO p_old");
    shard.run("INSERT INTO q VALUES ('a', 3, 'x')");
    shard.poll();
    assert_eq!(shard.polls, 2);
    dropped_at(&shard, "p", &timed);
    shard.check();
}

#[test]
fn a_table_that_is_made_anew_was_gone() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    let timed = run_timed(&mut shard, "DROP TABLE p");
    shard.run("INSERT INTO q VALUES ('a', 5, 'between')");
    shard.run("CREATE TABLE p (site text, id bigint PRIMARY KEY); ALTER TABLE p REPLICA IDENTITY FULL");
    shard.run("INSERT INTO p VALUES ('z', 9)");
    shard.poll();
    dropped_at(&shard, "p", &timed);
    assert_eq!(shard.events(), ["Dropped p", "Reread p"]);
    // Three commits up to the new table, the end there, and the end.
    assert_eq!((shard.polls, shard.compared), (2, 5));
    shard.check();
}

#[test]
fn several_ddls_in_a_row_end_in_one_reading() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    shard.run("ALTER TABLE p ADD n int");
    shard.run("INSERT INTO p VALUES ('a', 3, 'x', 1)").run("INSERT INTO q VALUES ('a', 3, 'x')");
    shard.run("ALTER TABLE q RENAME COLUMN v TO w").run("UPDATE q SET w = 'u'");
    shard.run("ALTER TABLE p DROP COLUMN n").run("INSERT INTO p VALUES ('a', 4, 'x')");
    let timed = run_timed(&mut shard, "DROP TABLE q");
    shard.run("INSERT INTO p VALUES ('a', 5, 'x')");
    shard.poll();
    assert_eq!(shard.polls, 2);
    dropped_at(&shard, "q", &timed);
    assert!(shard.events().contains(&"Reread p".to_owned()));
    shard.check();
}

#[test]
fn a_truncation_before_a_ddl_is_no_rewrite() {
    let mut shard = tenant();
    shard
        .run("TRUNCATE p")
        .run("INSERT INTO p VALUES ('a', 2, 'x')")
        .run("TRUNCATE q; INSERT INTO q VALUES ('n', 1, '')");
    shard.run("ALTER TABLE p ADD CHECK (id > 0)").run("INSERT INTO p VALUES ('a', 3, 'x')");
    shard.poll();
    assert_eq!((shard.polls, shard.events()), (1, vec!["Truncated p".to_owned(), "Truncated q".to_owned()]));
    shard.acknowledge();
    shard.run("TRUNCATE q").run("INSERT INTO q VALUES ('m', 1, '')").run("ALTER TABLE p ADD n int");
    shard.poll();
    assert_eq!((shard.polls, shard.events()), (2, vec!["Truncated q".to_owned(), "Reread p".to_owned()]));
    shard.check();
}

#[test]
fn partitions_come_without_a_reading_and_go_with_one() {
    let mut shard = partitioned();
    shard.run("INSERT INTO p VALUES ('a', 2, '')").run("CREATE TABLE p_c PARTITION OF p FOR VALUES IN ('c')");
    shard.run("INSERT INTO p VALUES ('c', 1, ''), ('a', 3, '')");
    shard.poll();
    assert_eq!(shard.events(), Vec::<String>::new());
    assert!(shard.compared >= 3, "{}", shard.compared);
    shard.check();
    shard.compared = 0;
    shard.run("INSERT INTO p VALUES ('c', 2, '')").run("UPDATE p SET v = 'x'").run("DROP TABLE p_b");
    shard.run("INSERT INTO p VALUES ('c', 3, '')");
    shard.poll();
    assert_eq!((shard.polls, shard.compared, shard.events()), (2, 4, vec!["Reread p".to_owned()]));
    shard.check();
    // One that was a table before may bring rows.
    shard.run("CREATE TABLE p_d (LIKE p INCLUDING ALL); INSERT INTO p_d VALUES ('d', 1, '')");
    shard.run("ALTER TABLE p ATTACH PARTITION p_d FOR VALUES IN ('d')");
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"]);
    shard.check();
    shard.run("CREATE TABLE p_e PARTITION OF p FOR VALUES IN ('e'); INSERT INTO p VALUES ('e', 1, '')");
    shard.run("ALTER TABLE p DETACH PARTITION p_e; DELETE FROM p_e");
    shard.run("ALTER TABLE p ATTACH PARTITION p_e FOR VALUES IN ('e')");
    shard.poll();
    shard.check();
}

#[test]
fn owners_are_looked_up_before_the_ddl_where_that_is_possible() {
    // The log says nothing of the parents.
    let mut shard = family();
    shard.run("UPDATE c SET v = 'x'").run("INSERT INTO c VALUES (3, 2, '')").run("ALTER TABLE p ADD n int");
    shard.run("UPDATE p SET n = 1; UPDATE c SET v = 'y'");
    shard.poll();
    assert_eq!(shard.polls, 2);
    let mut events = shard.events();
    events.sort();
    assert_eq!(events, ["Reread c", "Reread p"]);
    // Two commits, the end there, and the end.
    assert_eq!(shard.compared, 4);
    shard.check();
}

#[test]
fn owners_that_the_ddl_took_are_not_guessed() {
    for ddl in [
        "DROP TABLE p CASCADE; CREATE TABLE p (id int PRIMARY KEY, site text NOT NULL, v text); \
         ALTER TABLE p REPLICA IDENTITY FULL; INSERT INTO p VALUES (1, 'other', ''), (2, 'b', '')",
        "ALTER TABLE p ALTER site TYPE text USING site || 'x'",
        "ALTER TABLE p RENAME COLUMN v TO w; UPDATE p SET site = 'moved'",
        "ALTER TABLE p ADD n int; UPDATE p SET site = 'moved'",
        "ALTER TABLE p ADD n int; TRUNCATE p; INSERT INTO p VALUES (1, 'moved', '', 1)",
        "ALTER TABLE c ADD n int; TRUNCATE p; INSERT INTO p VALUES (1, 'moved', '')",
    ] {
        let mut shard = family();
        shard.run("UPDATE c SET v = 'x'").run("INSERT INTO c VALUES (3, 2, '')").run(ddl);
        shard.poll();
        shard.check();
    }
}

#[test]
fn a_message_that_is_a_lie_costs_no_row() {
    let mut shard = tenant();
    let oid: u32 = shard.conn.query_one("SELECT 'p'::regclass::oid", &[]).unwrap().get(0);
    for lie in [
        format!("{{\"tag\": \"DROP TABLE\", \"dropped\": [{{\"oid\": {oid}}}]}}"),
        "junk".to_owned(),
        "{\"failed\": \"out of words\"}".to_owned(),
    ] {
        shard.run("UPDATE q SET v = 'before'");
        shard.run(&format!(
            "SELECT pg_logical_emit_message(true, 'muster.ddl', '{lie}'); UPDATE p SET v = 'y'"
        ));
        shard.run("UPDATE q SET v = 'behind'");
        shard.poll();
        assert_eq!(shard.events(), Vec::<String>::new(), "{lie}");
        shard.check();
    }
}

#[test]
fn anybody_may_run_ddl_and_is_told_of() {
    let mut shard = tenant();
    let role = Postgres::shared().unwrap().create_role("app", "secret", "").unwrap();
    shard.run(&format!("GRANT CREATE ON SCHEMA public TO \"{role}\"; ALTER TABLE p OWNER TO \"{role}\"; GRANT ALL ON q TO \"{role}\""));
    shard.check();
    shard.compared = 0;
    shard.run(&format!("SET ROLE \"{role}\"")).run("UPDATE p SET v = 'last'");
    let timed = run_timed(&mut shard, "DROP TABLE p");
    shard.run("RESET ROLE");
    shard.poll();
    dropped_at(&shard, "p", &timed);
    shard.check();
}

#[test]
fn where_event_triggers_are_not_permitted_capture_says_so_and_goes_on() {
    let server = Postgres::shared().unwrap();
    let role = server.create_role("capturer", "secret", "REPLICATION").unwrap();
    let sql = format!(
        "{TENANT} ALTER TABLE p OWNER TO \"{role}\"; ALTER TABLE q OWNER TO \"{role}\";
         GRANT CREATE ON DATABASE {{}} TO \"{role}\""
    );
    let database = |shard: &Shard| shard.name.as_str().to_owned();
    let tables = [("p", Own::T("site")), ("q", Own::T("site"))];
    let mut shard = Shard::uncaptured(&server, TENANT, &tables);
    let name = database(&shard);
    shard.conn.batch_execute(&sql.replace(TENANT, "").replace("{}", &format!("\"{name}\""))).unwrap();
    let url = server.url_as(&role, "secret", &name);
    assert!(capture_notes(&url).unwrap()[0].contains("no recovery point"));
    shard.source = PostgresSource::new(shard.name.clone(), &url, shard.declared.clone());
    let installed = shard.source.init().unwrap();
    assert!(installed.notes[0].contains("no recovery point"), "{:?}", installed.notes);
    assert_eq!(installed.triggers, 0);
    shard.begin("0001-test");
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')").run("ALTER TABLE p ALTER v TYPE text USING upper(v)");
    shard.run("INSERT INTO q VALUES ('a', 2, 'x')").run("INSERT INTO p VALUES ('a', 3, 'x')");
    shard.poll();
    assert_eq!((shard.compared, shard.events()), (1, vec!["Reread p".to_owned()]));
    shard.check();
    shard.compared = 0;
    shard.run("INSERT INTO q VALUES ('a', 3, 'x')").run("DROP TABLE q");
    shard.poll();
    assert_eq!((shard.compared, shard.events()), (1, vec!["Dropped q".to_owned()]));
    assert_eq!(dropped(&shard, "q").position, None);
    shard.check();
    // A superuser changes that.
    PostgresSource::new(shard.name.clone(), &shard.url, shard.declared.clone()).init().unwrap();
    assert_eq!(capture_notes(&url).unwrap(), Vec::<String>::new());
    assert_eq!(shard.source.init().unwrap().notes, Vec::<String>::new());
}

#[test]
fn what_init_installs_remove_takes_away() {
    let mut shard = tenant();
    let again = shard.source.init().unwrap();
    assert!(again.unchanged && again.notes.is_empty() && again.triggers == 2, "{again:?}");
    shard.conn.batch_execute("ALTER EVENT TRIGGER muster_ddl DISABLE").unwrap();
    assert_eq!(capture_notes(&shard.url).unwrap().len(), 1);
    assert!(!shard.source.init().unwrap().unchanged);
    assert_eq!(capture_notes(&shard.url).unwrap(), Vec::<String>::new());
    shard.source.remove().unwrap();
    let left: i64 =
        session(&shard.url).query_one("SELECT count(*) FROM pg_event_trigger", &[]).unwrap().get(0);
    assert_eq!(left, 0);
    shard.conn.batch_execute("ALTER TABLE p ADD n int; DROP TABLE q").unwrap();
}

#[test]
fn ddl_that_nobody_told_of_is_noticed() {
    let mut shard = tenant();
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    shard.run("ALTER EVENT TRIGGER muster_ddl DISABLE; ALTER EVENT TRIGGER muster_ddl_drop DISABLE");
    shard.run("ALTER TABLE p ALTER v TYPE text USING upper(v)").run("INSERT INTO q VALUES ('a', 2, 'x')");
    shard.run("DROP TABLE q");
    shard.run(
        "ALTER EVENT TRIGGER muster_ddl ENABLE ALWAYS; ALTER EVENT TRIGGER muster_ddl_drop ENABLE ALWAYS",
    );
    shard.run("INSERT INTO p VALUES ('a', 3, 'x')");
    shard.poll();
    let mut events = shard.events();
    events.sort();
    assert_eq!((shard.compared, events), (1, vec!["Dropped q".to_owned(), "Reread p".to_owned()]));
    shard.check();
}

#[test]
fn a_large_transaction_with_ddl_is_read_with_what_follows() {
    let mut shard = tenant();
    shard.run("INSERT INTO q VALUES ('a', 2, 'x')");
    shard.run(
        "INSERT INTO q SELECT 'big', n, repeat('x', 900) FROM generate_series(1, 30000) n; ALTER TABLE q ADD w int; \
         UPDATE q SET w = 1 WHERE id < 10",
    );
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    shard.poll();
    assert_eq!(shard.events(), ["Reread q"]);
    shard.check();
}
