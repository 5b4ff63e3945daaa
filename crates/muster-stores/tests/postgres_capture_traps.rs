//! Named traps of capturing PostgreSQL, one test each: rows and their owners.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets an error fails")]

mod postgres_capture_support;

use muster_services::Postgres;
use muster_stores::capture::CaptureSource;
use muster_types::segment::Mark;
use postgres_capture_support::{Own, Shard, session};

const TENANT: &str = "CREATE TABLE p (site text NOT NULL, id int, v text, PRIMARY KEY (site, id));";

/// Tenant table, child, grandchild, all with cascades.
const FAMILY: &str = "
    CREATE TABLE p (id int PRIMARY KEY, site text NOT NULL, v text);
    CREATE UNIQUE INDEX p_identity ON p (id, site);
    ALTER TABLE p REPLICA IDENTITY USING INDEX p_identity;
    CREATE TABLE c (id int PRIMARY KEY, up int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE
        DEFERRABLE INITIALLY IMMEDIATE, v text);
    ALTER TABLE c REPLICA IDENTITY FULL;
    CREATE TABLE g (up int REFERENCES c ON DELETE CASCADE ON UPDATE CASCADE, n int, v text, PRIMARY KEY (up, n));";

const OWNERS: [(&str, Own); 3] =
    [("p", Own::T("site")), ("c", Own::P("up", "p", "id")), ("g", Own::P("up", "c", "id"))];

fn tenant(sql: &str) -> Shard {
    let server = Postgres::shared().unwrap();
    Shard::new(&server, &format!("{TENANT} {sql}"), &[("p", Own::T("site"))])
}

fn family(sql: &str) -> Shard {
    Shard::new(&Postgres::shared().unwrap(), &format!("{FAMILY} {sql}"), &OWNERS)
}

#[test]
fn changes_of_a_tenant_table_are_exact_at_every_commit() {
    let mut shard = tenant("INSERT INTO p VALUES ('a', 1, 'x'), ('b', 1, NULL), ('not an id', 1, '');");
    shard.run("INSERT INTO p VALUES ('a', 2, E'tab\\tline\\n\\\\')");
    shard.run("UPDATE p SET v = 'y' WHERE id = 1; DELETE FROM p WHERE site = 'b'");
    shard.run("UPDATE p SET id = 7 WHERE site = 'a' AND id = 2");
    shard.run("UPDATE p SET site = 'c' WHERE site = 'a' AND id = 1");
    shard.poll();
    assert_eq!(
        shard.log(),
        [
            "insert p a",
            "update p a",
            "update p b",
            "update p -",
            "delete p b",
            "update p a",
            "delete p a",
            "insert p c"
        ]
    );
    // Each commit, the heartbeat's commit, and the end.
    assert_eq!(shard.compared, 6);
    shard.check();
}

#[test]
fn nothing_new_gives_the_boundary_handed_in() {
    let mut shard = tenant("");
    shard.run("INSERT INTO p VALUES ('a', 1, 'x')").check();
    let before = shard.boundary;
    for _ in 0..3 {
        shard.poll();
    }
    assert_eq!(shard.boundary, before);
    shard.try_poll(true).unwrap();
    assert!(shard.boundary.position > before.position);
}

#[test]
fn children_follow_parents_that_the_log_does_not_touch() {
    let mut shard = family(
        "INSERT INTO p VALUES (1, 'a', ''), (2, 'b', ''); INSERT INTO c VALUES (1, 1, ''), (2, 2, ''), (3, NULL, '');
         INSERT INTO g VALUES (1, 1, ''), (2, 1, '')",
    );
    shard.run("INSERT INTO g VALUES (1, 2, 'new'), (2, 2, 'new'), (3, 1, 'of nobody')");
    shard.run("UPDATE c SET v = 'x'; UPDATE g SET v = 'y'; DELETE FROM g WHERE n = 1");
    shard.check();
    assert!(shard.events().is_empty());
}

#[test]
fn children_of_deleted_parents_are_told_by_the_log() {
    let mut shard = family(
        "INSERT INTO p SELECT n, 'site' || n % 3, '' FROM generate_series(1, 9) n;
         INSERT INTO c SELECT n, n % 9 + 1, '' FROM generate_series(1, 50) n;
         INSERT INTO g SELECT n, 1, '' FROM generate_series(1, 50) n",
    );
    shard.run("UPDATE g SET v = 'before'");
    shard.run("DELETE FROM p WHERE id < 5");
    shard.run("DELETE FROM c WHERE id % 2 = 0");
    shard.poll();
    assert!(shard.events().is_empty(), "{:?}", shard.events());
    shard.check();
}

#[test]
fn keys_cascade_to_children() {
    let mut shard = family(
        "INSERT INTO p VALUES (1, 'a', ''), (2, 'b', ''); INSERT INTO c VALUES (1, 1, ''), (2, 2, '');
         INSERT INTO g VALUES (1, 1, ''), (2, 1, '')",
    );
    shard.run("UPDATE p SET id = id + 10");
    shard.run("UPDATE c SET id = id + 10");
    shard.run("UPDATE g SET n = 5");
    shard.poll();
    assert!(shard.events().is_empty(), "{:?}", shard.events());
    shard.check();
}

#[test]
fn a_parent_that_changes_site_has_its_children_read_again() {
    let mut shard = family(
        "INSERT INTO p VALUES (1, 'a', ''), (2, 'b', ''); INSERT INTO c VALUES (1, 1, ''), (2, 2, '');
         INSERT INTO g VALUES (1, 1, ''), (2, 1, '')",
    );
    shard.run("UPDATE p SET site = 'z' WHERE id = 1; INSERT INTO c VALUES (5, 1, '')");
    shard.poll();
    assert_eq!(shard.events(), ["Reread c", "Reread g"]);
    shard.acknowledge();
    shard.run("UPDATE c SET up = 2 WHERE id = 1");
    shard.poll();
    assert_eq!(shard.events(), ["Reread g"]);
    shard.check();
    shard.run("UPDATE c SET up = 2 WHERE id = 2; UPDATE g SET v = 'same site'");
    shard.poll();
    assert!(shard.events().is_empty());
    shard.check();
}

#[test]
fn a_key_that_passes_to_another_site_is_not_mistaken() {
    let mut shard = family("INSERT INTO p VALUES (1, 'a', ''); INSERT INTO c VALUES (1, 1, '')");
    shard.run("UPDATE c SET v = 'of a'");
    shard.run("DELETE FROM p");
    shard.run("INSERT INTO p VALUES (1, 'b', ''); INSERT INTO c VALUES (1, 1, 'of b')");
    shard.check();
}

#[test]
fn a_child_before_its_parent_in_one_transaction() {
    let mut shard = family("");
    shard.run(
        "SET CONSTRAINTS ALL DEFERRED; INSERT INTO c VALUES (1, 1, ''); INSERT INTO p VALUES (1, 'a', '')",
    );
    shard.poll();
    assert_eq!(shard.log(), ["insert c a", "insert p a"]);
    shard.check();
}

#[test]
fn whole_old_rows_serve_as_identity() {
    let mut shard = Shard::new(
        &Postgres::shared().unwrap(),
        "CREATE TABLE p (id int PRIMARY KEY, site text, big text); ALTER TABLE p REPLICA IDENTITY FULL;
         ALTER TABLE p ALTER big SET STORAGE EXTERNAL;
         INSERT INTO p VALUES (1, 'a', repeat('x', 20000)), (2, NULL, NULL)",
        &[("p", Own::T("site"))],
    );
    shard.run("UPDATE p SET site = 'b' WHERE id = 1");
    shard.run("UPDATE p SET site = 'c' WHERE id = 2; DELETE FROM p WHERE id = 1");
    shard.poll();
    assert_eq!(shard.log(), ["delete p a", "insert p b", "delete p -", "insert p c", "delete p b"]);
    shard.check();
}

#[test]
fn large_values_that_did_not_change_stay() {
    let mut shard = tenant(
        "ALTER TABLE p ALTER v SET STORAGE EXTERNAL; INSERT INTO p VALUES ('a', 1, repeat('x', 20000))",
    );
    shard.run("ALTER TABLE p ADD COLUMN n int");
    shard.check();
    shard.run("UPDATE p SET n = 1");
    shard.run("UPDATE p SET id = 2");
    shard.poll();
    assert_eq!(shard.log(), ["update p a", "update p a"]);
    shard.check();
}

#[test]
fn a_large_value_of_a_row_that_changes_site_is_read_again() {
    let mut shard = tenant(
        "ALTER TABLE p ALTER v SET STORAGE EXTERNAL; INSERT INTO p VALUES ('a', 1, repeat('x', 20000))",
    );
    shard.run("UPDATE p SET site = 'b'");
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"]);
    shard.check();
}

#[test]
fn truncation_is_an_event_at_its_place() {
    let mut shard = family(
        "INSERT INTO p VALUES (1, 'a', ''), (2, 'b', ''); INSERT INTO c VALUES (1, 1, ''), (2, 2, '');
         INSERT INTO g VALUES (1, 1, ''), (2, 1, '')",
    );
    shard.run("INSERT INTO g VALUES (1, 7, '')");
    shard.run("INSERT INTO g VALUES (2, 7, 'void'); TRUNCATE g; INSERT INTO g VALUES (2, 8, 'stays')");
    shard.run("INSERT INTO g VALUES (1, 9, '')");
    shard.poll();
    assert_eq!(shard.events(), ["Truncated g"]);
    shard.acknowledge();
    shard.run("TRUNCATE p CASCADE");
    shard.run("INSERT INTO p VALUES (1, 'a', '')");
    shard.poll();
    let mut events = shard.events();
    events.sort();
    assert_eq!(events, ["Truncated c", "Truncated g", "Truncated p"]);
    shard.check();
}

#[test]
fn altered_tables_are_read_again() {
    let mut shard = tenant("INSERT INTO p VALUES ('a', 1, 'x')");
    shard.run("INSERT INTO p VALUES ('a', 2, 'x')");
    shard.run("ALTER TABLE p ADD COLUMN n int DEFAULT 7");
    shard.run("INSERT INTO p VALUES ('a', 3, 'x', 8)");
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"]);
    shard.acknowledge();
    // Nothing in the log says that all rows changed.
    shard.run("ALTER TABLE p ALTER n TYPE int USING n + 1");
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"]);
    shard.restart();
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"], "until it is acknowledged");
    shard.check();
    shard.run("ALTER TABLE p DROP COLUMN v");
    shard.check();
    shard.run("CREATE INDEX p_n ON p (n)").run("UPDATE p SET n = 1");
    shard.poll();
    assert!(shard.events().is_empty(), "an index changes no rows");
}

#[test]
fn tables_come_and_go() {
    let mut shard = tenant("");
    shard.restart_with("later", &Own::T("site"));
    shard.run(
        "CREATE TABLE later (id int PRIMARY KEY, site text NOT NULL); INSERT INTO later VALUES (1, 'a')",
    );
    shard.run("CREATE TABLE nobodys (id int)");
    let polled = shard.poll();
    assert_eq!(polled.undeclared, ["nobodys", "later"]);
    assert!(
        shard.run_fails("UPDATE later SET site = 'b'").is_none(),
        "capture does not break an application"
    );
    shard.run("CREATE UNIQUE INDEX later_identity ON later (id, site)");
    shard.run("ALTER TABLE later REPLICA IDENTITY USING INDEX later_identity");
    shard.declared.insert("later".into(), postgres_capture_support::config(&Own::T("site")));
    shard.poll_unchecked();
    assert!(shard.events().contains(&"Reread later".to_owned()), "{:?}", shard.events());
    shard.check();
    shard.run("INSERT INTO later VALUES (2, 'c')").check();
    shard.run("DROP TABLE later");
    shard.poll();
    assert_eq!(shard.events(), ["Dropped later"]);
    shard.check();
}

#[test]
fn a_table_that_loses_its_identity_leaves_the_publication() {
    let mut shard = tenant("INSERT INTO p VALUES ('a', 1, 'x')");
    shard.conn.batch_execute("ALTER TABLE p DROP CONSTRAINT p_pkey").unwrap();
    let polled = shard.source.poll(shard.boundary, false, &mut shard.replay).unwrap();
    assert_eq!(polled.undeclared, ["p"]);
    assert_eq!(shard.run_fails("UPDATE p SET v = 'y'"), None);
}

#[test]
fn partitions_are_part_of_their_table() {
    let mut shard = Shard::new(
        &Postgres::shared().unwrap(),
        "CREATE TABLE p (site text, id int, v text, PRIMARY KEY (site, id)) PARTITION BY LIST (site);
         CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a'); CREATE TABLE p_rest PARTITION OF p DEFAULT;
         INSERT INTO p VALUES ('a', 1, ''), ('b', 1, '')",
        &[("p", Own::T("site"))],
    );
    shard.run("INSERT INTO p VALUES ('a', 2, ''), ('c', 1, ''); UPDATE p SET v = 'x'");
    shard.run("UPDATE p SET site = 'd' WHERE site = 'a' AND id = 1");
    shard.poll();
    assert!(shard.events().is_empty(), "{:?}", shard.events());
    shard.acknowledge();
    shard.run("TRUNCATE p_a");
    shard.poll();
    assert_eq!(shard.events(), ["Reread p"], "the log does not tell that a partition was emptied");
    shard.acknowledge();
    shard.run("ALTER TABLE p DETACH PARTITION p_rest");
    shard.poll();
    assert!(shard.events().contains(&"Reread p".to_owned()));
    shard.check();
}

#[test]
fn marks_are_kept() {
    let mut shard = tenant("");
    let mark = Mark { run: "r1".parse().unwrap(), step: "publish".into(), epoch: muster_types::Epoch(3) };
    let text = serde_json::to_string(&mark).unwrap();
    shard.run(&format!(
        "SELECT pg_logical_emit_message(true, 'muster.mark', '{text}'); INSERT INTO p VALUES ('a', 1, '')"
    ));
    shard.run("INSERT INTO p VALUES ('a', 2, '')");
    shard.poll();
    let marks: Vec<_> = shard.replay.delivered.iter().map(|delivered| delivered.mark.clone()).collect();
    assert_eq!(marks, [Some(mark), None]);
    shard.check();
}

#[test]
fn what_is_no_mark_does_not_stop_capture() {
    let mut shard = tenant("");
    shard.run(
        "SELECT pg_logical_emit_message(true, 'muster.mark', 'junk'); INSERT INTO p VALUES ('a', 1, '')",
    );
    shard.poll();
    let marks: Vec<_> = shard.replay.delivered.iter().map(|delivered| delivered.mark.clone()).collect();
    assert_eq!(marks, [None]);
    shard.check();
}

#[test]
fn old_rows_of_a_partition_are_not_taken_for_whole() {
    // The log says `whole` by the root's replica identity and carries what the partition's gives.
    let mut shard = Shard::new(
        &Postgres::shared().unwrap(),
        "CREATE TABLE p (site text, id int, v text, n int, PRIMARY KEY (site, id)) PARTITION BY LIST (site);
         CREATE TABLE p_a PARTITION OF p DEFAULT; ALTER TABLE p REPLICA IDENTITY FULL;
         ALTER TABLE p_a ALTER v SET STORAGE EXTERNAL; INSERT INTO p VALUES ('a', 1, repeat('v', 9000), 7)",
        &[("p", Own::T("site"))],
    );
    shard.run("UPDATE p SET id = 2");
    shard.poll();
    shard.check();
    shard.run("DELETE FROM p");
    shard.poll();
    shard.check();
}

#[test]
fn a_replica_identity_that_was_another_for_a_time_is_noticed() {
    let mut shard = family("INSERT INTO p VALUES (1, 'a', ''), (2, 'a', '')");
    shard.run("ALTER TABLE p REPLICA IDENTITY DEFAULT");
    shard.run("DELETE FROM p WHERE id = 1");
    shard.run("ALTER TABLE p REPLICA IDENTITY USING INDEX p_identity");
    shard.poll();
    assert!(shard.events().contains(&"Reread p".to_owned()), "{:?}", shard.events());
    shard.check();
}

#[test]
fn odd_names_and_generated_columns() {
    let mut shard = Shard::new(
        &Postgres::shared().unwrap(),
        "CREATE TABLE \"Straße \"\"x\" (\"Id\" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \"tenant id\" uuid NOT NULL, \
         twice int GENERATED ALWAYS AS (\"Id\" * 2) STORED, v char(9));
         CREATE UNIQUE INDEX u ON \"Straße \"\"x\" (\"Id\", \"tenant id\");
         ALTER TABLE \"Straße \"\"x\" REPLICA IDENTITY USING INDEX u",
        &[("Straße \"x", Own::T("tenant id"))],
    );
    let insert = "INSERT INTO \"Straße \"\"x\" (\"tenant id\", v) VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ä')";
    shard
        .run(insert)
        .run(insert)
        .run("UPDATE \"Straße \"\"x\" SET v = NULL")
        .run("DELETE FROM \"Straße \"\"x\"");
    shard.check();
}

#[test]
fn rolled_back_and_empty_transactions_leave_nothing() {
    let mut shard = tenant("INSERT INTO p VALUES ('a', 1, '')");
    shard.run("BEGIN; INSERT INTO p VALUES ('a', 2, ''); ROLLBACK");
    shard.run("BEGIN; INSERT INTO p VALUES ('a', 3, ''); SAVEPOINT s; DELETE FROM p; ROLLBACK TO s; COMMIT");
    shard.run("CREATE TEMP TABLE t (id int); INSERT INTO t VALUES (1); UPDATE p SET v = 'x' WHERE false");
    shard.poll();
    assert_eq!(shard.log(), ["insert p a"]);
    shard.check();
}

#[test]
fn a_poll_does_not_wait_for_an_open_transaction() {
    let mut shard = tenant("");
    let mut other = session(&shard.url);
    other.batch_execute("BEGIN; INSERT INTO p VALUES ('late', 1, '')").unwrap();
    shard.run("INSERT INTO p VALUES ('a', 1, '')");
    shard.poll();
    assert_eq!(shard.log(), ["insert p a"]);
    shard.acknowledge();
    other.batch_execute("COMMIT").unwrap();
    shard.keep_truth();
    shard.poll();
    assert_eq!(shard.log(), ["insert p late"]);
    shard.check();
}

#[test]
fn a_large_transaction_comes_in_parts() {
    let mut shard = family("INSERT INTO p SELECT n, 'site' || n % 7, '' FROM generate_series(1, 50) n");
    // More than what is kept in memory, of parents that the log does not touch.
    shard.run("INSERT INTO c SELECT n, n % 50 + 1, repeat('x', 900) FROM generate_series(1, 100000) n");
    shard.poll_in_parts();
    assert!(shard.events().is_empty(), "{:?}", shard.events());
    shard.check();
}
