//! Neighbours go on writing while a store is published, and a digest of theirs is of a known place.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_engine::driver::{ErrorClass, StoreDriver};
use muster_rows::RowsDigest;

use crate::world::{World, store, tenant};

const ROWS: u64 = 30_000;
/// No statement of a neighbour may take longer beside a publish of [`ROWS`] rows, on a machine that others load.
const WAIT_MAX: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_write_on_while_a_store_is_published() {
    let world = World::new(
        &format!(
            "CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind SELECT generate_series(1, 5);
             CREATE TABLE t (site text, id int, kind int REFERENCES kind, v text, PRIMARY KEY (site, id));
             INSERT INTO t SELECT 'a', i, i % 5 + 1, repeat('x', 100) FROM generate_series(1, {ROWS}) i;
             INSERT INTO t SELECT 'b', i, i % 5 + 1, 'y' FROM generate_series(1, 1000) i"
        ),
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t WHERE site = 'a'").await;
    let work = snapshot.work("a", "run-1");
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = world.database.app().await;
    let writing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let (mut longest, mut writes) = (Duration::ZERO, 0_i32);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                writes += 1;
                let insert = format!(
                    "BEGIN; INSERT INTO t VALUES ('b', {}, {}, 'new'); UPDATE t SET v = 'z{writes}' WHERE site = 'b' AND id = {}; \
                     UPDATE kind SET id = id WHERE id = {}; COMMIT",
                    10_000 + writes,
                    writes % 5 + 1,
                    writes % 1000 + 1,
                    writes % 5 + 1,
                );
                writer.batch_execute(&insert).await.unwrap();
                longest = longest.max(began.elapsed());
            }
            (longest, writes)
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let published = world.driver.publish(&work, &staged).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let (longest, writes) = writing.await.unwrap();
    println!(
        "{writes} writes beside a publish of {} ms; the longest took {longest:?}",
        published.blocked_micros / 1000
    );
    assert_eq!(published.rows, ROWS);
    assert!(writes > 10 && longest < WAIT_MAX, "{writes} writes, the longest took {longest:?}");
    assert_eq!(world.ask("SELECT count(*) FROM t WHERE site = 'b'").await, (1000 + writes).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_a_neighbour_is_waited_for_only_briefly() {
    let world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, site text); INSERT INTO t VALUES (1, 'a')",
        &[("t", tenant("site"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    world.sql("DELETE FROM t; BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let mut work = snapshot.work("a", "run-1");
    work.writer_block_milliseconds_max = Some(200);
    world.begin(&work).await;
    let staged = world.stage(&work, &snapshot).await.unwrap();
    let refused = world.driver.publish(&work, &staged).await.unwrap_err();
    assert_eq!(refused.class, ErrorClass::Transient, "{refused}");
    world.sql("COMMIT").await;
    work.writer_block_milliseconds_max = Some(60_000);
    world.driver.publish(&work, &staged).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_of_neighbours_needs_whole_old_rows_and_leaves_the_victims_out() {
    let world = World::new(
        "CREATE TABLE t (site text, id int, PRIMARY KEY (site, id)); INSERT INTO t SELECT 'a', i FROM generate_series(1, 9) i;
         INSERT INTO t SELECT 'b', i FROM generate_series(1, 5) i",
        &[("t", tenant("site"))],
    )
    .await;
    let excluded = BTreeSet::from([store("a")]);
    let refused = world.driver.neighbour_digest(&excluded).await.unwrap_err();
    assert!(refused.hint.contains("ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL"), "{refused}");
    world.sql("ALTER TABLE t REPLICA IDENTITY FULL").await;
    let before: u64 = world.ask("SELECT pg_current_wal_insert_lsn() - '0/0'").await.parse().unwrap();
    let found = world.driver.neighbour_digest(&excluded).await.unwrap();
    let after: u64 = world.ask("SELECT pg_current_wal_insert_lsn() - '0/0'").await.parse().unwrap();
    assert!(found.position.0 + 1 >= before && found.position.0 <= after);
    let mut wanted = RowsDigest::new();
    for (_, row) in world.snapshot("b").await.rows {
        wanted.add("t", &row);
    }
    assert_eq!((found.rows, found.digest), (5, wanted.finish()));
    world.sql("DELETE FROM t WHERE site = 'a'").await;
    assert_eq!(world.driver.neighbour_digest(&excluded).await.unwrap().digest, found.digest);
    world.sql("UPDATE t SET id = 77 WHERE site = 'b' AND id = 1").await;
    assert_ne!(world.driver.neighbour_digest(&excluded).await.unwrap().digest, found.digest);
}
