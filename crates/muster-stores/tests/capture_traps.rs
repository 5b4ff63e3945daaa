//! SQLite's ways of changing rows that a trigger could miss, each by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets an error fails"
)]

mod support;

use muster_stores::capture::CaptureSource;
use muster_stores::sqlite::capture::SqliteSource;
use muster_types::segment::TableEventKind;
use support::{Own, Shard, writer};

const FAMILY: &str = "
CREATE TABLE issues(id INTEGER PRIMARY KEY, site TEXT NOT NULL, title TEXT, code TEXT UNIQUE);
CREATE TABLE comments(id INTEGER PRIMARY KEY, issue INTEGER REFERENCES issues(id) ON DELETE CASCADE ON UPDATE CASCADE
  DEFERRABLE INITIALLY DEFERRED, body TEXT);
CREATE TABLE votes(comment INTEGER NOT NULL REFERENCES comments(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
  who TEXT NOT NULL, PRIMARY KEY (comment, who)) WITHOUT ROWID;
CREATE INDEX comments_issue ON comments(issue);
INSERT INTO issues VALUES (1, 'a', 'one', 'A-1'), (2, 'b', 'two', 'B-1'), (3, 'a', 'three', 'A-2');
INSERT INTO comments VALUES (10, 1, 'x'), (11, 1, 'y'), (20, 2, 'z');
INSERT INTO votes VALUES (10, 'u'), (11, 'v'), (20, 'w');
";

fn family() -> Shard {
    Shard::new(
        FAMILY,
        &[
            ("issues", Own::T("site")),
            ("comments", Own::P("issue", "issues", "id")),
            ("votes", Own::P("comment", "comments", "id")),
        ],
    )
}

/// The same under both settings of `recursive_triggers`.
fn both(sql: &str, tables: &[(&str, Own)], work: impl Fn(&mut Shard)) {
    for recursive in [false, true] {
        let mut shard = Shard::new(sql, tables);
        shard.conn = writer(&shard.path, recursive);
        work(&mut shard);
    }
}

const UNIQUE: &str = "
CREATE TABLE t(id INTEGER PRIMARY KEY, site TEXT, email TEXT UNIQUE, a INT, b INT, n INT, UNIQUE(a, b));
INSERT INTO t VALUES (1, 's', 'x@', 1, 1, 0), (2, 's', 'y@', 2, 2, 0), (3, 'r', 'z@', 3, 3, 0);
";

#[test]
fn or_replace_through_secondary_unique_indexes() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard.run("INSERT OR REPLACE INTO t VALUES (9, 's', 'y@', 1, 1, 5)").check();
        shard.run("REPLACE INTO t(site, email, a, b) VALUES ('r', 'z@', 7, 7)").check();
        shard.run("REPLACE INTO t(site, email, a, b) VALUES ('r', 'z@', 7, 7)").check();
        shard.run("REPLACE INTO t VALUES (9, 'q', 'z@', 7, 7, 7)").check();
    });
}

#[test]
fn or_replace_of_the_primary_key_logs_the_old_image() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard.run("REPLACE INTO t VALUES (1, 'r', 'n@', 8, 8, 1)");
        shard.poll();
        assert_eq!(shard.log(), ["delete t s", "insert t r"]);
    });
}

#[test]
fn rowid_minus_one_is_not_taken_for_a_new_one() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard.run("INSERT INTO t VALUES (-1, 's', 'm@', 9, 9, 9)").check();
        shard.run("REPLACE INTO t(site, email) VALUES ('s', 'o@'), ('s', 'm@')").check();
        shard.run("REPLACE INTO t VALUES (-1, 's', 'o@', 9, 9, 9)").check();
        shard.run("REPLACE INTO t VALUES (-1, 's', 'p@', 9, 9, 9)").check();
    });
}

#[test]
fn upsert_and_ignore_leave_nothing_behind() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard
            .run("INSERT INTO t VALUES (5, 's', 'x@', 5, 5, 1) ON CONFLICT(email) DO UPDATE SET n = n + 1")
            .check();
        shard.run("INSERT OR IGNORE INTO t VALUES (6, 's', 'x@', 6, 6, 1), (1, 's', 'k@', 6, 7, 1)").check();
        shard.run(
            "INSERT OR IGNORE INTO t VALUES (1, 's', 'x@', 6, 6, 1); UPDATE t SET n = 4 WHERE id = 1;
             INSERT OR IGNORE INTO t(site, email) VALUES ('s', 'x@');
             DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 's', 'x@', 1, 1, 0);
             DELETE FROM t WHERE id = 1; INSERT INTO t(site, email) VALUES ('s', 'x@')",
        );
        shard.check();
        shard.run("UPDATE OR IGNORE t SET email = 'y@' WHERE id <> 2; UPDATE OR IGNORE t SET id = 2; UPDATE t SET n = 1");
        shard.check();
        let notes: i64 =
            shard.conn.query_row("SELECT count(*) FROM _muster_evict_1", [], |row| row.get(0)).unwrap();
        assert_eq!(notes, 0, "acknowledging takes notes away");
    });
}

#[test]
fn notes_of_an_ignored_row_are_not_taken_twice() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard.run(
            "INSERT OR IGNORE INTO t VALUES (9, 's', 'x@', 6, 6, 1); REPLACE INTO t VALUES (9, 's', 'x@', 6, 6, 1);",
        );
        shard.poll();
        assert_eq!(shard.log(), ["delete t s", "insert t s"]);
    });
}

#[test]
fn a_row_changed_by_another_trigger_just_before_it_is_replaced() {
    let sql = format!(
        "{UNIQUE} CREATE TRIGGER app BEFORE INSERT ON t BEGIN UPDATE t SET n = n + 100 WHERE email = NEW.email; END;"
    );
    both(&sql, &[("t", Own::T("site"))], |shard| {
        shard.run("REPLACE INTO t VALUES (9, 's', 'x@', 6, 6, 1)");
        shard.poll();
        assert_eq!(shard.log(), ["update t s", "delete t s", "insert t s"]);
    });
}

#[test]
fn update_or_replace_evicts_too() {
    both(UNIQUE, &[("t", Own::T("site"))], |shard| {
        shard.run("UPDATE OR REPLACE t SET email = 'z@', a = 2, b = 2 WHERE id = 1").check();
        shard.run("INSERT INTO t VALUES (2, 's', 'y@', 4, 4, 0), (4, 's', 'w@', 5, 5, 0)").check();
        shard.run("UPDATE OR REPLACE t SET id = id + 1").check();
        shard.run("UPDATE OR REPLACE t SET rowid = 4 WHERE email = 'y@'").check();
        shard.run("UPDATE OR REPLACE t SET id = 77, email = 'same@'").check();
    });
}

#[test]
fn a_null_that_or_replace_turns_into_the_default() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, site TEXT, e TEXT NOT NULL DEFAULT 5 UNIQUE, f INT);
               INSERT INTO t(site, f) VALUES ('s', 1);";
    both(sql, &[("t", Own::T("site"))], |shard| {
        shard.run("REPLACE INTO t(site, e, f) VALUES ('r', NULL, 2)");
        shard.poll();
        assert_eq!(shard.log(), ["delete t s", "insert t r"]);
    });
}

#[test]
fn collations_and_partial_indexes_decide_what_is_replaced() {
    let sql = "CREATE TABLE t(name TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, site TEXT, tag TEXT, live INT) WITHOUT ROWID;
               CREATE UNIQUE INDEX by_tag ON t(tag COLLATE RTRIM) WHERE live = 1;
               INSERT INTO t VALUES ('Ab', 's', 'q', 1), ('c', 's', 'q', 0), ('d', 'r', 'w', 1);";
    both(sql, &[("t", Own::T("site"))], |shard| {
        shard.run("REPLACE INTO t VALUES ('aB', 's', 'q  ', 0)").check();
        shard.run("REPLACE INTO t VALUES ('e', 'r', 'w ', 1)").check();
        shard.run("UPDATE t SET tag = 'w' WHERE name = 'c'").check();
        shard.run("UPDATE OR REPLACE t SET live = 1 WHERE name = 'c'").check();
        shard.run("UPDATE t SET name = upper(name)").check();
    });
}

#[test]
fn cascades_are_attributed_to_the_parents_site() {
    for recursive in [false, true] {
        let mut shard = family();
        shard.conn = writer(&shard.path, recursive);
        shard.run("DELETE FROM issues WHERE id = 1");
        shard.poll();
        let log = shard.log();
        assert_eq!(log.len(), 5, "{log:?}");
        assert!(log.iter().all(|line| line.starts_with("delete") && line.ends_with(" a")), "{log:?}");
        shard.acknowledge();
        shard.run(
            "UPDATE issues SET id = 30 WHERE id = 2; REPLACE INTO issues VALUES (30, 'c', 'new', 'C-1')",
        );
        shard.check();
        let tombs: i64 = shard
            .conn
            .query_row(
                "SELECT count(*) FROM \"_muster_owner_issues(id)\" WHERE dead_seq IS NOT NULL",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(tombs, 0, "tombstones go when acknowledged");
    }
}

#[test]
fn on_update_cascade_keeps_children_in_their_site() {
    let mut shard = family();
    shard.run("UPDATE issues SET id = 100 WHERE id = 1");
    shard.poll();
    assert_eq!(shard.log().iter().filter(|line| line.starts_with("update")).count(), 3, "{:?}", shard.log());
    assert_eq!(shard.log().len(), 3, "{:?}", shard.log());
}

#[test]
fn truncating_delete_is_seen_row_by_row() {
    let mut shard = family();
    shard.run("DELETE FROM votes; DELETE FROM comments; DELETE FROM issues");
    assert_eq!(shard.poll().changes, 9);
}

#[test]
fn a_row_that_changes_site_takes_its_descendants_along() {
    let mut shard = family();
    shard.run("UPDATE issues SET site = 'b' WHERE id = 1");
    shard.poll();
    let log = shard.log();
    for line in ["delete issues a", "insert issues b", "delete comments a", "insert votes b"] {
        assert!(log.iter().any(|found| found == line), "{line} in {log:?}");
    }
    assert_eq!(log.len(), 10);
    shard.acknowledge();
    shard.run("UPDATE comments SET issue = 3 WHERE id = 20").check();
}

#[test]
fn moves_among_other_changes_of_one_poll() {
    let mut shard = family();
    shard.run(
        "INSERT INTO comments VALUES (12, 1, 'before'); UPDATE comments SET body = 'touched' WHERE id = 10;
         UPDATE issues SET site = 'c' WHERE id = 1;
         UPDATE comments SET body = 'again' WHERE id IN (10, 12); DELETE FROM comments WHERE id = 11;
         INSERT INTO comments VALUES (13, 1, 'after'), (11, 1, 'back'); UPDATE comments SET id = 14 WHERE id = 13;
         UPDATE comments SET id = 50 WHERE id = 12; INSERT INTO votes VALUES (50, 'p');
         UPDATE issues SET site = 'b' WHERE id = 1; UPDATE comments SET issue = 2 WHERE id = 10;
         UPDATE issues SET site = 'd'; DELETE FROM issues WHERE id = 3; UPDATE issues SET site = NULL WHERE 0;
         DELETE FROM comments WHERE id = 50",
    );
    shard.check();
}

#[test]
fn children_before_their_parents() {
    let mut shard = family();
    shard.run(
        "BEGIN; INSERT INTO votes VALUES (70, 'early'); INSERT INTO comments VALUES (70, 7, 'early');
         UPDATE comments SET body = 'x' WHERE id = 70; INSERT INTO issues VALUES (7, 'late', 't', 'L'); COMMIT",
    );
    shard.poll();
    let log = shard.log();
    assert!(log.iter().any(|line| line == "insert votes late"), "{log:?}");
    shard.acknowledge();
    shard.run("BEGIN; INSERT INTO votes VALUES (80, 'never'); DELETE FROM votes WHERE comment = 80; COMMIT");
    shard.check();
}

#[test]
fn rows_without_a_parent_keep_the_site_of_the_one_they_had() {
    let mut shard = family();
    shard.run("PRAGMA foreign_keys = OFF; DELETE FROM issues WHERE id = 1");
    // By the joins of the oracle they belong to nobody; deleted later they are still known to have been a's.
    shard.poll_unchecked();
    shard.acknowledge();
    shard.run("DELETE FROM votes WHERE comment IN (10, 11); DELETE FROM comments WHERE issue = 1");
    assert_eq!(
        shard.poll_unchecked(),
        ["delete votes a", "delete votes a", "delete comments a", "delete comments a"]
    );
}

#[test]
fn what_is_rolled_back_was_never_there() {
    let mut shard = family();
    shard.run(
        "BEGIN; DELETE FROM issues; ROLLBACK; BEGIN; SAVEPOINT s; REPLACE INTO issues VALUES (9, 'z', 't', 'A-1');
         ROLLBACK TO s; INSERT INTO issues VALUES (8, 'z', 't', 'Z'); COMMIT",
    );
    assert!(
        shard
            .conn
            .execute_batch("INSERT INTO issues VALUES (50, 'z', 't', 'q'), (1, 'z', 't', 'p')")
            .is_err()
    );
    assert!(
        shard
            .conn
            .execute_batch("INSERT OR FAIL INTO issues VALUES (51, 'z', 't', 'q'), (1, 'z', 't', 'p')")
            .is_err()
    );
    shard.check();
}

#[test]
fn a_statement_that_fails_in_the_middle_uses_up_its_positions() {
    let mut shard = family();
    let fail = "INSERT OR FAIL INTO issues VALUES (51, 'z', 't', 'q'), (1, 'z', 't', 'p')";
    assert!(shard.conn.execute_batch(fail).is_err());
    shard.check();
    shard.run("UPDATE issues SET title = 'next' WHERE id = 51");
    let before = shard.boundary.position;
    shard.poll();
    assert!(shard.replay.log.iter().all(|(.., change)| change.stamp.key.position > before));
}

#[test]
fn a_table_that_refers_to_itself_is_replaced() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, site TEXT, up INTEGER REFERENCES t(id) ON DELETE SET NULL, u TEXT UNIQUE,
                 w INTEGER REFERENCES t(id) ON DELETE CASCADE);
               INSERT INTO t VALUES (1, 's', NULL, 'a', NULL), (2, 's', 1, 'b', NULL), (3, 'r', 1, 'c', 2), (4, 'r', 3, 'd', 1);";
    both(sql, &[("t", Own::T("site"))], |shard| {
        shard.run("REPLACE INTO t VALUES (9, 's', NULL, 'b', NULL)").check();
        shard.run("REPLACE INTO t(site, u) VALUES ('q', 'a')").check();
        shard.run("UPDATE OR REPLACE t SET u = 'b'").check();
    });
}

#[test]
fn other_triggers_that_answer_a_change_are_logged_after_it() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, site TEXT, n INT);
               CREATE TRIGGER app AFTER INSERT ON t BEGIN UPDATE t SET n = n + 1 WHERE id = NEW.id; END;";
    both(sql, &[("t", Own::T("site"))], |shard| {
        shard.run("INSERT INTO t VALUES (1, 's', 1)").check();
        // This one fires before those of capture until the next poll makes them anew.
        shard.run(
            "CREATE TRIGGER late AFTER INSERT ON t BEGIN UPDATE t SET n = n + 10 WHERE id = NEW.id; END;
                   INSERT INTO t VALUES (2, 's', 1)",
        );
        shard.check();
        assert_eq!(shard.replay.events.len(), 1);
        shard.run("INSERT INTO t VALUES (3, 's', 1)").check();
        assert_eq!(shard.replay.events.len(), 1);
    });
}

#[test]
fn an_added_column_a_renamed_one_and_vacuum() {
    let mut shard = family();
    shard.run(
        "INSERT INTO issues VALUES (4, 'c', 't', 'C'); ALTER TABLE issues ADD COLUMN extra DEFAULT 7;
               UPDATE issues SET extra = 8 WHERE id = 4; UPDATE comments SET body = 'kept' WHERE id = 20",
    );
    shard.check();
    let events =
        |shard: &Shard| shard.replay.events.iter().map(|event| event.table.clone()).collect::<Vec<_>>();
    assert_eq!(events(&shard), ["comments", "issues", "votes"]);
    shard.run("VACUUM").check();
    assert_eq!(shard.replay.events.len(), 3, "VACUUM changes nothing");
    shard.run("ALTER TABLE comments RENAME COLUMN body TO text; UPDATE comments SET text = 'r'").check();
    shard
        .run(
            "ALTER TABLE votes RENAME TO v; ALTER TABLE v RENAME TO votes; DELETE FROM votes WHERE who = 'u'",
        )
        .check();
}

#[test]
fn the_usual_rebuild_works_and_is_noticed() {
    let mut shard = family();
    shard.run(
        "PRAGMA foreign_keys = OFF; BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, issue INTEGER, body TEXT, more INT);
         INSERT INTO n SELECT id, issue, body, 5 FROM comments; DROP TABLE comments; ALTER TABLE n RENAME TO comments; COMMIT;
         INSERT INTO comments VALUES (60, 2, 'unseen', 1)",
    );
    shard.check();
    shard.run("UPDATE issues SET site = 'm'; DELETE FROM comments WHERE id = 60").check();
    shard.run(
        "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, site TEXT); INSERT INTO n SELECT id, 'k' FROM issues; DROP TABLE issues;
         ALTER TABLE n RENAME TO issues; COMMIT; UPDATE issues SET site = 'l' WHERE id = 1",
    );
    shard.check();
}

#[test]
fn tables_that_go_come_back_and_appear() {
    let mut shard = family();
    shard.declared.insert("later".into(), support::config(&Own::T("s")));
    shard.source = SqliteSource::new(&shard.path, shard.declared.clone());
    shard.run("DROP TABLE votes").check();
    assert_eq!(shard.replay.events.last().unwrap().event, TableEventKind::Dropped);
    shard.run("CREATE TABLE later(id INTEGER PRIMARY KEY, s); INSERT INTO later VALUES (1, 'a')").check();
    assert_eq!(shard.replay.events.last().unwrap().event, TableEventKind::Reread);
    shard.run("CREATE TABLE votes(comment INTEGER NOT NULL, who TEXT NOT NULL, PRIMARY KEY(comment, who)); INSERT INTO votes VALUES (10, 'u')");
    shard.check();
    shard.run("CREATE TABLE stray(x)");
    assert_eq!(shard.poll().undeclared, ["stray"]);
    assert_eq!(shard.replay.events.last().unwrap().event, TableEventKind::Undeclared);
    let before = shard.replay.events.len();
    assert_eq!(shard.poll().undeclared, ["stray"], "an alarm stays");
    assert_eq!(shard.replay.events.len(), before, "an event is told once");
}

#[test]
fn a_reread_that_was_not_acknowledged_is_delivered_again() {
    let mut shard = family();
    shard.run("ALTER TABLE votes ADD COLUMN n; UPDATE votes SET n = 1");
    shard.poll();
    shard.source = SqliteSource::new(&shard.path, shard.declared.clone());
    shard.run("UPDATE votes SET n = 2");
    shard.poll();
    assert_eq!(shard.replay.events.len(), 2);
    shard.acknowledge();
    shard.run("UPDATE votes SET n = 3");
    shard.poll();
    assert_eq!(shard.replay.events.len(), 2);
}

#[test]
fn odd_names_generated_columns_and_whole_number_tenants() {
    let sql = "CREATE TABLE \"odd 'q\"\" t\"(\"a b\" TEXT NOT NULL, \"select\" INTEGER, g AS (\"a b\" || 'x') STORED UNIQUE, \"new\" INT,
                 h AS (\"new\" + 1), PRIMARY KEY(\"a b\"));
               CREATE TABLE \"kid (x)\"(id INTEGER PRIMARY KEY, \"up's\" TEXT REFERENCES \"odd 'q\"\" t\"(\"a b\"), old BLOB);
               CREATE TABLE loose(id INTEGER PRIMARY KEY, site);
               INSERT INTO \"odd 'q\"\" t\"(\"a b\", \"select\", \"new\") VALUES ('p', 12, 1), ('q', 3, 2);
               INSERT INTO \"kid (x)\" VALUES (1, 'p', x'00ff'), (2, 'q', 9e999);
               INSERT INTO loose VALUES (1, 4), (2, '4'), (3, 'not an id'), (4, NULL), (5, ''), (6, '..'), (7, 'é'), (8, 'ok');";
    let tables = [
        ("odd 'q\" t", Own::T("select")),
        ("kid (x)", Own::P("up's", "odd 'q\" t", "a b")),
        ("loose", Own::T("site")),
    ];
    both(sql, &tables, |shard| {
        shard.run("REPLACE INTO \"odd 'q\"\" t\"(\"a b\", \"select\", \"new\") VALUES ('q', 12, 9)").check();
        shard.run("UPDATE \"odd 'q\"\" t\" SET \"select\" = 99").check();
        shard.run("UPDATE loose SET site = site || '-x'; UPDATE loose SET site = 'a/b' WHERE id = 1").check();
        shard.run("UPDATE loose SET site = 5; UPDATE loose SET id = id + 100").check();
    });
}

#[test]
fn reference_tables_and_nullable_parents_belong_to_nobody() {
    let sql = "CREATE TABLE plans(id INTEGER PRIMARY KEY, name TEXT);
               CREATE TABLE p(id INTEGER PRIMARY KEY, site TEXT, code TEXT UNIQUE);
               CREATE TABLE c(id INTEGER PRIMARY KEY, code TEXT REFERENCES p(code) ON DELETE SET NULL ON UPDATE SET NULL);
               INSERT INTO plans VALUES (1, 'free'); INSERT INTO p VALUES (1, 's', 'k'), (2, 't', NULL);
               INSERT INTO c VALUES (1, 'k'), (2, NULL);";
    let tables = [("plans", Own::R), ("p", Own::T("site")), ("c", Own::P("code", "p", "code"))];
    both(sql, &tables, |shard| {
        shard.run("UPDATE plans SET name = 'paid'; UPDATE p SET code = 'm' WHERE id = 1").check();
        shard.run("UPDATE c SET code = 'm'; UPDATE p SET code = NULL, site = 'z' WHERE id = 1").check();
        shard.run("UPDATE p SET code = 'n'  WHERE id = 2; UPDATE c SET code = 'n'; DELETE FROM p").check();
    });
}

#[test]
fn two_polls_of_one_state_are_equal() {
    let mut shard = family();
    shard.run("UPDATE issues SET site = 'n' WHERE id = 1; DELETE FROM comments WHERE id = 20");
    let before = shard.boundary;
    let rows = shard.replay.rows.clone();
    shard.poll();
    let first = shard.log();
    shard.boundary = before;
    shard.replay.rows = rows;
    shard.source = SqliteSource::new(&shard.path, shard.declared.clone());
    shard.poll();
    assert_eq!(shard.log(), first);
}

#[test]
fn stamps_are_not_before_changes_from_a_clock_ahead() {
    let mut shard = family();
    shard
        .run("UPDATE issues SET title = 'x' WHERE id = 1; UPDATE _muster_change SET at_ms = at_ms + 3600000");
    let ahead = shard.poll().boundary.at;
    assert!(shard.replay.log.iter().all(|(.., change)| change.stamp.at <= ahead));
    assert!(shard.poll().boundary.at >= ahead, "stamps never go back");
}

fn refused(sql: &str, tables: &[(&str, Own)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.db");
    let conn = writer(&path, false);
    conn.execute_batch(sql).unwrap();
    let declared = tables.iter().map(|(name, own)| ((*name).to_owned(), support::config(own))).collect();
    SqliteSource::new(&path, declared).init().unwrap_err().to_string()
}

#[test]
fn init_refuses_what_cannot_be_captured_and_says_what_to_do() {
    let t = |own: Own| [("t", own)];
    let site = Own::T("site");
    let wal = |sql: &str| format!("PRAGMA journal_mode = WAL; {sql}");
    let cases = [
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, site)".to_owned(), site.clone(), "journal_mode = WAL"),
        (wal("CREATE TABLE t(site)"), site.clone(), "no primary key"),
        (wal("CREATE TABLE t(id TEXT PRIMARY KEY, site)"), site.clone(), "NOT NULL"),
        (
            wal("CREATE TABLE t(id INTEGER PRIMARY KEY, site); CREATE UNIQUE INDEX e ON t(lower(site))"),
            site.clone(),
            "expression",
        ),
        (
            wal("CREATE TABLE t(id INTEGER PRIMARY KEY, site); CREATE TABLE u(x)"),
            site.clone(),
            "does not declare: u",
        ),
        (wal("CREATE TABLE t(id INTEGER PRIMARY KEY)"), site.clone(), "owning column `site`"),
        (wal("CREATE TABLE t(id INTEGER PRIMARY KEY, p)"), Own::P("p", "q", "id"), "table `q`"),
        (wal("CREATE VIRTUAL TABLE t USING fts5(site)"), site, "virtual"),
    ];
    for (sql, own, wanted) in cases {
        let error = refused(&sql, &t(own));
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn capture_that_is_not_installed_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.db");
    let missing = SqliteSource::new(&path, Default::default()).state().unwrap_err();
    assert!(missing.to_string().contains("path in the topology"), "{missing}");
    std::fs::write(&path, "not a database, but long enough to be looked at".repeat(50)).unwrap();
    let odd = SqliteSource::new(&path, Default::default()).state().unwrap_err();
    assert!(odd.to_string().contains("SQLite file"), "{odd}");
    std::fs::remove_file(&path).unwrap();
    writer(&path, false).execute_batch("CREATE TABLE t(x)").unwrap();
    let plain = SqliteSource::new(&path, Default::default()).state().unwrap_err();
    assert!(plain.to_string().contains("muster capture init"), "{plain}");
}

#[test]
fn init_is_repeatable_and_remove_leaves_nothing() {
    let mut shard = family();
    let again = shard.source.init().unwrap();
    assert!(again.unchanged && again.tables == ["comments", "issues", "votes"], "{again:?}");
    shard.source.remove().unwrap();
    let left: i64 = shard
        .conn
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%muster%' OR sql LIKE '%muster%'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(left, 0);
    shard.run("REPLACE INTO issues VALUES (1, 'a', 't', 'B-1')");
    assert!(shard.source.state().is_err());
    shard.source.init().unwrap();
    shard.begin("0002-test");
    shard.run("DELETE FROM issues").check();
}

#[test]
fn a_busy_shard_is_a_passing_error() {
    let mut shard = family();
    let holder = writer(&shard.path, false);
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error =
        shard.source.acknowledge(shard.boundary.position, (1, muster_types::Digest::of(b""))).unwrap_err();
    assert!(error.transient, "{error}");
    shard.poll();
    holder.execute_batch("COMMIT").unwrap();
    shard.acknowledge();
}

#[test]
fn a_file_put_in_place_of_the_shard_is_noticed() {
    let mut shard = family();
    shard.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let copy = shard.folder.path().join("copy.db");
    shard.run(&format!("VACUUM INTO '{}'", copy.display()));
    shard.run("DELETE FROM votes").check();
    let last = shard.source.state().unwrap().last;
    shard.conn = rusqlite::Connection::open_in_memory().unwrap();
    std::fs::rename(&copy, &shard.path).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", shard.path.display()));
    }
    shard.conn = writer(&shard.path, false);
    assert!(shard.source.state().unwrap().last < last);
    let error = shard.source.poll(shard.boundary, false, &mut support::Replay::default()).unwrap_err();
    assert!(error.to_string().contains("rewound"), "{error}");
}
