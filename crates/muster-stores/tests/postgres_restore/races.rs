//! Publishes beside others that change the same rows at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_engine::driver::{DriverError, ErrorClass, StoreDriver, StoreWork};
use muster_stores::postgres::PostgresDriver;
use muster_types::journal::Published;
use tokio::task::JoinHandle;

use crate::world::{TableDigests, World, tenant};

/// How often a publish is tried again that met the limit of its lock waits, on a machine that others load.
const ATTEMPTS: usize = 20;

/// Longest wait of a writer behind a publish that waits for a table, with room for a machine that others load.
const QUEUE_MAX: Duration = Duration::from_millis(1800);

/// Publishes in the background, again and again while the error is one that passes.
fn publishing(
    driver: &Arc<PostgresDriver>,
    work: &StoreWork,
    staged: &TableDigests,
) -> JoinHandle<Result<Published, DriverError>> {
    let (driver, work, staged) = (Arc::clone(driver), work.clone(), staged.clone());
    tokio::spawn(async move {
        let mut last = driver.publish(&work, &staged).await;
        for _ in 1..ATTEMPTS {
            if !last.as_ref().is_err_and(|error| error.class == ErrorClass::Transient) {
                break;
            }
            last = driver.publish(&work, &staged).await;
        }
        last
    })
}

/// Until `count` sessions of the database wait for a lock.
async fn waiters(world: &World, count: usize) {
    let watcher = world.database.app().await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..2000 {
        let found: i64 = watcher.query_one(sql, &[]).await.unwrap().get(0);
        if found >= count as i64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{count} sessions never waited");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_that_is_deleted_under_the_flag_is_the_one_that_is_saved() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text, v text); INSERT INTO t VALUES (1, 'a', 'then'), (2, 'a', 'then')",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    let mut work = snapshot.work("a", "run-1");
    work.overwrite = true;
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    world.sql("UPDATE t SET v = 'older'").await;
    world.sql("BEGIN; UPDATE t SET v = 'newest' WHERE id = 1").await;
    let published = publishing(&world.driver, &work, &staged);
    waiters(&world, 1).await;
    world.sql("COMMIT").await;
    assert_eq!(published.await.unwrap().unwrap().replaced, 2);
    let saved = "SELECT string_agg(fields::text, ' ' ORDER BY fields) FROM muster.replaced";
    assert_eq!(world.ask(saved).await, "{1,a,newest} {2,a,older}");
    assert_eq!(world.ask("SELECT count(*) FROM t WHERE v = 'then'").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_beside_the_first_one_tells_what_that_did() {
    let world = World::new(
        "CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind VALUES (1);
         CREATE TABLE t (id int PRIMARY KEY, site text, kind int REFERENCES kind); INSERT INTO t VALUES (1, 'a', 1), (2, 'a', 1)",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    // The first attempt has inserted its rows and waits for the row that they refer to.
    world.sql("DELETE FROM t").await;
    world.sql("BEGIN; SELECT FROM kind FOR UPDATE").await;
    let first = publishing(&world.driver, &work, &staged);
    waiters(&world, 1).await;
    let second = publishing(&world.fresh_driver(), &work, &staged);
    waiters(&world, 2).await;
    world.sql("COMMIT").await;
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!((first.rows, second.rows, first.at), (2, 2, second.at));
    assert_eq!(world.ask("SELECT count(*) FROM muster.published").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_referenced_row_that_is_deleted_and_brought_back_is_there() {
    let world = World::new(
        "CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind VALUES (1), (2);
         CREATE TABLE t (id int PRIMARY KEY, site text, kind int REFERENCES kind);
         INSERT INTO t VALUES (1, 'a', 1), (2, 'a', 2)",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    world.sql("DELETE FROM t").await;
    world.sql("BEGIN; DELETE FROM kind; INSERT INTO kind VALUES (1), (2)").await;
    let published = publishing(&world.driver, &work, &staged);
    waiters(&world, 1).await;
    world.sql("COMMIT").await;
    assert_eq!(published.await.unwrap().unwrap().rows, 2);
    // One that does not come back is missed still.
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-2");
    let first = snapshot.work("a", "run-1");
    world.driver.release(&first.run, first.epoch, std::slice::from_ref(&work.store)).await.unwrap();
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    world.sql("DELETE FROM t").await;
    world.sql("BEGIN; DELETE FROM kind WHERE id = 2").await;
    let published = publishing(&world.driver, &work, &staged);
    waiters(&world, 1).await;
    world.sql("COMMIT").await;
    let refused = published.await.unwrap().unwrap_err();
    assert!(
        refused.message.contains("refers by (kind) to ('2') of table `kind`, which is not there"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_queue_for_long_behind_a_publish_that_waits_for_a_table() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text, n int UNIQUE DEFERRABLE); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    world.sql("DELETE FROM t WHERE site = 'a'").await;
    world.sql("BEGIN; UPDATE t SET n = 3 WHERE id = 2").await;
    let driver = Arc::clone(&world.driver);
    let (again, expected) = (work.clone(), staged.clone());
    let publishing = tokio::spawn(async move { driver.publish(&again, &expected).await });
    waiters(&world, 1).await;
    let writer = world.database.app().await;
    let since = Instant::now();
    writer.batch_execute("INSERT INTO t VALUES (10, 'b', 10)").await.unwrap();
    let waited = since.elapsed();
    assert_eq!(publishing.await.unwrap().unwrap_err().class, ErrorClass::Transient);
    assert!(waited < QUEUE_MAX, "{waited:?}");
    world.sql("COMMIT").await;
    assert_eq!(world.driver.publish(&work, &staged).await.unwrap().rows, 1);
}
