//! What is damaged is found within the stated share of checks.

use std::collections::BTreeSet;

use muster_repo::RepoErrorKind;
use muster_repo::check::check;
use muster_upkeep::compact::compact_shard;
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
