//! Capture of PostgreSQL into a repository: crashes, lost slots, and servers whose history changes under it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets an error fails")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use muster_capture::{CaptureEvent, Events, ShardCapture, SourceFactory};
use muster_plan::recovery::{RecoveryPoint, Target, recovery_point};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::memory::{Fault, Faulty};
use muster_repo::{IncarnationDocument, MemoryObjects, RepoError, RepoErrorKind, Repository};
use muster_rows::Class;
use muster_services::{Postgres, StopMode};
use muster_stores::capture::CaptureSource as _;
use muster_stores::postgres::PostgresSource;
use muster_types::{Boundary, ShardName, Timestamp};
use support::{Crashes, Crashing, declared};

const SCHEMA: &str = "
    CREATE TABLE issues (id int PRIMARY KEY, site text NOT NULL, title text);
    CREATE UNIQUE INDEX issues_identity ON issues (id, site);
    ALTER TABLE issues REPLICA IDENTITY USING INDEX issues_identity;
    CREATE TABLE comments (id int PRIMARY KEY, issue int NOT NULL REFERENCES issues ON DELETE CASCADE, body text);
    ALTER TABLE comments REPLICA IDENTITY FULL;
    INSERT INTO issues VALUES (1, 'a', 'one'), (2, 'b', 'two'); INSERT INTO comments VALUES (10, 1, 'x'), (20, 2, NULL);";

/// (site, table) → rows, sorted.
type Texts = BTreeMap<(String, String), Vec<Vec<Option<String>>>>;

/// A database, a repository in memory, and what happened.
struct World {
    database: String,
    shard: ShardName,
    memory: Arc<MemoryObjects>,
    repository: Repository,
    crashes: Arc<Crashes>,
    events: Arc<Mutex<Vec<CaptureEvent>>>,
}

impl World {
    async fn new(server: &Postgres) -> Self {
        let database = server.create_database("capture").unwrap();
        server.psql(&database, SCHEMA).unwrap();
        let shard = ShardName::new(database.as_str()).unwrap();
        let mut source = PostgresSource::new(shard.clone(), &server.url(&database), declared());
        tokio::task::spawn_blocking(move || source.init()).await.unwrap().unwrap();
        let memory = Arc::new(MemoryObjects::new());
        let repository = Repository::create(memory.clone(), Timestamp::EPOCH).await.unwrap();
        let (crashes, events) = (Arc::default(), Arc::default());
        Self { database, shard, memory, repository, crashes, events }
    }

    /// What a new process would be, told to look for the database on `server`.
    fn capture(&self, server: &Postgres) -> ShardCapture {
        self.capture_into(&self.repository, server)
    }

    fn capture_into(&self, repository: &Repository, server: &Postgres) -> ShardCapture {
        let (url, shard, crashes) =
            (server.url(&self.database), self.shard.clone(), Arc::clone(&self.crashes));
        let factory: SourceFactory = Arc::new(move || {
            let inner = PostgresSource::new(shard.clone(), &url, declared());
            Box::new(Crashing { inner, crashes: Arc::clone(&crashes) })
        });
        let events = Arc::clone(&self.events);
        let listener: Events = Arc::new(move |event| events.lock().unwrap().push(event));
        ShardCapture::new(repository.clone(), self.shard.clone(), factory, None, listener)
    }

    /// Runs SQL as one transaction.
    fn run(&self, server: &Postgres, sql: &str) {
        server.psql(&self.database, &format!("BEGIN; {sql}; COMMIT")).unwrap();
    }

    /// What the last incarnation adds up to, strictly, against what plain joins read.
    async fn compare(&self, server: &Postgres) {
        let (_, rows) = support::recorded(&self.repository, &self.memory, &self.shard).await;
        let mut found = Texts::new();
        for ((site, table), rows) in rows {
            let of = found.entry((site.unwrap().as_str().to_owned(), table)).or_default();
            for row in rows.values() {
                let field = |field: muster_rows::Field<'_>| {
                    (field.class == Class::Text).then(|| String::from_utf8(field.bytes.to_vec()).unwrap())
                };
                of.push(row.fields().map(field).collect());
            }
            of.sort();
        }
        assert_eq!(found, self.truth(server));
    }

    fn truth(&self, server: &Postgres) -> Texts {
        let sql = "SELECT site, 'issues', json_build_array(id::text, site, title) FROM issues UNION ALL
            SELECT i.site, 'comments', json_build_array(c.id::text, c.issue::text, c.body) FROM comments c
              JOIN issues i ON i.id = c.issue";
        let sql = format!("SELECT json_build_array(s, t, r) FROM ({sql}) x(s, t, r)");
        let mut all = Texts::new();
        for line in server.psql(&self.database, &sql).unwrap().lines() {
            let (site, table, row): (String, String, Vec<Option<String>>) =
                serde_json::from_str(line).unwrap();
            all.entry((site, table)).or_default().push(row);
        }
        all.values_mut().for_each(|rows| rows.sort());
        all
    }

    async fn incarnations(&self) -> Vec<IncarnationDocument> {
        self.repository.incarnations(&self.shard).await.unwrap()
    }

    async fn recovery_point(&self, at: Timestamp) -> RecoveryPoint {
        let query = CatalogQuery { sites: Sites::All, shards: None };
        let catalog = catalog::read(&self.repository, &query, at).await.unwrap();
        recovery_point(&catalog.shards[&self.shard], Target::At(at)).unwrap()
    }

    /// A new incarnation began once, for this reason, behind `before`; a time between the two lies in a gap, and
    /// `before` itself can still be restored.
    async fn assert_begun_anew(&self, reason: &str, before: Boundary) {
        let documents = self.incarnations().await;
        let [first, second] = documents.as_slice() else { panic!("{documents:?}") };
        assert!(second.reason.contains(reason), "{}", second.reason);
        assert_eq!(second.after, Some(before));
        let still = self.recovery_point(before.at).await;
        assert_eq!((&still.incarnation, still.boundary), (&first.incarnation, before));
        let between = self.recovery_point(Timestamp::from_micros(before.at.as_micros() + 1)).await;
        assert_eq!(between.boundary, before);
        assert!(between.gap.is_some() && !between.exact, "{between:?}");
    }
}

#[tokio::test]
async fn a_crash_between_append_and_acknowledge_loses_and_doubles_nothing() {
    let server = Postgres::shared().unwrap();
    for after in [false, true] {
        let world = World::new(&server).await;
        let mut capture = world.capture(&server);
        capture.cycle(false, true).await.unwrap();
        for round in 0..3 {
            world.run(
                &server,
                &format!(
                    "UPDATE issues SET title = 'n{round}' WHERE id = 1; DELETE FROM comments WHERE id = 20"
                ),
            );
            let counter = if after { &world.crashes.after } else { &world.crashes.before };
            counter.store(1, Ordering::SeqCst);
            let failure = capture.cycle(false, true).await.unwrap_err();
            assert!(failure.to_string().contains("planted crash"), "{failure}");
            capture = world.capture(&server);
            world.run(&server, &format!("INSERT INTO comments VALUES (3{round}, 1, ''), (20, 2, '')"));
            assert_eq!(capture.cycle(false, true).await.unwrap().changes, 2, "only what was written since");
            world.compare(&server).await;
        }
        // A head that holds nothing but its heartbeat is known again, too.
        world.crashes.before.store(1, Ordering::SeqCst);
        assert!(capture.cycle(false, true).await.is_err());
        world.capture(&server).cycle(false, true).await.unwrap();
        assert_eq!(world.incarnations().await.len(), 1);
        world.compare(&server).await;
    }
}

/// What the stream gave and no segment holds must come again, though capture itself goes on.
#[tokio::test]
async fn a_segment_that_was_not_written_is_read_again() {
    let server = Postgres::shared().unwrap();
    for landed in [false, true] {
        let world = World::new(&server).await;
        world.capture(&server).cycle(false, true).await.unwrap();
        let left = Arc::new(AtomicU32::new(2));
        let faulty = Faulty::new(world.memory.clone(), move |request| {
            let hit = request.method == "create" && request.key.contains("/log/");
            // The second segment of this capture is the one that fails.
            let hit = hit && left.fetch_sub(1, Ordering::SeqCst) == 1;
            let error = RepoError::new(RepoErrorKind::Unavailable, "planted", "none");
            hit.then_some(if landed { Fault::After(error) } else { Fault::Before(error) })
        });
        let repository = Repository::open(Arc::new(faulty)).await.unwrap();
        let mut capture = world.capture_into(&repository, &server);
        capture.cycle(false, true).await.unwrap();
        world.run(&server, "UPDATE issues SET site = 'z' WHERE id = 1; DELETE FROM comments WHERE id = 20");
        assert!(capture.cycle(false, true).await.unwrap_err().is_transient());
        world.run(&server, "INSERT INTO comments VALUES (30, 1, 'behind')");
        while let Err(failure) = capture.cycle(false, true).await {
            assert!(failure.is_transient(), "{failure}");
        }
        assert_eq!(world.incarnations().await.len(), 1);
        world.compare(&server).await;
    }
}

#[tokio::test]
async fn a_server_that_crashes_between_cycles_costs_nothing() {
    let mut server = Postgres::own(&[]).unwrap();
    let world = World::new(&server).await;
    let mut capture = world.capture(&server);
    capture.cycle(false, true).await.unwrap();
    for round in 0..3 {
        world.run(&server, &format!("UPDATE issues SET title = 'n{round}'"));
        if round == 1 {
            world.crashes.before.store(1, Ordering::SeqCst);
            assert!(capture.cycle(false, true).await.is_err());
        }
        server.stop(StopMode::Immediate).unwrap();
        let failure = capture.cycle(false, true).await.unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        server.start().unwrap();
        world.run(&server, &format!("INSERT INTO comments VALUES (3{round}, 1, '')"));
        while let Err(failure) = capture.cycle(false, true).await {
            assert!(failure.is_transient(), "{failure}");
        }
        world.compare(&server).await;
    }
    assert_eq!(world.incarnations().await.len(), 1);
}

#[tokio::test]
async fn a_slot_that_was_dropped_begins_a_new_incarnation() {
    let server = Postgres::shared().unwrap();
    let world = World::new(&server).await;
    let mut capture = world.capture(&server);
    world.run(&server, "INSERT INTO issues VALUES (3, 'c', 'three')");
    let before = capture.cycle(false, true).await.unwrap().boundary;
    let ours = "FROM pg_replication_slots WHERE database = current_database()";
    server
        .psql(&world.database, &format!("SELECT pg_terminate_backend(active_pid, 5000) {ours} AND active"))
        .unwrap();
    server.psql(&world.database, &format!("SELECT pg_drop_replication_slot(slot_name) {ours}")).unwrap();
    world.run(&server, "INSERT INTO issues VALUES (4, 'd', 'nobody saw this come')");
    while let Err(failure) = capture.cycle(false, true).await {
        assert!(failure.is_transient(), "{failure}");
    }
    world.assert_begun_anew("is gone", before).await;
    world.run(&server, "UPDATE issues SET title = 'seen' WHERE id = 4");
    capture.cycle(false, true).await.unwrap();
    world.compare(&server).await;
}

/// A copy of the server's disk as it is now.
fn copy_disk(server: &mut Postgres) -> PathBuf {
    server.stop(StopMode::Fast).unwrap();
    let old = server.data_dir().with_file_name("old");
    server.run_as_owner(Command::new("cp").arg("-a").arg(server.data_dir()).arg(&old)).unwrap();
    server.start().unwrap();
    old
}

/// Goes back to a copy of the disk.
fn rewind(server: &mut Postgres, old: &Path) {
    server.stop(StopMode::Fast).unwrap();
    let data = server.data_dir();
    std::fs::remove_dir_all(&data).unwrap();
    server.run_as_owner(Command::new("mv").arg(old).arg(&data)).unwrap();
    server.start().unwrap();
}

/// Another server over what `fill` says, with `port` of its own.
fn base_backup(of: &Postgres, options: &[&str]) -> Postgres {
    Postgres::own_with(&[], |copy| {
        let mut command = Command::new(copy.bin("pg_basebackup"));
        command.args(["-c", "fast", "-X", "stream"]).args(options);
        command.args(["-d", &of.url("postgres"), "-D"]).arg(copy.data_dir());
        copy.run_as_owner(&mut command).map(|_| ())
    })
    .unwrap()
}

#[tokio::test]
async fn a_server_rewound_to_an_older_disk_begins_a_new_incarnation() {
    // Behind the log's end, and written past it.
    for written in [false, true] {
        let mut server = Postgres::own(&[]).unwrap();
        let world = World::new(&server).await;
        world.capture(&server).cycle(false, true).await.unwrap();
        let old = copy_disk(&mut server);
        let mut capture = world.capture(&server);
        capture.cycle(false, true).await.unwrap();
        if written {
            world.run(&server, "UPDATE issues SET title = 'undone' WHERE id = 1");
        }
        // A last segment without changes, in one case.
        let before = capture.cycle(false, true).await.unwrap().boundary;
        drop(capture);
        rewind(&mut server, &old);
        if written {
            server.psql(&world.database, "SELECT pg_switch_wal()").unwrap();
            world.run(&server, "INSERT INTO issues VALUES (50, 'q', 'new')");
        }
        world.capture(&server).cycle(false, true).await.unwrap();
        world.assert_begun_anew("rewound", before).await;
        world.compare(&server).await;
    }
}

/// The last segment holds a heartbeat and nothing else; the shard goes back to just before it, and is written past it.
#[tokio::test]
async fn a_server_rewound_by_one_segment_without_changes_begins_a_new_incarnation() {
    let mut server = Postgres::own(&[]).unwrap();
    let world = World::new(&server).await;
    let mut capture = world.capture(&server);
    capture.cycle(false, true).await.unwrap();
    capture.cycle(false, true).await.unwrap();
    drop(capture);
    let old = copy_disk(&mut server);
    let before = world.capture(&server).cycle(false, true).await.unwrap().boundary;
    rewind(&mut server, &old);
    server.psql(&world.database, "SELECT pg_switch_wal()").unwrap();
    world.run(&server, "INSERT INTO issues VALUES (50, 'q', 'new')");
    world.capture(&server).cycle(false, true).await.unwrap();
    world.assert_begun_anew("rewound", before).await;
    world.compare(&server).await;
}

#[tokio::test]
async fn a_restored_base_backup_begins_a_new_incarnation() {
    let server = Postgres::own(&[]).unwrap();
    let world = World::new(&server).await;
    let mut capture = world.capture(&server);
    capture.cycle(false, true).await.unwrap();
    let backup = base_backup(&server, &[]);
    world.run(&server, "UPDATE issues SET title = 'undone' WHERE id = 1");
    let before = capture.cycle(false, true).await.unwrap().boundary;
    drop((capture, server));
    world.capture(&backup).cycle(false, true).await.unwrap();
    // A base backup has no slots.
    world.assert_begun_anew("is gone", before).await;
    world.compare(&backup).await;
}

#[tokio::test]
async fn a_promoted_standby_begins_a_new_incarnation() {
    let server = Postgres::own(&[]).unwrap();
    let world = World::new(&server).await;
    let mut capture = world.capture(&server);
    capture.cycle(false, true).await.unwrap();
    let standby = base_backup(&server, &["-R"]);
    world.run(&server, "UPDATE issues SET title = 'replicated' WHERE id = 1");
    let before = capture.cycle(false, true).await.unwrap().boundary;
    let end = server.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    let passed = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.trim());
    while standby.psql("postgres", &passed).unwrap() != "t\n" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // A standby is no shard: nothing is taken for the end of a history.
    let failure = world.capture(&standby).cycle(false, true).await.unwrap_err();
    assert_eq!(world.incarnations().await.len(), 1, "{failure}");
    standby.psql("postgres", "SELECT pg_promote()").unwrap();
    drop((capture, server));
    world.run(&standby, "INSERT INTO issues VALUES (5, 'e', 'after the promotion')");
    let mut capture = world.capture(&standby);
    capture.cycle(false, true).await.unwrap();
    world.assert_begun_anew("from timeline 1 to 2", before).await;
    world.run(&standby, "DELETE FROM issues WHERE id = 1");
    capture.cycle(false, true).await.unwrap();
    world.compare(&standby).await;
}
