//! A kept catalog is the one that would be read, whatever happened meanwhile, and costs what is new.

use muster_repo::catalog::{self, CatalogQuery, FollowedCatalog, Sites};
use muster_types::Timestamp;
use muster_types::retention::Retention;
use muster_upkeep::compact::compact_shard;
use muster_upkeep::prune::prune;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::seeds;
use crate::world::World;

async fn step(world: &mut World, rng: &mut ChaCha8Rng, dir: &std::path::Path) {
    match rng.random_range(0..30) {
        0 => world.snapshot().await,
        1 => world.reopen().await,
        2 => drop(compact_shard(&world.repository, &world.shard, dir).await.unwrap()),
        3 => {
            let policy = Retention {
                every_moment_days: 1,
                daily_days: 1,
                grace_hours: 1,
                day_seconds: Retention::DAY_SECONDS,
            };
            prune(&world.repository, &policy, world.now, false).await.unwrap();
        }
        4 => world.pass(20 * 3_600_000_000),
        5 => world.truncate(rng),
        _ => {
            for _ in 0..rng.random_range(0..4) {
                world.write(rng);
            }
            let reread = rng.random_ratio(1, 20);
            world.poll(rng, reread).await;
        }
    }
}

#[tokio::test]
async fn a_followed_catalog_is_the_one_that_would_be_read() {
    for seed in seeds(16) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new(rng.random_bool(0.5)).await;
        let dir = tempfile::tempdir().unwrap();
        let mut followed = FollowedCatalog::new(&world.repository, Sites::All);
        for number in 0..120 {
            step(&mut world, &mut rng, dir.path()).await;
            if rng.random_bool(0.6) {
                let query = CatalogQuery { sites: Sites::All, shards: None };
                let read = catalog::survey(&world.repository, &query, Timestamp::EPOCH).await.unwrap();
                let kept = followed.refresh(Timestamp::EPOCH).await.unwrap();
                assert!(*kept == read.catalog, "step {number}");
            }
        }
    }
}

#[tokio::test]
async fn a_look_reads_what_is_new_only() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut world = World::new(true).await;
    for _ in 0..300 {
        world.write(&mut rng);
        world.poll(&mut rng, false).await;
    }
    let mut followed = FollowedCatalog::new(&world.repository, Sites::All);
    followed.refresh(Timestamp::EPOCH).await.unwrap();
    for new in [0, 1, 7] {
        for _ in 0..new {
            world.write(&mut rng);
            world.poll(&mut rng, false).await;
        }
        let before = world.memory.requests().gets;
        followed.refresh(Timestamp::EPOCH).await.unwrap();
        assert_eq!(world.memory.requests().gets - before, new, "one index each");
    }
}
