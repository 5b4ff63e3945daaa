//! Who serves the folder, what happens when that process is killed, and what a kill leaves.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use muster_s3_server::{RunningServer, ServerConfig, ServerError, ensure_credentials, guard, start};
use tokio::sync::Mutex;

use crate::process::{body, client, free_port, keys, seed_of, spawn, task, wait_for_line};

fn config(dir: &Path, listen: SocketAddr) -> ServerConfig {
    ServerConfig { dir: dir.to_owned(), listen }
}

/// Not a test of its own: a process that serves until it is killed.
#[test]
fn serving_process() {
    let Some(task) = task() else { return };
    let config = config(Path::new(&task[0]), task[1].parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _server: RunningServer = runtime.block_on(start(config)).unwrap();
    println!("serving");
    // Until it is killed, or until the test that started it is gone and with it the other end of the pipe.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

struct Killed(std::process::Child);

impl Killed {
    fn serving(dir: &Path, listen: SocketAddr) -> Self {
        let mut child = spawn("owner::serving_process", &[dir.to_str().unwrap(), &listen.to_string()]);
        wait_for_line(&mut child, "serving");
        Self(child)
    }

    /// SIGKILL: the process gets no chance to tidy up.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_second_server_is_refused_and_told_who_has_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let listen = free_port();
    let mut other = Killed::serving(dir.path(), listen);
    let refused = start(config(dir.path(), free_port())).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "`{}` is already served by another process (process {} on {listen}); use that one, stop it, or serve \
             another folder",
            dir.path().display(),
            other.0.id()
        )
    );
    other.kill();
    let server = start(config(dir.path(), listen)).await.unwrap();
    assert!(
        matches!(start(config(dir.path(), listen)).await, Err(ServerError::Owned { .. })),
        "in one process, too"
    );
    server.shutdown().await;
    start(config(dir.path(), listen)).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn addresses_that_cannot_be_served_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = start(config(dir.path(), "0.0.0.0:0".parse().unwrap())).await.unwrap_err();
    assert!(matches!(open, ServerError::NotLoopback { .. }), "{open}");
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = foreign.local_addr().unwrap();
    let standing_by = guard(config(dir.path(), listen));
    let taken = standing_by.ready().await.unwrap_err();
    assert!(matches!(taken, ServerError::AddressInUse { .. }), "{taken}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_takes_over_on_the_same_port_when_the_owner_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let listen = free_port();
    let mut owner = Killed::serving(dir.path(), listen);
    let credentials = ensure_credentials(dir.path()).unwrap();
    let sdk = client(listen, keys(&credentials), 20);
    sdk.create_bucket().bucket("taken").send().await.unwrap();

    let standing_by = guard(config(dir.path(), listen));
    standing_by.ready().await.unwrap();
    assert!(!standing_by.is_serving(), "the other process has the folder");
    sdk.put_object().bucket("taken").key("before").body(b"1".to_vec().into()).send().await.unwrap();
    owner.kill();
    // The client was not told; it retries until the guard serves.
    sdk.put_object().bucket("taken").key("after").body(b"2".to_vec().into()).send().await.unwrap();
    assert!(standing_by.is_serving());
    standing_by.ready().await.unwrap();
    for (key, expected) in [("before", "1"), ("after", "2")] {
        let object = sdk.get_object().bucket("taken").key(key).send().await.unwrap();
        assert_eq!(object.body.collect().await.unwrap().into_bytes(), expected);
    }
    drop(standing_by);
    start(config(dir.path(), listen)).await.unwrap().shutdown().await;
}

const ROUNDS: u64 = 4;
const WRITERS: u64 = 8;
const OVERWRITTEN_KEYS: u64 = 4;

/// The newest acknowledged seed of each key.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_amid_writes_leaves_whole_objects_and_all_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let listen = free_port();
    let acknowledged = Acknowledged::default();
    let seeds = Arc::new(AtomicU64::new(1));
    for round in 0..ROUNDS {
        let mut owner = Killed::serving(dir.path(), listen);
        let sdk = client(listen, keys(&ensure_credentials(dir.path()).unwrap()), 1);
        if round == 0 {
            sdk.create_bucket().bucket("killed").send().await.unwrap();
        }
        let (kill, killed) = tokio::sync::watch::channel(());
        let writers = (0..WRITERS).map(|writer| {
            let (sdk, seeds, acknowledged, mut killed) =
                (sdk.clone(), Arc::clone(&seeds), Arc::clone(&acknowledged), killed.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = write(&sdk, writer, &seeds, &acknowledged) => {}
                    _ = killed.changed() => {}
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        // Kill once this round has acknowledged some writes; the others are anywhere between header and rename.
        let enough = seeds.load(Ordering::SeqCst) + 20 + round * 7;
        while seeds.load(Ordering::SeqCst) < enough {
            tokio::task::yield_now().await;
        }
        owner.kill();
        kill.send_replace(());
        for writer in writers {
            writer.await.unwrap();
        }
        check_whole(dir.path(), &*acknowledged.lock().await).await;
    }
    assert!(acknowledged.lock().await.len() > 10, "some writes were acknowledged");
}

async fn write(sdk: &Client, writer: u64, seeds: &AtomicU64, acknowledged: &Acknowledged) {
    loop {
        let seed = seeds.fetch_add(1, Ordering::SeqCst);
        let shared = seed.is_multiple_of(2);
        // Overwritten keys have one writer each, so that what is newest is known.
        let key = if shared { format!("over/{}", writer % OVERWRITTEN_KEYS) } else { format!("new/{seed}") };
        if shared && writer >= OVERWRITTEN_KEYS {
            continue;
        }
        let length = 100 + usize::try_from(seed % 9).unwrap() * 150_000;
        let put = sdk.put_object().bucket("killed").key(&key).body(ByteStream::from(body(seed, length)));
        let put = if shared { put } else { put.if_none_match("*") };
        if put.send().await.is_err() {
            // Killed; nothing more will be answered.
            return;
        }
        acknowledged.lock().await.insert(key, seed);
    }
}

async fn check_whole(dir: &Path, acknowledged: &BTreeMap<String, u64>) {
    let server = start(config(dir, "127.0.0.1:0".parse().unwrap())).await.unwrap();
    let staged = fs::read_dir(dir.join(".muster/staging")).unwrap().count();
    assert_eq!(staged, 0, "what was staged when the server was killed is removed at start");
    let sdk = client(server.addr, keys(&server.credentials_file), 3);
    let mut found = BTreeMap::new();
    let mut pages = sdk.list_objects_v2().bucket("killed").into_paginator().send();
    while let Some(page) = pages.next().await {
        for object in page.unwrap().contents() {
            let key = object.key().unwrap();
            let got = sdk.get_object().bucket("killed").key(key).send().await.unwrap();
            found.insert(key.to_owned(), seed_of(&got.body.collect().await.unwrap().into_bytes()));
        }
    }
    for (key, seed) in acknowledged {
        let found = found.get(key).unwrap_or_else(|| panic!("`{key}` was acknowledged and is gone"));
        // A write under way at the kill may have got through without its answer.
        assert!(found >= seed, "`{key}` went back from {seed} to {found}");
    }
    server.shutdown().await;
}
