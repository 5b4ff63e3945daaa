//! What a publish refuses, and how it says so.

use muster_engine::driver::{ClaimRefusal, DriverError, ErrorClass, StoreDriver};
use muster_types::{Epoch, RunId};

use super::fixture::{Fixture, site, store};

/// The error of a restore that must change nothing.
async fn refused(
    fixture: &Fixture,
    work: &muster_engine::driver::StoreWork,
    rows: &super::fixture::Rows,
) -> DriverError {
    let before = fixture.everything();
    let error = fixture.restore(work, rows).await.unwrap_err();
    assert_eq!(fixture.everything(), before, "a refused publish changed something");
    error
}

#[tokio::test]
async fn a_lower_epoch_is_fenced_everywhere() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let staged = fixture.prepare(&work, &rows).await.unwrap();
    fixture.driver.fence(&work.run, Epoch(2)).await.unwrap();
    let class = |error: DriverError| error.class;
    assert_eq!(class(fixture.driver.publish(&work, &staged).await.unwrap_err()), ErrorClass::Fenced);
    assert_eq!(class(fixture.driver.fence(&work.run, Epoch(1)).await.unwrap_err()), ErrorClass::Fenced);
    let claim = fixture.driver.claim(&work.run, Epoch(1), std::slice::from_ref(&work.store)).await;
    assert_eq!(class(claim.unwrap_err()), ErrorClass::Fenced);
    assert_eq!(fixture.rows(&work), []);
}

#[tokio::test]
async fn a_store_is_claimed_by_one_open_run() {
    let fixture = Fixture::new();
    let (one, two) = (RunId::new("r1").unwrap(), RunId::new("r2").unwrap());
    let (a, b) = (store("site:a/identity"), store("site:b/identity"));
    fixture.driver.fence(&one, Epoch(1)).await.unwrap();
    fixture.driver.fence(&two, Epoch(1)).await.unwrap();
    assert_eq!(fixture.driver.claim(&one, Epoch(1), std::slice::from_ref(&a)).await.unwrap(), []);
    assert_eq!(fixture.driver.claim(&one, Epoch(1), std::slice::from_ref(&a)).await.unwrap(), []);
    let refused = fixture.driver.claim(&two, Epoch(1), &[a.clone(), b.clone()]).await.unwrap();
    assert_eq!(refused, [ClaimRefusal { store: a.clone(), held_by: one.clone() }]);
    let live = fixture
        .driver
        .probe(&[fixture.probe_of("site:a/identity"), fixture.probe_of("site:b/identity")])
        .await
        .unwrap();
    assert_eq!(
        live.iter().map(|one| one.claimed_by.as_deref()).collect::<Vec<_>>(),
        [Some("r1"), Some("r2")]
    );
    // Only the holder's release counts.
    fixture.driver.release(&two, Epoch(1), std::slice::from_ref(&a)).await.unwrap();
    assert_eq!(fixture.driver.claim(&two, Epoch(1), std::slice::from_ref(&a)).await.unwrap().len(), 1);
    // An engine that lost the run does not give away what its successor holds.
    fixture.driver.fence(&one, Epoch(2)).await.unwrap();
    let late = fixture.driver.release(&one, Epoch(1), std::slice::from_ref(&a)).await;
    assert_eq!(late.unwrap_err().class, ErrorClass::Fenced);
    assert_eq!(fixture.driver.claim(&two, Epoch(1), std::slice::from_ref(&a)).await.unwrap().len(), 1);
    fixture.driver.release(&one, Epoch(2), std::slice::from_ref(&a)).await.unwrap();
    assert_eq!(fixture.driver.claim(&two, Epoch(1), std::slice::from_ref(&a)).await.unwrap(), []);
}

#[tokio::test]
async fn without_its_claim_nothing_is_published() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let staged = fixture.prepare(&work, &rows).await.unwrap();
    fixture.app().execute_batch("UPDATE _muster_claim SET run = 'r2'").unwrap();
    let error = fixture.driver.publish(&work, &staged).await.unwrap_err();
    assert!(error.message.contains("claimed by run r2"), "{error}");
    fixture.app().execute_batch("DELETE FROM _muster_claim").unwrap();
    let error = fixture.driver.publish(&work, &staged).await.unwrap_err();
    assert!(error.message.contains("is not claimed by run r1"), "{error}");
    assert_eq!(fixture.rows(&work), []);
}

#[tokio::test]
async fn a_live_site_is_not_touched() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/product:jira");
    let rows = fixture.rows(&work);
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.contains("site:a/product:jira is alive: table `projects`"), "{error}");
    assert_eq!(error.class, ErrorClass::Permanent);
    // A single row in any of the kind's tables is life.
    fixture.delete("a");
    fixture.app().execute_batch("INSERT INTO settings VALUES ('a', 'back', 1, 1)").unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.contains("is alive: table `settings`"), "{error}");
}

#[tokio::test]
async fn a_key_held_by_another_site_is_named_with_its_holder() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    fixture.app().execute_batch("UPDATE users SET email = 'A@X' WHERE id = 2000").unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(
        error.message.ends_with("site:a/identity: key (email) = ('A@X') of table `users` is held by site:b"),
        "{error}"
    );
    fixture.app().execute_batch("UPDATE users SET email = 'b', id = 1001 WHERE id = 2001").unwrap();
    fixture.app().execute_batch("UPDATE users SET email = 'c' WHERE id = 2000").unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.ends_with("key (id) = (1001) of table `users` is held by site:b"), "{error}");
}

#[tokio::test]
async fn an_owned_rows_key_names_the_site_of_its_parent() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/product:jira");
    let (identity, rows) = (fixture.work("r1", 1, "site:a/identity"), fixture.rows(&work));
    let users = fixture.rows(&identity);
    fixture.delete("a");
    fixture.restore(&identity, &users).await.unwrap();
    fixture.app().execute_batch("INSERT INTO comments VALUES ('a-2', 3001, NULL)").unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.ends_with("key (id) = ('a-2') of table `comments` is held by site:c"), "{error}");
    assert_eq!(site("c").as_str(), "c");
}

#[tokio::test]
async fn a_tables_own_conflict_clause_cannot_remove_a_neighbours_row() {
    let fixture = Fixture::new();
    fixture
        .app()
        .execute_batch(
            "ALTER TABLE settings RENAME TO old;
             CREATE TABLE settings(site TEXT NOT NULL, k NOT NULL, v, n INTEGER, PRIMARY KEY(k) ON CONFLICT REPLACE);
             INSERT INTO settings SELECT site, site || k, v, n FROM old WHERE typeof(k) <> 'blob'; DROP TABLE old;",
        )
        .unwrap();
    fixture.install();
    let work = fixture.work("r1", 1, "site:a/product:jira");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    fixture
        .app()
        .execute_batch("PRAGMA foreign_keys=OFF; UPDATE settings SET k = 'a1' WHERE k = 'b1'")
        .unwrap();
    let identity = fixture.work("r1", 1, "site:a/identity");
    let users = rows_of_users(&fixture);
    fixture.restore(&identity, &users).await.unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.ends_with("key (k) = ('a1') of table `settings` is held by site:b"), "{error}");
}

fn rows_of_users(fixture: &Fixture) -> super::fixture::Rows {
    let sql = "PRAGMA foreign_keys=OFF; INSERT INTO users VALUES (1000, 'a', 'a@x', NULL)";
    fixture.app().execute_batch(sql).unwrap();
    let rows = fixture.rows(&fixture.work("r1", 1, "site:a/identity"));
    fixture.app().execute_batch("PRAGMA foreign_keys=OFF; DELETE FROM users WHERE site = 'a'").unwrap();
    rows
}

#[tokio::test]
async fn a_missing_parent_is_named() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/product:jira");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let error = refused(&fixture, &work, &rows).await;
    assert!(
        error.message.ends_with(
            "a row of table `projects` refers by (lead) to (1000) of table `users`, which is not there"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn overwriting_refuses_to_leave_rows_behind() {
    let fixture = Fixture::new();
    let mut work = fixture.work("r1", 1, "site:a/identity");
    work.overwrite = true;
    let rows: Vec<_> = fixture.rows(&work).into_iter().skip(1).take(1).collect();
    let error = refused(&fixture, &work, &rows).await;
    // The remaining user's boss is gone, and so is the lead of a project.
    assert!(error.message.contains("`users`"), "{error}");
}

#[tokio::test]
async fn definitions_that_changed_since_the_plan_are_refused() {
    let fixture = Fixture::new();
    let mut work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    let planned = fixture.driver.probe(&[fixture.probe_of("site:a/identity")]).await.unwrap();
    work.definitions = planned[0].definitions;
    fixture.app().execute_batch("CREATE INDEX users_boss ON users(boss)").unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert_eq!(error.class, ErrorClass::Transient, "capture does not know it yet: {error}");
    fixture.install();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.contains("changed after the plan was made"), "{error}");
}

#[tokio::test]
async fn columns_that_cannot_take_the_rows_are_named() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    fixture.app().execute_batch("ALTER TABLE users RENAME COLUMN boss TO chief").unwrap();
    fixture.install();
    let error = refused(&fixture, &work, &rows).await;
    assert!(error.message.contains("column `boss` was dropped or renamed"), "{error}");
}

#[tokio::test]
async fn a_read_only_shard_and_a_missing_one_are_named() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/identity");
    let mut permissions = std::fs::metadata(fixture.path()).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(fixture.path(), permissions).unwrap();
    let live = fixture.driver.probe(&[fixture.probe_of("site:a/identity")]).await.unwrap();
    assert!(live[0].unwritable.as_ref().unwrap().contains("marked read-only"), "{live:?}");
    let error = fixture.driver.fence(&work.run, Epoch(1)).await.unwrap_err();
    assert!(error.class == ErrorClass::Permanent && error.message.contains("read-only"), "{error}");
    std::fs::remove_file(fixture.path()).unwrap();
    let error = fixture.driver.fence(&work.run, Epoch(1)).await.unwrap_err();
    assert!(error.class == ErrorClass::Permanent && error.hint.contains("topology"), "{error}");
}

#[tokio::test]
async fn a_publish_above_its_bound_is_undone() {
    let fixture = Fixture::new();
    let mut work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    fixture.delete("a");
    work.writer_block_milliseconds_max = Some(0);
    let error = refused(&fixture, &work, &rows).await;
    assert!(
        error.message.contains("site:a/identity") && error.message.contains("longer than 0 ms"),
        "{error}"
    );
    assert_eq!(error.class, ErrorClass::Permanent);
    work.writer_block_milliseconds_max = Some(60_000);
    fixture.restore(&work, &rows).await.unwrap();
}

#[tokio::test]
async fn rows_do_not_appear_under_another_sites_row() {
    let fixture = Fixture::new();
    let work = fixture.work("r1", 1, "site:a/product:jira");
    fixture
        .app()
        .execute_batch("UPDATE projects SET lead = NULL; UPDATE issues SET parent_id = NULL")
        .unwrap();
    // One of the site's comments was an orphan then; its issue's key is another site's now.
    let rows: Vec<_> = fixture
        .rows(&work)
        .into_iter()
        .filter(|(table, row)| *table != 1 || !format!("{row:?}").contains("i:1002"))
        .collect();
    fixture.delete("a");
    fixture
        .app()
        .execute_batch("INSERT INTO issues(id, project_id, title) VALUES (1002, 2000, 'of b')")
        .unwrap();
    let error = refused(&fixture, &work, &rows).await;
    assert!(
        error
            .message
            .ends_with("table `comments` is owned through the key 1002, which belongs to site:b now"),
        "{error}"
    );
}
