//! Crashes of the server: what was staged is gone, what was committed is known.

use std::sync::Arc;
use std::time::Duration;

use muster_engine::driver::{ErrorClass, StoreDriver};
use muster_services::{Postgres, StopMode};

use crate::world::{World, tenant};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, site text); \
                      INSERT INTO t SELECT i, 'a' FROM generate_series(1, 2000) i";

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_a_crash_has_emptied_is_noticed_and_never_published_short() {
    let mut server = Postgres::own(&[]).unwrap();
    let world = World::on(&server, TABLES, &[("t", tenant("site"))]).await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    server.stop(StopMode::Immediate).unwrap();
    let down = world.driver.publish(&work, &staged).await.unwrap_err();
    assert_ne!(down.class, ErrorClass::Permanent, "{down}");
    server.start().unwrap();
    let lost = world.driver.publish(&work, &staged).await.unwrap_err();
    assert_eq!(lost.class, ErrorClass::StagingLost, "{lost}");
    assert_eq!(world.driver.digest_staged(&work).await.unwrap_err().class, ErrorClass::StagingLost);
    world.stage(&work, &snapshot).await.unwrap();
    assert_eq!(world.driver.publish(&work, &staged).await.unwrap().rows, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_resolved_by_the_record() {
    let mut server =
        Postgres::own(&[("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")]).unwrap();
    let world = World::on(&server, TABLES, &[("t", tenant("site"))]).await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    // From now on a commit is durable here and waits for a standby that never comes.
    let name = world.ask("SELECT current_database()").await;
    server.psql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = 'on'")).unwrap();
    let fresh = world.fresh_driver();
    let driver = Arc::clone(&fresh);
    let (other, expected) = (work.clone(), staged.clone());
    let publishing = tokio::spawn(async move { driver.publish(&other, &expected).await });
    let mut waits = false;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let found =
            server.psql(&name, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").unwrap();
        waits = found.trim() == "1";
        if waits {
            break;
        }
    }
    assert!(waits, "the commit did not wait");
    server.stop(StopMode::Immediate).unwrap();
    let error = publishing.await.unwrap().unwrap_err();
    assert_eq!(error.class, ErrorClass::Ambiguous, "{error}");
    server.start().unwrap();
    // The record says that it happened, though staging is gone.
    let published = fresh.publish(&work, &staged).await.unwrap();
    assert_eq!(published.rows, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_a_frozen_engine_holds_is_taken_from_it() {
    let world = World::new(TABLES, &[("t", tenant("site"))]).await;
    let snapshot = world.snapshot("a").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    world.stage(&work, &snapshot).await.unwrap();
    let table = world.ask("SELECT format('muster.%I', name) FROM muster.staging").await;
    // As in the middle of a COPY.
    let frozen = world.database.muster().await;
    frozen.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ROW EXCLUSIVE MODE")).await.unwrap();
    world.driver.release(&work.run, work.epoch, std::slice::from_ref(&work.store)).await.unwrap();
    assert_eq!(world.ask("SELECT count(*) FROM muster.staging").await, "0");
    assert_eq!(world.ask(&format!("SELECT to_regclass('{table}') IS NULL")).await, "true");
    frozen.batch_execute("COMMIT").await.unwrap_err();
}
