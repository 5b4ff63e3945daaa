//! A repository on MinIO: everything works as on the embedded server, and what goes wrong is said clearly.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use muster_demo::WriterConfig;
use muster_repo::{Objects as _, RepoErrorKind, S3Config, S3Objects};
use muster_services::{Minio, Tls};
use muster_tests::{Engine, Incident, Moment, Mount, Size, World, seed, until};
use muster_types::report::RunStatus;

const SIZE: Size = Size { sites: 24, rows_per_site: 60 };
const VICTIMS: usize = 6;

#[test]
fn an_incident_is_undone_in_a_versioned_bucket_and_nothing_was_deleted_there() {
    let minio = Minio::shared().unwrap();
    let bucket = minio.create_versioned_bucket("incident").unwrap();
    let mut world = World::on_minio(SIZE, seed(20), &minio, &bucket);
    world.capture();
    world.follow();
    let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 100, threads: 2 });
    until("writers at work", || writers.committed() >= 100);
    let incident = Incident::delete(&world, VICTIMS, Duration::from_millis(20));
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(&world);
    incident.plan(&world, &["--proof", "full"]).ok();
    world.muster(&["apply", "plan.json", "--run", "r"]).ok();
    writers.stop().unwrap();
    world.stop_following();
    incident.is_undone(&world, "r");
    let report = world.report("r");
    assert_eq!(report.status, RunStatus::Restored);
    assert!(report.proof.shards.values().all(|proof| proof.holds && proof.error.is_none()));
    every_slot_was_written_once(&minio, &bucket);
}

/// In a versioned bucket a create succeeds again after a delete: what serves as a lock is never deleted.
fn every_slot_was_written_once(minio: &Minio, bucket: &str) {
    let mut versions = BTreeMap::<String, usize>::new();
    let mut marker = String::new();
    loop {
        let page = minio.request("GET", &format!("/{bucket}?key-marker={marker}&versions="), "").unwrap();
        assert!(!page.contains("<DeleteMarker>"), "something was deleted: {page}");
        for version in page.split("<Version>").skip(1) {
            *versions.entry(element(version, "Key").to_owned()).or_default() += 1;
        }
        if !page.contains("<IsTruncated>true") {
            break;
        }
        marker = element(&page, "NextKeyMarker").replace('/', "%2F");
    }
    let journal = versions.keys().filter(|key| key.starts_with("runs/r/journal/")).count();
    let log = versions.keys().filter(|key| key.contains("/log/")).count();
    assert!(journal >= 3 && log >= 10, "{journal} records, {log} segments: {versions:?}");
    let twice: Vec<_> = versions.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "written more than once: {twice:?}");
}

fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    let (_, rest) = xml.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split_once("</").map_or(rest, |(text, _)| text)
}

#[test]
fn of_64_racers_from_two_processes_one_wins_each_of_1000_slots() {
    let minio = Minio::shared().unwrap();
    let bucket = minio.create_bucket("race").unwrap();
    let racers = [0, 32].map(|first: usize| {
        Command::new(env!("CARGO_BIN_EXE_racer"))
            .args([&minio.endpoint(), &bucket, &first.to_string(), "32"])
            .env("AWS_ACCESS_KEY_ID", minio.access_key())
            .env("AWS_SECRET_ACCESS_KEY", minio.secret_key())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut holders = BTreeMap::<usize, BTreeSet<usize>>::new();
    let mut winners = BTreeMap::<usize, Vec<usize>>::new();
    let mut tries = 0;
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let words: Vec<usize> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            let [racer, slot, holder] = words[..] else { panic!("{line}") };
            tries += 1;
            holders.entry(slot).or_default().insert(holder);
            if racer == holder {
                winners.entry(slot).or_default().push(racer);
            }
        }
    }
    assert_eq!((holders.len(), tries), (1000, 20 * 64 + 980 * 8));
    assert!(holders.values().all(|holders| holders.len() == 1), "all see one holder: {holders:?}");
    assert!(winners.values().all(|winners| winners.len() == 1) && winners.len() == 1000, "{winners:?}");
    let of_first = winners.values().filter(|winners| winners[0] < 32).count();
    assert!((1..1000).contains(&of_first), "both processes raced: {of_first} to {}", 1000 - of_first);
}

fn config(minio: &Minio, bucket: &str, credentials: &Path) -> S3Config {
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        minio.access_key(),
        minio.secret_key()
    );
    std::fs::write(credentials, text).unwrap();
    S3Config {
        bucket: bucket.to_owned(),
        prefix: "some/prefix".to_owned(),
        region: None,
        endpoint: Some(minio.endpoint()),
        path_style: true,
        credentials_file: Some(credentials.to_owned()),
        requests_in_flight: 16,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_up_in_parts_and_long_listings_are_whole() {
    let minio = Minio::shared().unwrap();
    let bucket = minio.create_bucket("large").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let objects =
        S3Objects::connect(&config(&minio, &bucket, &dir.path().join("credentials"))).await.unwrap();
    objects.ensure_bucket().await.unwrap();
    let body: Vec<u8> =
        (0..40u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = dir.path().join("large");
    for bytes in [0, 16 << 20, (16 << 20) + 1, body.len()] {
        std::fs::write(&path, &body[..bytes]).unwrap();
        objects.put_file("large", &path).await.unwrap();
        assert_eq!(objects.size("large").await.unwrap(), Some(bytes as u64));
        assert!(objects.get("large").await.unwrap().unwrap() == body[..bytes], "{bytes} bytes");
    }
    let found = objects.get_range("large", 15 << 20, 9 << 20).await.unwrap();
    assert!(found == body[15 << 20..24 << 20]);
    let failed = objects.get_range("large", 39 << 20, 2 << 20).await.unwrap_err();
    assert!(matches!(failed.kind, RepoErrorKind::Damaged { .. }), "{failed}");
    let failed = objects.get_range("large", 41 << 20, 1).await.unwrap_err();
    assert!(matches!(failed.kind, RepoErrorKind::Damaged { .. }), "{failed}");

    let keys: Vec<String> = (0..1_100).map(|index| format!("many/{index:05}/k")).collect();
    let puts = keys.iter().map(|key| objects.put(key, bytes::Bytes::from_static(b"x")));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    let listed = objects.list("many/", None).await.unwrap();
    assert_eq!(listed.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), keys);
    assert_eq!(objects.list("many/", Some("many/01000/k")).await.unwrap().len(), 99);
    assert_eq!(objects.list_folders("many/").await.unwrap().len(), 1_100);
}

#[test]
fn what_stands_in_the_way_is_said() {
    let minio = Minio::shared().unwrap();
    let bucket = minio.create_bucket("refused").unwrap();
    let mut world = World::on_minio(Size { sites: 6, rows_per_site: 20 }, seed(21), &minio, &bucket);
    let commands: [&[&str]; 3] = [&["capture", "--once"], &["sites"], &["detect", "--from", "1h ago"]];
    world.muster(&["capture", "init"]).ok();

    world.set("AWS_SECRET_ACCESS_KEY", Some("wrong-secret"));
    for command in commands {
        let ran = world.muster(command).code(1);
        let ran = ran.says(&["SignatureDoesNotMatch", &bucket, "check the credentials", "AWS_ACCESS_KEY_ID"]);
        assert!(!ran.stderr.contains("wrong-secret") && !ran.stdout.contains("wrong-secret"), "{ran}");
    }
    world.set("AWS_ACCESS_KEY_ID", Some("nobody"));
    for command in commands {
        world.muster(command).code(1).says(&["InvalidAccessKeyId", &bucket, "check the credentials"]);
    }
    world.set("AWS_ACCESS_KEY_ID", None);
    world.set("AWS_SECRET_ACCESS_KEY", None);
    world.set("AWS_EC2_METADATA_DISABLED", Some("true"));
    world.set("HOME", Some(&world.dir.display().to_string()));
    for command in commands {
        world.muster(command).code(1).says(&["no credentials", "set AWS_ACCESS_KEY_ID"]);
    }

    // No bucket: whoever only reads says so, capture makes it.
    let world =
        World::on_minio(Size { sites: 6, rows_per_site: 20 }, seed(22), &minio, &format!("{bucket}-none"));
    world.muster(&["sites"]).code(1).says(&["NoSuchBucket", &bucket, "check the bucket's name"]);
    world.capture();
    world.muster(&["sites"]).ok();
}

#[test]
fn a_full_bucket_stops_the_run_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let room = Mount::small_disk(&disk, 256 * 1024);
    let minio = Minio::own_at(&disk).unwrap();
    let bucket = minio.create_bucket("full").unwrap();
    let probe = format!("/{}/probe", minio.create_bucket("room").unwrap());
    let world = World::on_minio(SIZE, seed(23), &minio, &bucket);
    world.capture();
    let incident = Incident::delete(&world, VICTIMS, Duration::ZERO);
    world.capture_once();
    incident.detect(&world);
    incident.plan(&world, &[]).ok();

    // Files of others fill the disk up.
    let filler = disk.join("filler");
    let full = std::io::copy(&mut std::io::repeat(7), &mut std::fs::File::create(&filler).unwrap());
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let says = ["XMinioStorageFull", &bucket, "free space", "run the command again"];
    let refused = world.muster(&["apply", "plan.json", "--run", "r"]).code(1).says(&says);
    assert_eq!(refused.stderr.matches("free space").count(), 1, "{refused}");
    world.muster(&["capture", "--once", "--snapshot"]).code(1).says(&says);
    std::fs::remove_file(&filler).unwrap();
    // The server looks at its disk now and then only.
    until("the server takes objects again", || minio.request("PUT", &probe, "x").is_ok());
    let again = world.muster(&["resume", "r"]);
    if again.code == Some(2) {
        // Not even its first record had room: the run never was.
        world.muster(&["apply", "plan.json", "--run", "r"]).ok();
    }
    incident.is_undone(&world, "r");
    world.capture_once();
    drop(minio);
    drop(room);
}

/// A world whose victims are deleted and planned for, on a server that may be killed.
fn planned(minio: &Minio, default_seed: u64) -> (World, Incident) {
    let bucket = minio.create_bucket("killed").unwrap();
    let world = World::on_minio(SIZE, seed(default_seed), minio, &bucket);
    world.capture();
    let incident = Incident::delete(&world, VICTIMS, Duration::ZERO);
    world.capture_once();
    incident.detect(&world);
    incident.plan(&world, &["--proof", "full"]).ok();
    (world, incident)
}

#[test]
fn a_run_rides_out_a_crash_of_the_server() {
    let mut minio = Minio::own().unwrap();
    let (mut world, incident) = planned(&minio, 24);
    world.follow();
    let mut engine = Engine::start(&world, "r", &["apply", "plan.json", "--run", "r"]);
    for published in [2, 12] {
        assert!(engine.wait_for(Moment::Published(published)), "it ended before {published} publishes");
        minio.kill().unwrap();
        minio.start().unwrap();
    }
    engine.finish().ok().says(&["6 sites restored, 0 not"]);
    world.stop_following();
    incident.is_undone(&world, "r");
}

#[test]
fn a_run_ends_with_a_long_outage_and_is_resumed() {
    let mut minio = Minio::own().unwrap();
    let (world, incident) = planned(&minio, 25);
    let mut engine = Engine::start(&world, "r", &["apply", "plan.json", "--run", "r"]);
    assert!(engine.wait_for(Moment::Published(3)), "it ended before it was harmed");
    minio.kill().unwrap();
    let ended = engine.finish().code(1);
    ended.says(&["check that the object store runs", "muster resume r"]);
    let ended = world.muster(&["sites"]).code(1);
    ended.says(&["check that the object store runs", "nothing is lost"]);
    minio.start().unwrap();
    world.muster(&["resume", "r"]).ok();
    incident.is_undone(&world, "r");
}

#[test]
fn a_private_authority_is_trusted_where_it_is_named() {
    let tls = Tls::create().unwrap();
    let minio = Minio::own_with_tls(&tls).unwrap();
    let bucket = minio.create_bucket("tls").unwrap();
    let mut world = World::on_minio(Size { sites: 6, rows_per_site: 20 }, seed(26), &minio, &bucket);
    world.muster(&["capture", "init"]).ok();
    let refused = |world: &World, says: &[&str]| {
        world.muster(&["capture", "--once"]).code(1).says(says);
    };
    refused(&world, &["is not trusted", "UnknownIssuer", "set AWS_CA_BUNDLE"]);
    // Another authority, of the same name.
    let other = Tls::create().unwrap();
    world.set("AWS_CA_BUNDLE", Some(&other.authority().display().to_string()));
    refused(&world, &["is not trusted", "set AWS_CA_BUNDLE"]);
    world.set("AWS_CA_BUNDLE", Some("nowhere.pem"));
    refused(&world, &["AWS_CA_BUNDLE", "nowhere.pem", "PEM file"]);

    let authority = tls.authority().display().to_string();
    for name in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        world.set("AWS_CA_BUNDLE", None);
        world.set(name, Some(&authority));
        world.capture_once();
        world.muster(&["sites"]).ok().says(&["site:"]);
    }
}
