//! A folded snapshot is the truth, and a lie of either side is found.

use muster_repo::catalog;
use muster_types::Timestamp;
use muster_upkeep::compact::compact_shard;
use muster_upkeep::fold::{Folded, compare, fold};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compaction::{crashing, random_log};
use crate::seeds;
use crate::world::{SITES, World, site};

async fn fold_at(world: &World, at: Option<Timestamp>) -> Option<Folded> {
    let dir = tempfile::tempdir().unwrap();
    fold(&world.repository, &world.shard, at, (dir.path(), world.now)).await.unwrap()
}

/// Some more of the log.
async fn go_on(rng: &mut ChaCha8Rng, world: &mut World) {
    for _ in 0..rng.random_range(1..40) {
        (0..rng.random_range(0..4)).for_each(|_| world.write(rng));
        if rng.random_ratio(1, 20) {
            world.truncate(rng);
        }
        let reread = rng.random_ratio(1, 20);
        world.poll(rng, reread).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folded_snapshot_holds_what_the_shard_held() {
    let mut folds = 0;
    for seed in seeds(12) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = random_log(&mut rng, 60).await;
        for _ in 0..6 {
            if rng.random_ratio(1, 3) {
                let dir = tempfile::tempdir().unwrap();
                compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
            }
            let span = world.now.as_micros() - world.ends()[0].at.as_micros();
            let at = world.now.plus_micros(-rng.random_range(0..span));
            if let Some(folded) = fold_at(&world, rng.random_ratio(1, 3).then_some(at)).await {
                let truth = world.slices_at(folded.boundary.position);
                assert_eq!(world.slices_of(&folded.snapshot).await, truth, "seed {seed}: {folded:?}");
                assert_eq!(folded.rows, truth.values().map(|(rows, _)| rows).sum::<u64>());
                let root = catalog::snapshot_root(
                    &world.repository,
                    &world.shard,
                    &world.incarnation,
                    &folded.snapshot,
                );
                assert_eq!(root.await.unwrap().folded_from, Some(folded.from));
                world.has_snapshot(folded.snapshot, folded.boundary);
                folds += 1;
            }
            go_on(&mut rng, &mut world).await;
        }
        // Any moment, before and behind folds, comes to where it came before, whole.
        let catalog = world.catalog().await;
        for _ in 0..60 {
            let from = world.snapshots[0].1.at;
            let at = from.plus_micros(rng.random_range(0..=world.now.as_micros() - from.as_micros()));
            let judged = world.judge(&catalog, rng.random_range(0..SITES), at).await.unwrap();
            assert_eq!(Some(judged.point.boundary.position), world.expected(at), "seed {seed}: {at}");
        }
    }
    assert!(std::env::var_os("MUSTER_SEED").is_some() || folds > 30, "{folds}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_ends_anywhere_leaves_no_snapshot() {
    for seed in seeds(2) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = random_log(&mut rng, 40).await;
        let before = world.catalog().await;
        let mut ended = 0;
        for count in 0.. {
            let repository = crashing(&world, count).await;
            let dir = tempfile::tempdir().unwrap();
            match fold(&repository, &world.shard, None, (dir.path(), world.now)).await {
                Ok(folded) => {
                    assert!(folded.is_some(), "seed {seed}");
                    break;
                }
                Err(_) => ended += 1,
            }
            assert_eq!(world.catalog().await, before, "seed {seed}: it ended after {count} requests");
        }
        assert!(ended > 40, "seed {seed}: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_not_folded_again() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut world = random_log(&mut rng, 20).await;
    go_on(&mut rng, &mut world).await;
    assert!(fold_at(&world, None).await.is_some());
    assert_eq!(fold_at(&world, None).await, None);
    let dir = tempfile::tempdir().unwrap();
    let before = fold(&world.repository, &world.shard, Some(Timestamp::EPOCH), (dir.path(), world.now)).await;
    assert!(before.unwrap_err().to_string().contains("no recovery point to fold to at or before 1970"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_the_shard_is_held_against_the_folded_state() {
    let (mut compared, mut untold) = (0, 0);
    for seed in seeds(16) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = random_log(&mut rng, 30).await;
        fold_at(&world, None).await;
        assert_eq!(compare(&world.repository, &world.shard, world.now).await.unwrap(), None, "it is folded");
        go_on(&mut rng, &mut world).await;
        let lies = rng.random_bool(0.5);
        let victim = rng.random_range(0..SITES);
        let mut lied = None;
        world
            .snapshot_of(|rows| {
                let mut of_victim = rows.iter_mut().filter(|((owner, ..), _)| lies && *owner == victim);
                if let Some(((_, table, _), text)) = of_victim.next() {
                    text.push('!');
                    lied = Some(*table);
                }
            })
            .await;
        world.write(&mut rng);
        world.poll(&mut rng, false).await;
        let Some(found) = compare(&world.repository, &world.shard, world.now).await.unwrap() else {
            untold += 1;
            continue;
        };
        compared += 1;
        let told: Vec<String> = found.differences.iter().map(ToString::to_string).collect();
        match lied {
            None => assert_eq!(told, [] as [String; 0], "seed {seed}"),
            Some(table) => {
                assert_eq!(told.len(), 1, "seed {seed}: {told:?}");
                let named = format!("{}, product:wiki, table table_{table}:", site(victim));
                assert!(told[0].starts_with(&named) && told[0].ends_with("of other contents"), "{told:?}");
            }
        }
    }
    println!("{compared} compared, {untold} not told by the log");
    assert!(std::env::var_os("MUSTER_SEED").is_some() || compared > 10, "{compared}");
}
