//! The client against the embedded server: what AWS and MinIO would answer, over real HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use muster_repo::{Creation, Objects, RepoErrorKind, Repository, S3Config, S3Objects};
use muster_s3_server::{RunningServer, ServerConfig, start};
use muster_types::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

struct Bucket {
    server: RunningServer,
    dir: tempfile::TempDir,
}

impl Bucket {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ServerConfig { dir: dir.path().to_owned(), listen: ([127, 0, 0, 1], 0).into() };
        Self { server: start(config).await.unwrap(), dir }
    }

    fn config(&self) -> S3Config {
        S3Config {
            bucket: "muster".to_owned(),
            prefix: "some/prefix".to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(format!("http://{}", self.server.addr)),
            path_style: true,
            credentials_file: Some(self.server.credentials_file.clone()),
            requests_in_flight: 16,
        }
    }

    async fn objects(&self) -> S3Objects {
        let objects = S3Objects::connect(&self.config()).await.unwrap();
        objects.ensure_bucket().await.unwrap();
        objects.ensure_bucket().await.unwrap();
        objects
    }

    fn file(&self, key: &str) -> PathBuf {
        self.dir.path().join("muster/some/prefix").join(key)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_read_and_listed() {
    let bucket = Bucket::new().await;
    let objects = bucket.objects().await;
    assert_eq!(objects.get("a/1").await.unwrap(), None);
    assert_eq!(objects.size("a/1").await.unwrap(), None);
    for (key, body) in [("a/1", "one"), ("a/2", "two"), ("b/x/3", "three"), ("b/y", "")] {
        objects.put(key, Bytes::from(body)).await.unwrap();
        assert_eq!(objects.get(key).await.unwrap(), Some(Bytes::from(body)));
        assert_eq!(objects.size(key).await.unwrap(), Some(body.len() as u64));
    }
    let keys = |entries: Vec<muster_repo::ObjectEntry>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.key).collect()
    };
    assert_eq!(keys(objects.list("", None).await.unwrap()), ["a/1", "a/2", "b/x/3", "b/y"]);
    assert_eq!(keys(objects.list("a/", Some("a/1")).await.unwrap()), ["a/2"]);
    assert_eq!(objects.list_folders("b/").await.unwrap(), ["x"]);
    assert_eq!(objects.get_range("b/x/3", 1, 3).await.unwrap(), "hre");
    let failed = objects.get_range("b/x/3", 3, 10).await.unwrap_err();
    assert!(matches!(failed.kind, RepoErrorKind::Damaged { .. }), "{failed}");
    let failed = objects.get_range("nothing", 0, 1).await.unwrap_err();
    assert!(matches!(failed.kind, RepoErrorKind::NotFound { .. }), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_many_pages_are_whole() {
    let bucket = Bucket::new().await;
    let objects = bucket.objects().await;
    let dir = bucket.file("many");
    std::fs::create_dir_all(&dir).unwrap();
    for index in 0..2_345 {
        std::fs::write(dir.join(format!("{index:05}")), b"x").unwrap();
    }
    let found = objects.list("many/", None).await.unwrap();
    let expected: Vec<String> = (0..2_345).map(|index| format!("many/{index:05}")).collect();
    assert_eq!(found.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), expected);
    assert_eq!(objects.list("many/", Some("many/02300")).await.unwrap().len(), 44);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_racing_creates_one_wins() {
    let bucket = Bucket::new().await;
    let objects = Arc::new(bucket.objects().await);
    for key in 0..20 {
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..8 {
            let objects = Arc::clone(&objects);
            racers.spawn(async move {
                objects.create(&format!("slot/{key}"), Bytes::from(format!("racer {racer}"))).await.unwrap()
            });
        }
        let outcomes = racers.join_all().await;
        let winners = outcomes.iter().filter(|outcome| **outcome == Creation::Mine).count();
        assert_eq!(winners, 1, "{outcomes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_go_up_in_parts_and_ranges_come_back() {
    let bucket = Bucket::new().await;
    let objects = bucket.objects().await;
    let body: Vec<u8> =
        (0..40u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = bucket.dir.path().join("large");
    for bytes in [3, 16 << 20, (16 << 20) + 1, body.len()] {
        std::fs::write(&path, &body[..bytes]).unwrap();
        objects.put_file("large", &path).await.unwrap();
        assert_eq!(objects.size("large").await.unwrap(), Some(bytes as u64));
        assert!(objects.get("large").await.unwrap().unwrap() == body[..bytes], "{bytes} bytes");
    }
    let found = objects.get_range("large", 15 << 20, 9 << 20).await.unwrap();
    assert!(found == body[15 << 20..24 << 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() {
    let bucket = Bucket::new().await;
    let objects = S3Objects::connect(&bucket.config()).await.unwrap();
    let failed = objects.put("k", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::NoBucket, "{failed}");

    bucket.objects().await;
    let wrong = bucket.dir.path().join("wrong");
    std::fs::write(&wrong, "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n")
        .unwrap();
    let config = S3Config { credentials_file: Some(wrong), ..bucket.config() };
    let objects = S3Objects::connect(&config).await.unwrap();
    let failed = objects.get("k").await.unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::Denied, "{failed}");
    assert!(failed.message.contains("muster"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_is_ridden_out() {
    let bucket = Bucket::new().await;
    let objects = Arc::new(bucket.objects().await);
    objects.put("k", Bytes::from_static(b"here")).await.unwrap();
    let Bucket { server, dir } = bucket;
    let addr = server.addr;
    server.shutdown().await;
    let stand_in = TcpListener::bind(addr).await.unwrap();
    let reader = {
        let objects = Arc::clone(&objects);
        tokio::spawn(async move { objects.get("k").await })
    };
    // The reader's request breaks off, and then no one listens until the server is back.
    drop(stand_in.accept().await.unwrap());
    drop(stand_in);
    let config = ServerConfig { dir: dir.path().to_owned(), listen: addr };
    let again = start(config).await.unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), Some(Bytes::from_static(b"here")));
    again.shutdown().await;
}

/// Passes connections on to `server`, and breaks each of the first `cuts` off after `bytes` bytes of answer.
async fn cutting_proxy(server: SocketAddr, cuts: usize, bytes: u64) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let number = count.fetch_add(1, Ordering::SeqCst);
            let limit = if number < cuts { bytes } else { u64::MAX };
            tokio::spawn(async move {
                let upstream = TcpStream::connect(server).await.unwrap();
                let (client_reads, mut client_writes) = client.into_split();
                let (server_reads, mut server_writes) = upstream.into_split();
                let (mut client_reads, mut server_reads) = (client_reads, server_reads.take(limit));
                tokio::select! {
                    _ = tokio::io::copy(&mut client_reads, &mut server_writes) => {}
                    _ = tokio::io::copy(&mut server_reads, &mut client_writes) => {}
                }
            });
        }
    });
    (addr, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off_are_resumed_where_they_ended() {
    let bucket = Bucket::new().await;
    let body: Vec<u8> =
        (0..3u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bucket.objects().await.put("k", Bytes::from(body.clone())).await.unwrap();
    for ranged in [true, false] {
        let (addr, connections) = cutting_proxy(bucket.server.addr, 4, 600_000).await;
        let config = S3Config { endpoint: Some(format!("http://{addr}")), ..bucket.config() };
        let objects = S3Objects::connect(&config).await.unwrap();
        if ranged {
            assert!(objects.get_range("k", 1_000, 2_900_000).await.unwrap() == body[1_000..2_901_000]);
        } else {
            assert!(objects.get("k").await.unwrap().unwrap() == body);
        }
        // Four answers of almost 600,000 bytes each, and the rest: starting anew each time would never end.
        assert_eq!(connections.load(Ordering::SeqCst), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_creators_of_a_repository_agree() {
    let bucket = Bucket::new().await;
    let objects: Arc<dyn Objects> = Arc::new(bucket.objects().await);
    let missing = Repository::open(Arc::clone(&objects)).await.unwrap_err();
    assert!(matches!(missing.kind, RepoErrorKind::NotFound { .. }), "{missing}");
    let create = || Repository::create(Arc::clone(&objects), Timestamp::EPOCH);
    let (one, two) = futures::try_join!(create(), create()).unwrap();
    assert_eq!(one.id(), two.id());
    assert_eq!(Repository::open(objects).await.unwrap().id(), one.id());
}
