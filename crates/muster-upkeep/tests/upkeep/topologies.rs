//! Versions of the topology: stored once each, and pruned when nothing needs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_repo::{MemoryObjects, Objects, RepoErrorKind, Repository, retention, topologies};
use muster_types::format::FORMAT;
use muster_types::retention::{PlanHold, Retention};
use muster_types::{Digest, PlanId, Timestamp};
use muster_upkeep::prune::prune;

const DAY: i64 = 86_400_000_000;
const POLICY: Retention =
    Retention { every_moment_days: 2, daily_days: 6, grace_hours: 12, day_seconds: Retention::DAY_SECONDS };

fn at(days: i64) -> Timestamp {
    Timestamp::EPOCH.plus_micros((20_000 + days) * DAY)
}

async fn repository() -> Repository {
    let objects: Arc<dyn Objects> = Arc::new(MemoryObjects::new());
    Repository::create(objects, at(0)).await.unwrap()
}

async fn store(repository: &Repository, text: &str, day: i64) -> (u64, bool, Digest) {
    let lists = BTreeMap::from([("sites.txt".to_owned(), format!("site-of-{text}\n"))]);
    let (kept, new) = topologies::store(repository, (text, &lists), (at(day), "a test")).await.unwrap();
    assert!(kept.is_whole());
    (kept.version, new, kept.digest)
}

async fn versions(repository: &Repository) -> Vec<u64> {
    topologies::all(repository).await.unwrap().iter().map(|kept| kept.version).collect()
}

#[tokio::test]
async fn a_version_is_stored_when_it_differs_from_the_newest() {
    let repository = repository().await;
    let (first, new, digest) = store(&repository, "fleet = 'a'", 0).await;
    assert_eq!((first, new), (1, true));
    assert_eq!(store(&repository, "fleet = 'a'", 1).await, (1, false, digest));
    assert_eq!(store(&repository, "fleet = 'b'", 2).await.0, 2);
    // What was the topology once and is again is a version of its own: each says since when it was.
    assert_eq!(store(&repository, "fleet = 'a'", 3).await, (3, true, digest));
    let other_list = BTreeMap::from([("sites.txt".to_owned(), "other\n".to_owned())]);
    let text = ("fleet = 'a'", &other_list);
    assert_eq!(topologies::store(&repository, text, (at(4), "a test")).await.unwrap().0.version, 4);
    let newest = topologies::newest(&repository).await.unwrap().unwrap();
    assert_eq!((newest.version, newest.site_lists), (4, other_list));
    // All at once: none is lost, and none doubled.
    let at_once = (0..8).map(|number| {
        let repository = repository.clone();
        tokio::spawn(async move { store(&repository, &format!("fleet = 'x{}'", number / 2), 5).await.0 })
    });
    let mut numbers: Vec<u64> =
        futures::future::join_all(at_once).await.into_iter().map(Result::unwrap).collect();
    numbers.sort_unstable();
    let last = *versions(&repository).await.last().unwrap();
    assert_eq!(last, *numbers.last().unwrap());
    assert!((8..=12).contains(&last), "four texts are four versions at least, and eight at most: {last}");
}

#[tokio::test]
async fn a_password_is_never_stored() {
    let repository = repository().await;
    let text = "fleet = 'a'\n[shards.a]\nconnection = 'postgresql://muster:hunter2@db/x'\n";
    let refused =
        topologies::store(&repository, (text, &BTreeMap::new()), (at(0), "a test")).await.unwrap_err();
    assert_eq!(refused.kind, RepoErrorKind::Misuse);
    assert!(refused.message.contains("line 3") && refused.hint.contains("PGPASSFILE"), "{refused}");
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
    assert_eq!(versions(&repository).await, [] as [u64; 0]);
}

#[tokio::test]
async fn versions_that_nothing_needs_are_pruned() {
    let repository = repository().await;
    let mut digests = Vec::new();
    for version in 0..5 {
        digests.push(store(&repository, &format!("fleet = 'v{version}'"), version).await.2);
    }
    let hold = PlanHold {
        format: FORMAT,
        plan: PlanId::new("plan-1").unwrap(),
        title: "a test".to_owned(),
        created_at: at(8),
        expires_at: at(30),
        sites: None,
        topology: Some(digests[1]),
        objects: Vec::new(),
    };
    retention::hold_plan(&repository, &hold).await.unwrap();
    // Six days are promised: version 4 was replaced by 5 on day 4, and was the topology of moments before.
    let pruned = prune(&repository, &POLICY, at(10), false).await.unwrap();
    assert_eq!(pruned.condemned["a topology of no promised moment"].objects, 2, "{pruned:?}");
    assert_eq!(versions(&repository).await, [1, 2, 3, 4, 5], "nothing goes within the grace");
    prune(&repository, &POLICY, at(10).plus_micros(DAY / 2), false).await.unwrap();
    assert_eq!(versions(&repository).await, [2, 4, 5]);
    // The plan expires, and what was the topology then is promised no more; the newest stays for ever.
    for day in 31..33 {
        prune(&repository, &POLICY, at(day), false).await.unwrap();
    }
    assert_eq!(versions(&repository).await, [5]);
    assert_eq!(store(&repository, "fleet = 'v5'", 40).await.0, 6);
}
