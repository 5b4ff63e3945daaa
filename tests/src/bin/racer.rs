//! One of several processes that race for slots of one bucket.
//!
//! `racer ENDPOINT BUCKET FIRST COUNT`: racers FIRST to FIRST + COUNT try to create slots, each in an order of its own,
//! and say a line for each try: racer, slot, and whose body the slot has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]
#![allow(clippy::print_stdout, reason = "what it says is what it is for")]

use std::sync::Arc;

use bytes::Bytes;
use muster_repo::{Creation, Objects as _, S3Config, S3Objects};

/// All slots.
const SLOTS: usize = 1000;

/// For the first of them everyone races.
const SLOTS_OF_ALL: usize = 20;

/// For each other slot one racer in so many does.
const ONE_IN: usize = 8;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, bucket, first, count] = &words[..] else { panic!("racer ENDPOINT BUCKET FIRST COUNT") };
    let (first, count): (usize, usize) = (first.parse().unwrap(), count.parse().unwrap());
    let config = S3Config {
        bucket: bucket.clone(),
        prefix: String::new(),
        region: None,
        endpoint: Some(endpoint.clone()),
        path_style: true,
        credentials_file: None,
        requests_in_flight: count,
    };
    let objects = Arc::new(S3Objects::connect(&config).await.unwrap());
    let mut racers = tokio::task::JoinSet::new();
    for racer in first..first + count {
        let objects = Arc::clone(&objects);
        racers.spawn(async move { race(&objects, racer).await });
    }
    for lines in racers.join_all().await {
        print!("{lines}");
    }
}

async fn race(objects: &S3Objects, racer: usize) -> String {
    let mut lines = String::new();
    let races = |slot: &usize| *slot < SLOTS_OF_ALL || (slot + racer).is_multiple_of(ONE_IN);
    // The slots of all come first, all at once; for the others each racer begins at another one.
    let others =
        (0..SLOTS - SLOTS_OF_ALL).map(|slot| (slot + racer * 131) % (SLOTS - SLOTS_OF_ALL) + SLOTS_OF_ALL);
    for slot in (0..SLOTS_OF_ALL).chain(others).filter(races) {
        let body = Bytes::from(racer.to_string());
        let holder = match objects.create(&format!("slot/{slot:04}"), body.clone()).await.unwrap() {
            Creation::Mine => body,
            Creation::Other(found) => found,
        };
        lines.push_str(&format!("{racer} {slot} {}\n", String::from_utf8_lossy(&holder)));
    }
    lines
}
