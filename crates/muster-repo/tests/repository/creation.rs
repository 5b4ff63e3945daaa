//! Create-if-absent recognises its own first try.

use bytes::Bytes;
use muster_repo::memory::AttemptFault::{Conflict, LostAnswer, LostRequest};
use muster_repo::{Creation, MemoryObjects, Objects, RepoErrorKind};

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_recognised() {
    let objects = MemoryObjects::new();
    let body = Bytes::from_static(b"mine");
    objects.fail_creates([LostAnswer]);
    assert_eq!(objects.create("k", body.clone()).await.unwrap(), Creation::Mine);
    assert_eq!(objects.get("k").await.unwrap(), Some(body.clone()));
    assert_eq!(objects.requests().writes, 1, "what landed is not sent again");

    objects.fail_creates([LostRequest, Conflict]);
    assert_eq!(objects.create("l", body.clone()).await.unwrap(), Creation::Mine);
    assert_eq!(objects.get("l").await.unwrap(), Some(body));
}

#[tokio::test]
async fn the_write_of_another_is_not_taken_for_ones_own() {
    let objects = MemoryObjects::new();
    let theirs = Bytes::from_static(b"theirs");
    objects.create("k", theirs.clone()).await.unwrap();
    for faults in [vec![], vec![LostAnswer], vec![LostRequest, LostAnswer]] {
        objects.fail_creates(faults);
        let found = objects.create("k", Bytes::from_static(b"mine")).await.unwrap();
        assert_eq!(found, Creation::Other(theirs.clone()));
    }
    assert_eq!(objects.get("k").await.unwrap(), Some(theirs));
}

#[tokio::test(start_paused = true)]
async fn retries_are_bounded() {
    let objects = MemoryObjects::new();
    objects.fail_creates([LostRequest; 100]);
    let failed = objects.create("k", Bytes::from_static(b"mine")).await.unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::Unavailable);
    assert!(objects.requests().writes < 20, "{:?}", objects.requests());
}
