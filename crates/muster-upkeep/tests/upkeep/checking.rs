//! What is damaged is found within the stated share of checks.

use std::collections::BTreeSet;

use muster_repo::RepoErrorKind;
use muster_repo::check::check;
use muster_repo::keys;
use muster_types::retention::Retention;
use muster_upkeep::compact::compact_shard;
use muster_upkeep::fold::fold;
use muster_upkeep::prune::prune;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compaction::random_log;
use crate::seeds;
use crate::world::World;

fn named(error: &muster_repo::RepoError) -> String {
    match &error.kind {
        RepoErrorKind::Damaged { key, .. } | RepoErrorKind::NotFound { key } => key.clone(),
        other => panic!("{other:?}"),
    }
}

async fn world(rng: &mut ChaCha8Rng) -> World {
    let world = random_log(rng, 80).await;
    let dir = tempfile::tempdir().unwrap();
    compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_damage_is_found_within_the_budget() {
    for seed in seeds(10) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = world(&mut rng).await;
        let share = [0.1, 0.25, 0.5][rng.random_range(0..3)];
        let rounds = (1.0 / share) as u32;
        for _ in 0..rng.random_range(0..rounds) {
            let checked = check(&world.repository, share, world.now).await.unwrap();
            assert_eq!(checked.damages, [], "seed {seed}: nothing was damaged yet");
        }
        let keys: Vec<String> =
            world.memory.keys().into_iter().filter(|key| key.starts_with("shards/")).collect();
        let key = keys[rng.random_range(0..keys.len())].clone();
        let removed = rng.random_ratio(1, 4) && !key.contains("/incarnations/");
        if removed {
            world.memory.remove(&key);
        } else {
            world.memory.damage(&key, |bytes| {
                let place = rng.random_range(0..bytes.len());
                bytes[place] ^= 0x20;
            });
        }
        let mut found = BTreeSet::new();
        for _ in 0..rounds {
            let checked = check(&world.repository, share, world.now).await.unwrap();
            found.extend(checked.damages.iter().map(named));
        }
        let noted = muster_repo::check::progress(&world.repository).await.unwrap().unwrap().damages;
        assert_eq!(
            noted.is_empty(),
            found.is_empty(),
            "seed {seed}: {noted:?} are noted for whoever asks later"
        );
        // A root that is gone leaves what nothing names; a letter's case in a reason is as good as before.
        let unseen = removed && (key.contains("root.json") || key.ends_with(".json.zst"))
            || key.contains("/incarnations/");
        assert!(unseen || !found.is_empty(), "seed {seed}: {key} was not found within {rounds} checks");
        let elsewhere: Vec<&String> = found.iter().filter(|found| **found != key).collect();
        assert!(elsewhere.is_empty(), "seed {seed}: {key} is damaged, and {elsewhere:?} is said to be");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_end_and_begin_again() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let world = world(&mut rng).await;
    let whole = check(&world.repository, 1.0, world.now).await.unwrap();
    assert_eq!((whole.progress.rounds, whole.progress.reached.clone()), (1, None));
    assert_eq!(whole.objects, world.memory.keys().len() as u64 - 1, "all but the note of it");
    let mut objects = 0;
    let mut checks = 0;
    loop {
        let part = check(&world.repository, 0.3, world.now).await.unwrap();
        (objects, checks) = (objects + part.objects, checks + 1);
        if part.progress.reached.is_none() || part.progress.rounds > 1 {
            break;
        }
    }
    assert!(objects >= whole.objects && checks <= 4, "{objects} objects in {checks} checks");
    let notes = world.memory.keys().into_iter().filter(|key| key.starts_with("check/")).count();
    assert_eq!(notes, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_gone_is_told_by_what_is_left() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let gone = |world: &World, key: String| {
        let world = world.repository.clone();
        async move {
            let found = check(&world, 1.0, muster_types::Timestamp::EPOCH).await.unwrap();
            assert_eq!(found.damages.iter().map(named).collect::<Vec<_>>(), [key]);
        }
    };
    // An index in the middle of the chain.
    let chain = random_log(&mut rng, 40).await;
    let key = keys::segment_index(&chain.shard, &chain.incarnation, 20);
    chain.memory.remove(&key);
    gone(&chain, key).await;

    // The root of a compacted segment whose sources were pruned.
    let mut world = world(&mut rng).await;
    let policy = Retention {
        every_moment_days: 400,
        daily_days: 400,
        grace_hours: 0,
        day_seconds: Retention::DAY_SECONDS,
    };
    for _ in 0..3 {
        prune(&world.repository, &policy, world.now, false).await.unwrap();
        world.pass(1);
    }
    assert_eq!(check(&world.repository, 1.0, world.now).await.unwrap().damages, []);
    let is_root = |key: &String| key.contains("/compacted/level-");
    let key = world.memory.keys().into_iter().find(is_root).unwrap();
    assert!(!world.memory.keys().contains(&keys::segment_index(&world.shard, &world.incarnation, 3)));
    world.memory.remove(&key);
    gone(&world, key).await;

    // The root of a snapshot that another one was folded from.
    let world = random_log(&mut rng, 40).await;
    let dir = tempfile::tempdir().unwrap();
    let folded = fold(&world.repository, &world.shard, None, (dir.path(), world.now)).await.unwrap().unwrap();
    let key = keys::snapshot(&world.shard, &world.incarnation, &folded.from) + keys::ROOT;
    world.memory.remove(&key);
    gone(&world, key).await;
}
