//! The chain has one winner for each slot, and says where it is broken.

use std::sync::Arc;

use muster_repo::memory::{AttemptFault, Fault, Faulty};
use muster_repo::{Chain, ChainError, Objects, RepoError, RepoErrorKind, Repository, SpooledSegment, keys};
use muster_types::Incarnation;

use crate::model::{Shard, Write, at, read_catalog, repository, shard, site};

async fn open(repository: &Repository, incarnation: &Incarnation) -> Result<Chain, RepoError> {
    Chain::open(repository, &shard(), incarnation).await
}

async fn watermark(chain: &mut Chain, from: u64, to: u64, writer: &str) -> Result<u64, ChainError> {
    let head = chain.append(SpooledSegment::empty(), at(from), at(to), (0, 0), writer).await?;
    Ok(head.sequence)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_racing_writers_one_wins_each_slot() {
    let (_, repository, incarnation) = repository().await;
    for round in 0..20u64 {
        let mut chains = Vec::new();
        for _ in 0..8 {
            chains.push(open(&repository, &incarnation).await.unwrap());
        }
        let mut racers = tokio::task::JoinSet::new();
        for (racer, mut chain) in chains.into_iter().enumerate() {
            let writer = format!("writer-{racer}");
            racers.spawn(async move { watermark(&mut chain, round, round + 1, &writer).await });
        }
        let outcomes = racers.join_all().await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let lost = outcomes.iter().filter(|outcome| matches!(outcome, Err(ChainError::Lost { .. }))).count();
        assert_eq!((won, lost), (1, 7), "{outcomes:?}");
    }
    let head = open(&repository, &incarnation).await.unwrap().head().unwrap();
    assert_eq!((head.sequence, head.boundary), (20, at(20)));
    let catalog = read_catalog(&repository, &[]).await;
    let history = &catalog.shards[&shard()].incarnations[0];
    assert_eq!((history.segments.len(), history.gaps.len()), (20, 0));
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_ones_own() {
    let (objects, repository, incarnation) = repository().await;
    let mut chain = open(&repository, &incarnation).await.unwrap();
    objects.fail_creates([AttemptFault::LostAnswer]);
    assert_eq!(watermark(&mut chain, 0, 1, "w").await.unwrap(), 1);
    assert_eq!(open(&repository, &incarnation).await.unwrap().head(), chain.head());
}

#[tokio::test]
async fn after_an_error_the_chain_must_be_opened_again() {
    let (objects, _, incarnation) = repository().await;
    let inner: Arc<dyn Objects> = Arc::<muster_repo::MemoryObjects>::clone(&objects);
    let failing = Faulty::new(inner, |request| {
        let lost = RepoError::new(RepoErrorKind::Unavailable, "a fault on purpose", "none");
        (request.method == "create").then_some(Fault::After(lost))
    });
    let repository = Repository::open(Arc::new(failing)).await.unwrap();
    let mut chain = open(&repository, &incarnation).await.unwrap();
    assert!(watermark(&mut chain, 0, 1, "w").await.is_err());
    let refused = watermark(&mut chain, 0, 2, "w").await.unwrap_err();
    assert!(matches!(&refused, ChainError::Repo(error) if error.kind == RepoErrorKind::Misuse), "{refused}");
    // It had landed.
    assert_eq!(open(&repository, &incarnation).await.unwrap().head().unwrap().sequence, 1);
}

#[tokio::test]
async fn a_head_is_found_without_reading_the_whole_log() {
    let (objects, repository, incarnation) = repository().await;
    let mut chain = open(&repository, &incarnation).await.unwrap();
    for position in 0..50 {
        watermark(&mut chain, position, position + 1, "w").await.unwrap();
    }
    let before = objects.requests().gets;
    let again = Chain::open_from(&repository, &shard(), &incarnation, 48).await.unwrap();
    assert_eq!(again.head(), chain.head());
    assert_eq!(objects.requests().gets - before, 2);
}

#[tokio::test]
async fn changes_outside_their_segment_are_refused() {
    let (_, repository, incarnation) = repository().await;
    let mut past = Shard::new();
    for key in 0..4 {
        past.write(&Write { site: 1, table: 0, key, text: Some(None), new_key: key, marked: false });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut chain = open(&repository, &incarnation).await.unwrap();
    let spooled = past.spool(dir.path(), 0, 4, None);
    let refused = chain.append(spooled, at(1), at(4), (0, 0), "w").await.unwrap_err();
    assert!(refused.to_string().contains("outside their segment"), "{refused}");
}

#[tokio::test]
async fn a_lost_or_changed_index_is_a_gap_and_the_rest_goes_on() {
    for damage in ["remove", "truncate", "replace"] {
        let (objects, repository, incarnation) = repository().await;
        let mut past = Shard::new();
        for key in 0..9 {
            past.write(&Write { site: 1, table: 0, key, text: Some(None), new_key: key, marked: false });
        }
        let mut chain = open(&repository, &incarnation).await.unwrap();
        past.log(&mut chain, &[0, 3, 6, 9], None).await;
        // Segments: 0..0, 0..3, 3..6, 6..9; the third is damaged.
        let key = keys::segment_index(&shard(), &incarnation, 3);
        let other = objects.get(&keys::segment_index(&shard(), &incarnation, 2)).await.unwrap().unwrap();
        match damage {
            "remove" => assert!(objects.remove(&key)),
            "truncate" => assert!(objects.damage(&key, |bytes| bytes.truncate(20))),
            _ => assert!(objects.damage(&key, |bytes| *bytes = other.to_vec())),
        }
        let catalog = read_catalog(&repository, &[site(1)]).await;
        let history = &catalog.shards[&shard()].incarnations[0];
        let sequences: Vec<u64> = history.segments.iter().map(|segment| segment.sequence).collect();
        assert_eq!(sequences, [1, 2, 4], "{damage}");
        let gap = &history.gaps[0];
        assert_eq!((gap.after, gap.before), (at(3), Some(at(6))), "{damage}");
        assert!(gap.reason.contains(&key), "{}", gap.reason);
        assert!(
            open(&repository, &incarnation).await.is_err(),
            "{damage}: the head rests on what is damaged"
        );
    }
}

#[tokio::test]
async fn a_damaged_head_ends_the_history() {
    let (objects, repository, incarnation) = repository().await;
    let mut chain = open(&repository, &incarnation).await.unwrap();
    for position in 0..3 {
        watermark(&mut chain, position, position + 1, "w").await.unwrap();
    }
    let key = keys::segment_index(&shard(), &incarnation, 3);
    assert!(objects.damage(&key, |bytes| bytes.truncate(9)));
    let catalog = read_catalog(&repository, &[]).await;
    let history = &catalog.shards[&shard()].incarnations[0];
    assert_eq!(history.segments.len(), 2);
    assert_eq!((history.gaps[0].after, history.gaps[0].before), (at(2), None));
}

#[tokio::test]
async fn a_new_incarnation_ends_the_one_before() {
    let (_, repository, first) = repository().await;
    let mut chain = open(&repository, &first).await.unwrap();
    watermark(&mut chain, 0, 5, "w").await.unwrap();
    let second =
        repository.begin_incarnation(&shard(), at(7).at, "the shard was rewound", Some(at(5))).await.unwrap();
    assert!(second.incarnation > first);
    let catalog = read_catalog(&repository, &[]).await;
    let history = &catalog.shards[&shard()];
    assert_eq!(history.incarnations.len(), 2);
    let gap = &history.incarnations[0].gaps[0];
    assert_eq!((gap.after, gap.before), (at(5), None));
    assert!(gap.reason.contains("rewound"), "{}", gap.reason);
}
