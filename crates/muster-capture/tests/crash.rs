//! Whatever crashes between shard and repository, no change is lost and none comes twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets an error fails"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use muster_capture::{CaptureEvent, CaptureFailure, CaptureOptions, CaptureRunner, SourceFactory};
use muster_repo::memory::{Fault, Faulty};
use muster_repo::{RepoError, RepoErrorKind, Repository};
use muster_stores::sqlite::capture::SqliteSource;
use muster_types::{ShardName, Timestamp};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use support::{World, declared};

fn unavailable() -> RepoError {
    RepoError::new(RepoErrorKind::Unavailable, "planted", "none")
}

#[tokio::test]
async fn crash_between_append_and_acknowledge() {
    for after in [false, true] {
        let world = World::new().await;
        let mut capture = world.capture();
        capture.cycle(false, true).await.unwrap();
        world.run("UPDATE issues SET title = 'n' WHERE id = 1; DELETE FROM comments WHERE id = 20");
        let counter = if after { &world.crashes.after } else { &world.crashes.before };
        counter.store(1, Ordering::SeqCst);
        let failure = capture.cycle(false, true).await.unwrap_err();
        assert!(failure.to_string().contains("planted crash"), "{failure}");
        drop(capture);
        world.run(
            "INSERT INTO comments VALUES (30, 1, x'00'); INSERT OR REPLACE INTO issues VALUES (9, 'c', 'n')",
        );
        let recorded = world.capture().cycle(false, true).await.unwrap();
        // The replaced issue takes its two comments along.
        assert_eq!(recorded.changes, 5, "only what was written since");
        let resumed = world.happened(|event| matches!(event, CaptureEvent::Resumed { .. }));
        assert_eq!(resumed, usize::from(!after));
        assert_eq!(world.happened(|event| matches!(event, CaptureEvent::Snapshot { .. })), 1);
        world.compare().await;
    }
}

#[tokio::test]
async fn a_segment_whose_answer_was_lost() {
    for landed in [false, true] {
        let world = World::new().await;
        world.capture().cycle(false, true).await.unwrap();
        world.run("UPDATE issues SET site = 'z' WHERE id = 1");
        let left = Arc::new(AtomicU32::new(1));
        let faulty = Faulty::new(world.memory.clone(), move |request| {
            let hit = request.method == "create" && request.key.contains("/log/");
            let hit = hit
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            hit.then(|| if landed { Fault::After(unavailable()) } else { Fault::Before(unavailable()) })
        });
        let repository = Repository::open(Arc::new(faulty)).await.unwrap();
        let mut capture = world.capture_with(&repository);
        assert!(capture.cycle(false, true).await.unwrap_err().is_transient());
        let recorded = capture.cycle(false, true).await.unwrap();
        assert_eq!(recorded.changes, if landed { 0 } else { 4 });
        world.compare().await;
    }
}

#[tokio::test]
async fn random_crashes_of_shard_and_repository() {
    let seed = std::env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    for seed in seed..seed + 20 {
        println!("seed {seed}: MUSTER_SEED={seed} cargo test -p muster-capture --test crash random_crashes");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let world = World::new().await;
        let odds = Arc::new(AtomicU32::new(25));
        let (rule_odds, dice) =
            (Arc::clone(&odds), std::sync::Mutex::new(ChaCha8Rng::seed_from_u64(seed + 1_000)));
        let faulty = Faulty::new(world.memory.clone(), move |_| {
            let mut dice = dice.lock().unwrap();
            let hit = dice.random_range(0..100) < rule_odds.load(Ordering::SeqCst);
            hit.then(
                || if dice.random() { Fault::After(unavailable()) } else { Fault::Before(unavailable()) },
            )
        });
        odds.store(0, Ordering::SeqCst);
        let repository = Repository::open(Arc::new(faulty)).await.unwrap();
        let mut capture = world.capture_with(&repository);
        for step in 0..25 {
            odds.store(if random.random() { 25 } else { 0 }, Ordering::SeqCst);
            let (id, other) = (random.random_range(1..9), random.random_range(1..9));
            let sql = match random.random_range(0..7) {
                0 => format!("INSERT OR REPLACE INTO issues VALUES ({id}, 's{other}', 't{other}')"),
                1 => format!("DELETE FROM issues WHERE id = {id}"),
                2 => format!("UPDATE OR IGNORE issues SET id = {other}, site = 's{id}' WHERE id = {id}"),
                3 => format!("INSERT INTO comments SELECT NULL, id, '{step}' FROM issues"),
                4 => format!("UPDATE comments SET body = 1.5 WHERE issue = {id}"),
                5 if random.random_range(0..4) == 0 => {
                    format!("ALTER TABLE issues ADD COLUMN c{step}; ALTER TABLE issues DROP COLUMN c{step}")
                }
                _ => String::new(),
            };
            world.run(&sql);
            if random.random_range(0..4) == 0 {
                world.crashes.before.store(1, Ordering::SeqCst);
            }
            let _ = capture.cycle(random.random_range(0..8) == 0, random.random()).await;
            if random.random_range(0..4) == 0 {
                capture = world.capture_with(&repository);
            }
        }
        odds.store(0, Ordering::SeqCst);
        world.crashes.before.store(0, Ordering::SeqCst);
        let recorded = capture.cycle(false, true).await.unwrap();
        assert_eq!(world.recorded().await.0, recorded.boundary);
        world.compare().await;
        let left: i64 =
            world.conn.query_row("SELECT count(*) FROM _muster_change", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "what is durable was removed from the shard");
    }
}

#[tokio::test]
async fn of_two_captures_one_is_told_of_the_other() {
    let world = World::new().await;
    let (mut first, mut second) = (world.capture(), world.capture());
    first.cycle(false, true).await.unwrap();
    world.run("DELETE FROM comments");
    second.cycle(false, true).await.unwrap();
    world.run("DELETE FROM issues");
    let failure = first.cycle(false, true).await.unwrap_err();
    assert!(matches!(failure, CaptureFailure::Lost { .. }), "{failure}");
    assert!(failure.to_string().contains(second.writer()), "{failure}");
    second.cycle(false, true).await.unwrap();
    world.compare().await;
}

/// Between a capture's reading of the shard and its reading of the log, another one writes: what it has of the shard is
/// older than the log then, as if the shard had been rewound.
#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_begins_beside_another_takes_the_shard_for_what_it_is() {
    for cycles in [1, 3] {
        let world = World::new().await;
        let (mut first, mut second) = (world.capture(), world.capture());
        first.cycle(false, true).await.unwrap();
        world.run("DELETE FROM comments WHERE id = 10");
        let handle = tokio::runtime::Handle::current();
        let rival = move || {
            for _ in 0..cycles {
                handle.block_on(first.cycle(false, true)).unwrap();
            }
        };
        *world.crashes.behind_state.lock().unwrap() = Some(Box::new(rival));
        second.cycle(false, true).await.unwrap();
        let begun = |event: &CaptureEvent| matches!(event, CaptureEvent::IncarnationBegun { .. });
        assert_eq!(world.happened(begun), 1, "a shard that goes on was taken for a rewound one");
        world.compare().await;
    }
}

#[tokio::test]
async fn a_rewound_shard_begins_a_new_incarnation() {
    let world = World::new().await;
    let mut capture = world.capture();
    capture.cycle(false, true).await.unwrap();
    let copy = world.folder.path().join("copy.db");
    world.run(&format!("VACUUM INTO '{}'", copy.display()));
    world.run("UPDATE issues SET title = 'later' WHERE id = 1");
    let before = capture.cycle(false, true).await.unwrap().boundary;
    let World { conn, .. } = world;
    drop(conn);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", world.path.display()));
    }
    std::fs::rename(&copy, &world.path).unwrap();
    let world = World { conn: rusqlite::Connection::open(&world.path).unwrap(), ..world };
    world.run("PRAGMA journal_mode = WAL");
    let after = capture.cycle(false, true).await.unwrap().boundary;
    assert!(after.at >= before.at, "stamps go on");
    let begun = |event: &CaptureEvent| {
        matches!(event, CaptureEvent::IncarnationBegun { after: Some(known), reason, .. }
            if *known == before && reason.contains("rewound"))
    };
    assert_eq!(world.happened(begun), 1);
    world.run("INSERT INTO issues VALUES (50, 'q', 'new')");
    capture.cycle(false, true).await.unwrap();
    world.compare().await;
}

#[tokio::test]
async fn a_shard_rewound_by_one_segment_and_written_since_begins_a_new_incarnation() {
    let world = World::new().await;
    let mut capture = world.capture();
    capture.cycle(false, true).await.unwrap();
    let copy = world.folder.path().join("copy.db");
    world.run(&format!("VACUUM INTO '{}'", copy.display()));
    world.run("UPDATE issues SET title = 'undone' WHERE id = 1");
    capture.cycle(false, true).await.unwrap();
    drop(capture);
    let World { conn, .. } = world;
    drop(conn);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", world.path.display()));
    }
    std::fs::rename(&copy, &world.path).unwrap();
    let world = World { conn: rusqlite::Connection::open(&world.path).unwrap(), ..world };
    world.run("PRAGMA journal_mode = WAL");
    // As many positions as the undone change had, and more.
    world.run("INSERT INTO issues VALUES (50, 'q', 'new'), (51, 'q', 'newer'), (52, 'q', 'newest')");
    world.capture().cycle(false, true).await.unwrap();
    assert_eq!(world.happened(|event| matches!(event, CaptureEvent::IncarnationBegun { .. })), 2);
    world.compare().await;
}

#[tokio::test]
async fn capture_installed_anew_begins_a_new_incarnation() {
    use muster_stores::capture::CaptureSource as _;
    let world = World::new().await;
    world.capture().cycle(false, true).await.unwrap();
    let mut source = SqliteSource::new(&world.path, declared());
    source.remove().unwrap();
    let failure = world.capture().cycle(false, true).await.unwrap_err();
    assert!(failure.to_string().contains("muster capture init"), "{failure}");
    world.run("UPDATE issues SET title = 'unseen' WHERE id = 1");
    source.init().unwrap();
    world.capture().cycle(false, true).await.unwrap();
    assert_eq!(world.happened(|event| matches!(event, CaptureEvent::IncarnationBegun { .. })), 2);
    world.compare().await;
}

#[tokio::test]
async fn an_idle_shard_gets_watermarks_only_when_they_are_due() {
    let world = World::new().await;
    let mut capture = world.capture();
    let first = capture.cycle(false, true).await.unwrap();
    let idle = capture.cycle(false, false).await.unwrap();
    assert!(!idle.appended && idle.boundary == first.boundary);
    let due = capture.cycle(false, true).await.unwrap();
    assert!(due.appended && due.changes == 0 && due.boundary.at >= first.boundary.at);
    let asked = capture.cycle(true, false).await.unwrap();
    assert!(!asked.appended);
    assert_eq!(world.happened(|event| matches!(event, CaptureEvent::Snapshot { .. })), 2);
}

#[tokio::test]
async fn following_ends_with_a_watermark_and_a_failed_shard_costs_no_other() {
    let world = World::new().await;
    let missing = world.folder.path().join("missing.db");
    let absent: SourceFactory = Arc::new(move || Box::new(SqliteSource::new(&missing, declared())));
    let options = CaptureOptions {
        shards: None,
        snapshot: false,
        spool: Some(world.folder.path().join("spool")),
        poll_interval: Duration::from_millis(1),
        watermark_interval: Duration::from_secs(3_600),
        shards_at_once: 1,
        stand_by: None,
        snapshots_wanted: None,
        events: world.listener(),
    };
    let sources = vec![(ShardName::new("absent").unwrap(), absent), (world.shard.clone(), world.factory())];
    let mut runner = CaptureRunner::with_sources(&world.repository, sources, options);
    let (written, told) = tokio::sync::oneshot::channel();
    let mut written = Some(written);
    // Ends when a write that came while following is in the log.
    let watch = async {
        let mut at = None;
        loop {
            tokio::task::yield_now().await;
            let appended: Vec<u64> = world
                .events
                .lock()
                .unwrap()
                .iter()
                .filter_map(|event| match event {
                    CaptureEvent::Appended { changes, .. } => Some(*changes),
                    _ => None,
                })
                .collect();
            if at.is_none() && !appended.is_empty() {
                world.run("UPDATE issues SET title = 'followed' WHERE id = 2");
                at = Some(appended.len());
            }
            if appended.iter().sum::<u64>() == 1 {
                if let Some(written) = written.take() {
                    written.send(Timestamp::EPOCH).unwrap();
                }
                return;
            }
        }
    };
    let (outcomes, ()) = tokio::join!(runner.follow(async { told.await.map(|_| ()).unwrap() }), watch);
    let failure = outcomes[0].result.as_ref().unwrap_err();
    assert!(failure.to_string().contains("shard `absent`"), "{failure}");
    let last = outcomes[1].result.as_ref().unwrap();
    assert!(last.appended, "a last watermark");
    assert!(world.happened(|event| matches!(event, CaptureEvent::Failed { .. })) > 0);
    world.compare().await;
    let again = runner.once().await;
    assert!(again[0].result.is_err() && again[1].result.is_ok());
}

#[tokio::test]
async fn an_incarnation_that_the_shard_failed_to_begin_is_begun_later_and_forgets_nothing() {
    for after in [false, true] {
        let world = World::new().await;
        let begin = |count: u32| {
            let counter = if after { &world.crashes.after_begin } else { &world.crashes.before_begin };
            counter.store(count, Ordering::SeqCst);
        };
        begin(1);
        assert!(world.capture().cycle(false, true).await.is_err());
        let known = world.capture().cycle(false, true).await.unwrap().boundary;
        // The log is gone from under the shard: its history cannot be gone on with.
        reinstall(&world);
        begin(if after { 1 } else { 3 });
        let mut capture = world.capture();
        while capture.cycle(false, true).await.is_err() {}
        let documents = world.repository.incarnations(&world.shard).await.unwrap();
        assert_eq!(documents.len(), 2, "{documents:?}");
        assert_eq!((documents[0].after, documents[1].after), (None, Some(known)));
        let stamps = capture.cycle(false, true).await.unwrap().boundary;
        assert!(stamps.at >= known.at, "stamps go on");
        world.compare().await;
    }
}

/// An empty incarnation that cannot be gone on with either is followed by one that knows what came before both.
#[tokio::test]
async fn what_was_known_before_an_empty_incarnation_is_carried_on() {
    let world = World::new().await;
    let known = world.capture().cycle(false, true).await.unwrap().boundary;
    reinstall(&world);
    world.crashes.after_begin.store(1, Ordering::SeqCst);
    assert!(world.capture().cycle(false, true).await.is_err());
    reinstall(&world);
    world.repository.begin_incarnation(&world.shard, Timestamp::EPOCH, "planted", Some(known)).await.unwrap();
    world.capture().cycle(false, true).await.unwrap();
    let documents = world.repository.incarnations(&world.shard).await.unwrap();
    assert_eq!(documents.last().unwrap().after, Some(known));
    world.compare().await;
}

fn reinstall(world: &World) {
    use muster_stores::capture::CaptureSource as _;
    let mut source = SqliteSource::new(&world.path, declared());
    source.remove().unwrap();
    source.init().unwrap();
}
