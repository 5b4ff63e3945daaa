//! A kept catalog is the one that would be read, whatever happened meanwhile, and costs what is new.

use muster_repo::Objects as _;
use muster_repo::catalog::{self, CatalogQuery, FollowedCatalog, Sites};
use muster_types::Timestamp;
use muster_types::retention::Retention;
use muster_upkeep::compact::compact_shard;
use muster_upkeep::forget::forget;
use muster_upkeep::prune::prune;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::forgetting::request;
use crate::seeds;
use crate::world::{SITES, World, site};

/// Whether a site was forgotten.
async fn step(world: &mut World, rng: &mut ChaCha8Rng, dir: &std::path::Path) -> bool {
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
        6 => {
            let gone = site(rng.random_range(0..SITES));
            // It may hold nothing of it.
            return forget(&world.repository, &request(&gone), (dir, world.now)).await.is_ok();
        }
        _ => {
            for _ in 0..rng.random_range(0..4) {
                world.write(rng);
            }
            let reread = rng.random_ratio(1, 20);
            world.poll(rng, reread).await;
        }
    }
    false
}

#[tokio::test]
async fn a_followed_catalog_is_the_one_that_would_be_read() {
    let mut forgotten = 0;
    for seed in seeds(16) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new(rng.random_bool(0.5)).await;
        let dir = tempfile::tempdir().unwrap();
        let mut followed = FollowedCatalog::new(&world.repository, Sites::All);
        for number in 0..120 {
            forgotten += u32::from(step(&mut world, &mut rng, dir.path()).await);
            if rng.random_bool(0.6) {
                let query = CatalogQuery { sites: Sites::All, shards: None };
                let read = catalog::survey(&world.repository, &query, Timestamp::EPOCH).await.unwrap();
                let kept = followed.refresh(Timestamp::EPOCH).await.unwrap();
                assert!(*kept == read.catalog, "step {number}");
            }
        }
    }
    assert!(forgotten > 3, "{forgotten}");
}

#[tokio::test]
async fn a_harmed_note_of_what_is_forgotten_stops_no_look() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut world = World::new(true).await;
    let mut followed = FollowedCatalog::new(&world.repository, Sites::All);
    followed.refresh(Timestamp::EPOCH).await.unwrap();
    let key = muster_repo::keys::forgetting("harmed");
    world.memory.put(&key, b"{".to_vec().into()).await.unwrap();
    world.write(&mut rng);
    world.poll(&mut rng, false).await;
    let segments = |catalog: &muster_types::catalog::Catalog| {
        catalog
            .shards
            .values()
            .flat_map(|shard| &shard.incarnations)
            .map(|one| one.segments.len())
            .sum::<usize>()
    };
    let kept = followed.refresh(Timestamp::EPOCH).await.unwrap();
    assert_eq!(segments(kept), 1);
    assert!(followed.damages().any(|damage| damage.to_string().contains(&key)));
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
