//! A compacted log says what the log said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use muster_repo::memory::{Fault, Faulty};
use muster_repo::{MemoryObjects, Objects, RepoError, RepoErrorKind, Repository};
use muster_types::Timestamp;
use muster_types::catalog::Catalog;
use muster_upkeep::compact::compact_shard;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::seeds;
use crate::world::{SITES, World};

/// The catalog without where things lie.
fn told(catalog: &Catalog) -> Catalog {
    let mut told = catalog.clone();
    let histories = told.shards.values_mut().flat_map(|shard| &mut shard.incarnations);
    for segment in histories.flat_map(|history| &mut history.segments) {
        segment.data = None;
    }
    for trace in told.sites.values_mut().flat_map(|site| &mut site.traces) {
        for frame in trace.segments.values_mut().flatten() {
            frame.place = None;
            frame.chunks.clear();
        }
    }
    told
}

pub(crate) async fn random_log(rng: &mut ChaCha8Rng, segments: u32) -> World {
    let mut world = World::new(rng.random_bool(0.5)).await;
    for _ in 0..segments {
        for _ in 0..rng.random_range(0..4) {
            world.write(rng);
        }
        if rng.random_ratio(1, 40) {
            world.truncate(rng);
        }
        if rng.random_ratio(1, 60) {
            world.snapshot().await;
        }
        let reread = rng.random_ratio(1, 40);
        world.poll(rng, reread).await;
    }
    world
}

/// Moments of the log: its whole length, before and behind it.
fn moment(rng: &mut ChaCha8Rng, from: Timestamp, to: Timestamp) -> Timestamp {
    from.plus_micros(rng.random_range(-10..to.as_micros() - from.as_micros() + 10))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_at_any_moment_are_those_of_the_chain() {
    for seed in seeds(12) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let segments = rng.random_range(20..600);
        let mut world = random_log(&mut rng, segments).await;
        let dir = tempfile::tempdir().unwrap();
        let began = world.now.plus_micros(-i64::from(segments) * 2_500_000);
        // Compacted in two rounds, with more of the log between them.
        for round in 0..2 {
            let before = world.catalog().await;
            let done = compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
            assert!(round == 1 || done.merged.is_empty() == (segments < 17), "{done:?}");
            let after = world.catalog().await;
            assert_eq!(told(&after), told(&before), "seed {seed}");
            for _ in 0..20 {
                let (site, at) = (rng.random_range(0..SITES), moment(&mut rng, began, world.now));
                let base = world.judge(&before, site, at).await;
                let compacted = world.judge(&after, site, at).await;
                let points = |judged: Result<crate::world::Judged, String>| judged.map(|judged| judged.point);
                assert_eq!(points(compacted), points(base), "seed {seed}, site {site}, {at}");
            }
            for _ in 0..rng.random_range(1..40) {
                world.write(&mut rng);
                world.poll(&mut rng, false).await;
            }
        }
    }
}

/// A repository whose requests fail from number `count` on, as when the process ends there.
pub(crate) async fn crashing(world: &World, count: u64) -> Repository {
    let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&world.memory);
    let left = AtomicU64::new(count + 1);
    let faulty = Faulty::new(objects, move |_| {
        let gone = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err();
        let error = RepoError::new(RepoErrorKind::Unavailable, "a crash on purpose", "none");
        gone.then_some(Fault::Before(error))
    });
    Repository::open(Arc::new(faulty)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_that_ends_anywhere_changes_nothing() {
    for seed in seeds(3) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = random_log(&mut rng, 300).await;
        let before = told(&world.catalog().await);
        let dir = tempfile::tempdir().unwrap();
        let mut ended = 0;
        for _ in 0..40 {
            let repository = crashing(&world, rng.random_range(0..150)).await;
            ended += u32::from(compact_shard(&repository, &world.shard, dir.path()).await.is_err());
            assert_eq!(told(&world.catalog().await), before, "seed {seed}");
        }
        assert!(ended > 3, "seed {seed}: only {ended} ended early");
        // Two at once, in folders of their own.
        let other = tempfile::tempdir().unwrap();
        let (one, two) = tokio::join!(
            compact_shard(&world.repository, &world.shard, dir.path()),
            compact_shard(&world.repository, &world.shard, other.path())
        );
        one.unwrap();
        two.unwrap();
        let after = world.catalog().await;
        assert_eq!(told(&after), before, "seed {seed}");
        let again = compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
        assert_eq!(again.merged, [], "seed {seed}: nothing is left to do");
        for site in 0..SITES {
            world.judge(&after, site, world.now).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_read_from_what_lies_below_it() {
    for seed in seeds(8) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = random_log(&mut rng, 300).await;
        let before = told(&world.catalog().await);
        let dir = tempfile::tempdir().unwrap();
        compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
        let documents: Vec<String> = world.memory.keys();
        let documents: Vec<&String> = documents
            .iter()
            .filter(|key| key.contains("/compacted/") && key.ends_with(".json.zst"))
            .collect();
        for _ in 0..8 {
            let key = documents[rng.random_range(0..documents.len())];
            let place = rng.random_range(0..100usize);
            world.memory.damage(key, |bytes| {
                let place = place % bytes.len();
                bytes[place] ^= 0x55;
            });
        }
        assert_eq!(told(&world.catalog().await), before, "seed {seed}");
    }
}

/// Objects of the chain, each read twice at most, that no group of sixteen holds yet, and what every restore reads.
const REST: u64 = 2 * 17 + 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_restore_reads_objects_by_the_logarithm_of_the_log() {
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    let mut world = World::new(false).await;
    let dir = tempfile::tempdir().unwrap();
    let mut segments = 0;
    for (length, levels) in [(250, 1), (1_000, 2), (4_090, 2), (4_200, 3)] {
        while segments < length {
            world.write(&mut rng);
            world.poll(&mut rng, false).await;
            segments += 1;
        }
        compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
        let before = world.memory.requests();
        let catalog = world.catalog_of(0).await;
        let read = world.memory.requests();
        let judged = world.judge(&catalog, 0, world.now).await.unwrap();
        let documents = read.gets - before.gets;
        // At most fifteen of each level, each with root, page and pack.
        let bound = 3 * 15 * levels + REST;
        let objects = documents + judged.objects as u64;
        println!("{length} segments: {documents} documents, {} data objects", judged.objects);
        assert!(objects <= bound, "{length} segments: {objects} objects, at most {bound} expected");
        let listings = read.lists - before.lists;
        assert!(listings <= 8 + 4 * levels, "{length} segments: {listings} listings");
    }
}
