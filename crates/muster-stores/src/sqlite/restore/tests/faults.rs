//! Crashes and stray writes.

use muster_engine::driver::{ErrorClass, StoreDriver};
use muster_types::Epoch;

use super::super::Fault;
use super::fixture::Fixture;

#[tokio::test]
async fn a_crash_before_the_commit_leaves_nothing_and_can_be_repeated() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let (before, traced) = (fixture.everything(), traces(&fixture));
    let whole = fixture.driver.clone();
    let fixture = fixture.with_fault(Fault::Abandon);
    let error = fixture.restore(&work, &rows).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Ambiguous);
    assert_eq!(fixture.everything(), before);
    assert_eq!(whole.fence(&work.run, work.epoch).await.unwrap(), []);
    assert_eq!(traces(&fixture), traced);
    let staged = whole.digest_staged(&work).await.unwrap();
    assert_eq!(whole.publish(&work, &staged).await.unwrap().rows, 2);
    assert_eq!(fixture.rows(&work), rows);
}

/// Changes and marks in the shard's log.
fn traces(fixture: &Fixture) -> (i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM _muster_change), (SELECT count(*) FROM _muster_mark)";
    fixture.app().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

#[tokio::test]
async fn stray_writes_are_seen_and_undone() {
    for (sql, seen) in [
        ("UPDATE users SET email = 'stray' WHERE id = 2000", "a row of table `users` was updated"),
        ("DELETE FROM users WHERE id = 2001", "1 rows were deleted from `users` instead of 0"),
        ("INSERT INTO users VALUES (9, 'b', NULL, NULL)", "3 rows were inserted into `users` instead of 2"),
        (
            "INSERT OR REPLACE INTO users VALUES (2001, 'b', 'x', NULL)",
            "3 rows were inserted into `users` instead of 2",
        ),
        ("DELETE FROM users WHERE id = 3000", "table `projects`, which is not the store's, was changed"),
        ("DELETE FROM comments WHERE id = 'b-1'", "table `comments`, which is not the store's, was changed"),
        ("INSERT INTO audit(what) VALUES ('stray')", "1 rows were inserted into `audit` instead of 0"),
        ("DELETE FROM settings", "table `settings`, which is not the store's, was changed"),
    ] {
        let fixture = Fixture::new().with_fault(Fault::StrayWrite { sql: sql.into() });
        let work = fixture.work("r1", 1, "site:a/identity");
        let rows = fixture.rows(&work);
        fixture.delete("a");
        let before = fixture.everything();
        let error = fixture.restore(&work, &rows).await.unwrap_err();
        assert!(error.message.contains("stray write") && error.message.contains(seen), "{sql}: {error}");
        assert_eq!(error.class, ErrorClass::Permanent);
        assert_eq!(fixture.everything(), before, "{sql}");
    }
}

#[tokio::test]
async fn staged_rows_that_are_other_rows_than_expected_are_seen() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let staged = fixture.prepare(&work, &rows).await.unwrap();
    let file = fixture.dir.path().join("shard.db.muster/r1/a.identity.db");
    rusqlite::Connection::open(file)
        .unwrap()
        .execute_batch("UPDATE users SET email = 'x' WHERE id = 1000")
        .unwrap();
    let error = fixture.driver.publish(&work, &staged).await.unwrap_err();
    assert!(error.message.contains("are other rows than those meant"), "{error}");
    assert_eq!(fixture.rows(&work), []);
}

#[tokio::test]
async fn a_torn_staging_file_is_an_error_of_its_own() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let staged = fixture.prepare(&work, &rows).await.unwrap();
    let file = fixture.dir.path().join("shard.db.muster/r1/a.identity.db");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let torn = fixture.driver.digest_staged(&work).await;
    assert!(torn.as_ref().is_err() || torn.as_ref().is_ok_and(|found| found != &staged), "{torn:?}");
    assert!(fixture.driver.publish(&work, &staged).await.is_err());
    std::fs::remove_file(&file).unwrap();
    let error = fixture.driver.publish(&work, &staged).await.unwrap_err();
    assert!(error.message.contains("is gone"), "{error}");
    // The connection that met all this is of use again.
    fixture.restore(&work, &rows).await.unwrap();
    assert_eq!(fixture.rows(&work), rows);
}

#[tokio::test]
async fn staging_that_a_killed_engine_left_goes_with_the_next_epoch() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.prepare(&work, &rows).await.unwrap();
    let folder = fixture.dir.path().join("shard.db.muster/r1");
    let staged = std::fs::read_dir(&folder).unwrap().count();
    std::fs::write(folder.join("a.identity.part-1-0"), "torn").unwrap();
    fixture.driver.fence(&work.run, Epoch(2)).await.unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), staged, "what is whole stays");
    fixture.driver.release(&work.run, Epoch(2), std::slice::from_ref(&work.store)).await.unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn an_engine_that_lost_the_run_leaves_nothing_staged() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    fixture.driver.fence(&work.run, Epoch(2)).await.unwrap();
    let error = fixture.stage(&work, &fixture.rows(&work)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Fenced);
    assert!(!fixture.dir.path().join("shard.db.muster").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_back_takes_no_folder_from_under_a_stage() {
    let fixture = Fixture::new();
    let (one, other) = (fixture.work("r1", 1, "site:a/identity"), fixture.work("r1", 1, "site:b/identity"));
    let rows = fixture.rows(&one);
    fixture.driver.fence(&one.run, one.epoch).await.unwrap();
    for _ in 0..200 {
        let release = fixture.driver.release(&other.run, other.epoch, std::slice::from_ref(&other.store));
        let (staged, released) = tokio::join!(fixture.stage(&one, &rows), release);
        staged.unwrap();
        released.unwrap();
        fixture.driver.release(&one.run, one.epoch, std::slice::from_ref(&one.store)).await.unwrap();
    }
}
