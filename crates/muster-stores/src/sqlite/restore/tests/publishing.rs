//! What is published is what was staged, whoever writes beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_engine::driver::StoreDriver;
use muster_types::journal::Published;
use rusqlite::Connection;

use super::fixture::{Fixture, select, store};
use crate::sqlite::schema::read_table;

/// Restores both kinds of site a, whose rows were read before its deletion.
async fn restore_site(fixture: &Fixture) -> Vec<Published> {
    let works = [fixture.work("r1", 1, "site:a/identity"), fixture.work("r1", 1, "site:a/product:jira")];
    let rows: Vec<_> = works.iter().map(|work| fixture.rows(work)).collect();
    fixture.delete("a");
    let mut published = Vec::new();
    for (work, rows) in works.iter().zip(&rows) {
        published.push(fixture.restore(work, rows).await.unwrap());
    }
    published
}

#[tokio::test]
async fn a_deleted_site_is_back_as_it_was_and_nothing_else_changed() {
    let fixture = Fixture::new();
    let before = fixture.everything();
    let published = restore_site(&fixture).await;
    assert_eq!(fixture.everything(), before);
    assert_eq!(published.iter().map(|one| (one.rows, one.replaced)).collect::<Vec<_>>(), [(2, 0), (12, 0)]);
    let positions: Vec<_> = published.iter().map(|one| one.positions.map(|(a, b)| (a.0, b.0))).collect();
    assert_eq!(positions, [Some((15, 16)), Some((17, 28))], "behind the 14 deletions");
    let violations = fixture.app().prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap();
    assert!(!violations);
}

#[tokio::test]
async fn publishing_again_returns_the_record_and_does_nothing() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let first = fixture.restore(&work, &rows).await.unwrap();
    let live = fixture.everything();
    let again = fixture.driver.publish(&work, &Default::default()).await.unwrap();
    assert_eq!(Published { blocked_micros: 0, ..again.clone() }, Published { blocked_micros: 0, ..first });
    let records = fixture.driver.fence(&work.run, work.epoch).await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0].store, &records[0].published), (&work.store, &again));
    assert_eq!(fixture.everything(), live);
}

#[tokio::test]
async fn a_store_without_rows_is_published_as_such() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:z/product:jira");
    let before = fixture.everything();
    let published = fixture.restore(&work, &vec![]).await.unwrap();
    assert_eq!((published.rows, published.positions), (0, None));
    assert_eq!(fixture.everything(), before);
}

#[tokio::test]
async fn staging_again_replaces_what_an_earlier_attempt_left() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let twice: Vec<_> = rows.iter().chain(&rows).cloned().collect();
    fixture.prepare(&work, &twice).await.unwrap();
    fixture.restore(&work, &rows).await.unwrap();
    assert_eq!(fixture.rows(&work), rows);
    fixture.driver.release(&work.run, work.epoch, std::slice::from_ref(&work.store)).await.unwrap();
    assert!(!fixture.dir.path().join("shard.db.muster").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_lose_nothing_while_they_hammer() {
    let fixture = Fixture::new();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["b", "c"]
        .into_iter()
        .map(|site| {
            let (conn, stop) = (fixture.app(), Arc::clone(&stop));
            std::thread::spawn(move || hammer(&conn, site, &stop))
        })
        .collect();
    let published = restore_site(&fixture).await;
    stop.store(true, Ordering::Relaxed);
    let written: Vec<i64> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert_eq!(published.len(), 2);
    for (site, written) in ["b", "c"].into_iter().zip(written) {
        assert!(written > 0);
        let conn = fixture.app();
        let found: (i64, i64) = conn
            .query_row(
                "SELECT count(*), coalesce(max(v), 0) FROM settings WHERE site = ?1 AND k GLOB 'h*'",
                [site],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(found, (written, written), "site {site}");
    }
}

/// Writes rows of a site until told to stop, and says how many it wrote.
fn hammer(conn: &Connection, site: &str, stop: &AtomicBool) -> i64 {
    let mut written = 0;
    while written == 0 || !stop.load(Ordering::Relaxed) {
        written += 1;
        conn.execute(
            "INSERT INTO settings VALUES (?1, 'h' || ?2, ?2, NULL)",
            rusqlite::params![site, written],
        )
        .unwrap();
    }
    written
}

#[tokio::test]
async fn columns_added_since_get_their_defaults_in_rows_and_log() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    fixture
        .app()
        .execute_batch(
            "ALTER TABLE users ADD COLUMN lang TEXT NOT NULL DEFAULT 7; ALTER TABLE users ADD COLUMN x",
        )
        .unwrap();
    fixture.install();
    let live = fixture.driver.probe(&[fixture_probe(&work)]).await.unwrap();
    assert_eq!(
        live[0].differences,
        [
            "table `users`: column `lang` is new; restored rows get 7",
            "table `users`: column `x` is new; restored rows get NULL"
        ]
    );
    let staged = fixture.prepare(&work, &rows).await.unwrap();
    let published = fixture.driver.publish(&work, &staged).await.unwrap();
    assert_eq!(fixture.driver.digest_staged(&work).await.unwrap(), staged);
    let conn = fixture.app();
    let def = read_table(&conn, "users").unwrap().unwrap();
    let restored = select(&conn, &def, "site = 'a'", &[]);
    let shown: Vec<String> = restored.iter().map(|row| format!("{row:?}")).collect();
    assert!(shown.iter().all(|row| row.contains(r#""t:7", "n:""#)), "{shown:?}");
    let (first, last) = published.positions.unwrap();
    let (_, changes) =
        fixture.driver.logged_changes(muster_types::Position(first.0 - 1), last).await.unwrap();
    let logged: Vec<_> = changes
        .into_iter()
        .map(|change| match change.change.op {
            muster_rows::Op::Insert { new } => new,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(logged, restored);
}

fn fixture_probe(work: &muster_engine::driver::StoreWork) -> muster_engine::driver::StoreProbe {
    muster_engine::driver::StoreProbe { store: work.store.clone(), tables: Arc::clone(&work.tables) }
}

#[tokio::test]
async fn overwriting_saves_and_replaces_the_sites_rows_and_leaves_other_kinds_alone() {
    let fixture = Fixture::new();
    let then = fixture.everything();
    let mut work = fixture.work("r1", 1, "site:a/identity");
    work.overwrite = true;
    let rows = fixture.rows(&work);
    // The projects of the site refer to its users with ON DELETE SET NULL.
    fixture
        .app()
        .execute_batch("UPDATE users SET email = 'other' WHERE id = 1000; DELETE FROM users WHERE id = 1001")
        .unwrap();
    let published = fixture.restore(&work, &rows).await.unwrap();
    assert_eq!((published.rows, published.replaced), (2, 1));
    assert_eq!(fixture.everything(), then);
    let saved: String = fixture
        .app()
        .query_row("SELECT run || site || kind || tbl || v0 || v1 || v2 FROM _muster_replaced", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(saved, "r1aidentityusers1000aother");
}

#[tokio::test]
async fn owned_rows_are_replaced_with_their_parents() {
    let fixture = Fixture::new();
    let then = fixture.everything();
    let mut work = fixture.work("r1", 1, "site:b/product:jira");
    work.overwrite = true;
    let rows = fixture.rows(&work);
    fixture
        .app()
        .execute_batch("UPDATE comments SET body = 1 WHERE id = 'b-1'; DELETE FROM settings WHERE site = 'b'")
        .unwrap();
    let published = fixture.restore(&work, &rows).await.unwrap();
    assert_eq!((published.rows, published.replaced), (12, 6));
    assert_eq!(fixture.everything(), then);
    let (first, last) = published.positions.unwrap();
    let (_, changes) =
        fixture.driver.logged_changes(muster_types::Position(first.0 - 1), last).await.unwrap();
    let deleted =
        changes.iter().filter(|one| matches!(one.change.op, muster_rows::Op::Delete { .. })).count();
    assert_eq!((deleted, changes.len()), (6, 18));
    assert!(
        changes
            .iter()
            .all(|one| one.site.as_ref() == Some(&work.store.site) && one.mark == Some(work.mark()))
    );
    assert_eq!(store("site:b/product:jira"), work.store);
}
