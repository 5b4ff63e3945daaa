//! Records of alarms over an object store that fails: each that is in the chain was told once.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed test may say so by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_repo::memory::{Fault, Faulty};
use muster_repo::{AlarmChain, MemoryObjects, RepoError, RepoErrorKind, Repository};
use muster_serve::agreement::Agreement;
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, Condition};

fn unavailable() -> RepoError {
    RepoError::new(RepoErrorKind::Unavailable, "no answer", "try again")
}

/// Fails as a counter says, before or behind the effect.
fn failing(memory: &Arc<MemoryObjects>, seed: u64) -> Faulty {
    let asked = AtomicU64::new(0);
    Faulty::new(memory.clone(), move |request| {
        if !request.key.starts_with("alarms") {
            return None;
        }
        // A linear congruence is random enough, and the same each time.
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let drawn = (seed + number).wrapping_mul(6_364_136_223_846_793_005) >> 33;
        match (drawn % 6, request.method) {
            (0, _) => Some(Fault::Before(unavailable())),
            (1, "create") => Some(Fault::After(unavailable())),
            _ => None,
        }
    })
}

fn condition(subject: u64) -> Condition {
    Condition {
        name: AlarmName::CaptureLag,
        subject: format!("shard-{subject}"),
        since: Timestamp::EPOCH,
        text: "late".to_owned(),
        way_out: "look".to_owned(),
    }
}

#[tokio::test]
async fn each_record_is_told_once_whatever_fails() {
    let (mut failures, mut told_in_all) = (0, 0);
    for seed in 0..200 {
        let memory = Arc::new(MemoryObjects::new());
        let whole = Repository::create(memory.clone(), Timestamp::EPOCH).await.unwrap();
        let faulty = Repository::open(Arc::new(failing(&memory, seed))).await.unwrap();
        let mut servers = ["a", "b"].map(|name| (name, Agreement::new(&faulty, name)));
        let mut told: Vec<(u64, String)> = Vec::new();
        for look in 0..40 {
            for (name, server) in &mut servers {
                // What is wrong changes, and then stays for as long as it takes to agree.
                let found = if look < 20 { (0..look % 3).map(condition).collect() } else { vec![] };
                server.saw(&[AlarmName::CaptureLag], found);
                let written = server
                    .write(Timestamp::EPOCH, |record| told.push((record.sequence, (*name).to_owned())))
                    .await;
                failures += u32::from(written.is_err());
            }
        }
        told.sort_unstable();
        let records = AlarmChain::of(&whole).all().await.unwrap();
        let wanted: Vec<(u64, String)> =
            records.iter().map(|record| (record.sequence, record.server.clone())).collect();
        assert_eq!(told, wanted, "seed {seed}");
        assert!(records.last().unwrap().standing.is_empty(), "seed {seed}");
        told_in_all += told.len();
    }
    assert!(failures > 1_000 && told_in_all > 1_000, "{failures} failures, {told_in_all} records");
}
