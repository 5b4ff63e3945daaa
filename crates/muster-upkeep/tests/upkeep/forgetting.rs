//! A site that is forgotten is nowhere, and the others are what they were.

use std::io::Read as _;

use muster_repo::check::check;
use muster_repo::{Objects as _, forget as repo_forget, retention};
use muster_types::SiteId;
use muster_types::format::FORMAT;
use muster_types::retention::Hold;
use muster_upkeep::compact::compact_shard;
use muster_upkeep::fold::fold;
use muster_upkeep::forget::{ForgetError, ForgetRequest, Forgot, forget};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compaction::{crashing, random_log};
use crate::seeds;
use crate::world::{SITES, World, site};

pub(crate) fn request(site: &SiteId) -> ForgetRequest {
    ForgetRequest {
        site: site.clone(),
        reason: "a test".to_owned(),
        by: "a test".to_owned(),
        despite_claims: true,
        dry_run: false,
    }
}

/// Data objects in which the text stands, after decompression.
async fn holding(world: &World, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for key in world.memory.keys().into_iter().filter(|key| !key.contains(".json")) {
        let body = world.memory.get(&key).await.unwrap().unwrap();
        let mut raw = Vec::new();
        zstd::stream::read::Decoder::new(&body[..]).unwrap().read_to_end(&mut raw).unwrap();
        if raw.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(key);
        }
    }
    found
}

async fn all_sorts(rng: &mut ChaCha8Rng) -> World {
    let mut world = random_log(rng, 70).await;
    let dir = tempfile::tempdir().unwrap();
    if rng.random_bool(0.7) {
        compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let folded = fold(&world.repository, &world.shard, None, (dir.path(), world.now)).await.unwrap();
    folded.into_iter().for_each(|folded| world.has_snapshot(folded.snapshot, folded.boundary));
    world
}

async fn go_on(rng: &mut ChaCha8Rng, world: &mut World) {
    for _ in 0..30 {
        world.write(rng);
        world.poll(rng, false).await;
    }
}

/// The others are restored to any moment, whole.
async fn judge_others(rng: &mut ChaCha8Rng, world: &World, gone: u8) {
    let catalog = world.catalog().await;
    for _ in 0..40 {
        let from = world.snapshots[0].1.at;
        let at = from.plus_micros(rng.random_range(0..=world.now.as_micros() - from.as_micros()));
        let other = (gone + rng.random_range(1..SITES)) % SITES;
        let judged = world.judge(&catalog, other, at).await.unwrap();
        assert_eq!(Some(judged.point.boundary.position), world.expected(at), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_forgotten_site_is_left_and_the_others_are_whole() {
    let mut crashes = 0;
    for seed in seeds(8) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = all_sorts(&mut rng).await;
        let gone = rng.random_range(0..SITES);
        let id = site(gone);
        assert!(holding(&world, id.as_str()).await.len() > 10, "seed {seed}: the search finds nothing");
        let before = check(&world.repository, 1.0, world.now).await.unwrap();
        assert_eq!(before.damages, [], "seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        // It ends early at any point, and goes on.
        while rng.random_ratio(4, 5) {
            let repository = crashing(&world, rng.random_range(0..400)).await;
            crashes += u32::from(forget(&repository, &request(&id), (dir.path(), world.now)).await.is_err());
            world.pass(1_000);
            judge_others(&mut rng, &world, gone).await;
        }
        forget(&world.repository, &request(&id), (dir.path(), world.now)).await.unwrap();
        assert_eq!(holding(&world, id.as_str()).await, [] as [String; 0], "seed {seed}");
        assert_eq!(world.catalog_of(gone).await.sites.len(), 0, "seed {seed}");
        judge_others(&mut rng, &world, gone).await;
        let after = check(&world.repository, 1.0, world.now).await.unwrap();
        assert_eq!(after.damages, [], "seed {seed}");
        let receipts = repo_forget::receipts(&world.repository).await.unwrap();
        assert!(receipts.iter().any(|receipt| receipt.rewritten.len() > 1), "seed {seed}: {receipts:?}");
        assert!(matches!(
            forget(&world.repository, &request(&id), (dir.path(), world.now)).await.unwrap(),
            Forgot::Done(_) | Forgot::Nothing
        ));

        // Life goes on: what comes later of the same id is another site's.
        go_on(&mut rng, &mut world).await;
        compact_shard(&world.repository, &world.shard, dir.path()).await.unwrap();
        world.reopen().await;
        judge_others(&mut rng, &world, gone).await;
        let dir = tempfile::tempdir().unwrap();
        forget(&world.repository, &request(&id), (dir.path(), world.now)).await.unwrap();
        assert_eq!(holding(&world, id.as_str()).await, [] as [String; 0], "seed {seed}");
        assert_eq!(check(&world.repository, 1.0, world.now).await.unwrap().damages, [], "seed {seed}");
        judge_others(&mut rng, &world, gone).await;
    }
    assert!(std::env::var_os("MUSTER_SEED").is_some() || crashes > 3, "{crashes}");
}

/// Two at once would each write an object that the other has just overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_site_is_forgotten_at_a_time() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut world = all_sorts(&mut rng).await;
    let (first, second) = (site(0), site(1));
    let dir = tempfile::tempdir().unwrap();
    let mut points = 40;
    while repo_forget::Forgotten::read(&world.repository).await.unwrap().all().count() == 0 {
        let repository = crashing(&world, points).await;
        assert!(forget(&repository, &request(&first), (dir.path(), world.now)).await.is_err(), "it ended");
        points += 5;
    }
    world.pass(1_000);
    let refused = forget(&world.repository, &request(&second), (dir.path(), world.now)).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("muster repo forget {first}")), "{refused}");
    assert!(!holding(&world, second.as_str()).await.is_empty());
    for gone in [first, second] {
        forget(&world.repository, &request(&gone), (dir.path(), world.now)).await.unwrap();
        assert_eq!(holding(&world, gone.as_str()).await, [] as [String; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_or_life_refuses_and_a_dry_run_changes_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let world = all_sorts(&mut rng).await;
    let hold = Hold {
        format: FORMAT,
        name: "audit".to_owned(),
        placed_at: world.now,
        reason: "asked for".to_owned(),
        shard: None,
        site: Some(site(1)),
        from: None,
        to: None,
    };
    retention::place(&world.repository, &hold).await.unwrap();
    let before = world.memory.keys();
    let dir = tempfile::tempdir().unwrap();
    let careful = ForgetRequest { despite_claims: false, ..request(&site(1)) };
    let refused = forget(&world.repository, &careful, (dir.path(), world.now)).await.unwrap_err();
    let ForgetError::Claimed { claims, .. } = refused else { panic!("{refused}") };
    assert!(claims.iter().any(|claim| claim.contains("hold `audit` (asked for)")), "{claims:?}");
    assert!(claims.iter().any(|claim| claim.contains("it has rows in shard shard-1")), "{claims:?}");
    let dry = ForgetRequest { dry_run: true, ..careful };
    let would = forget(&world.repository, &dry, (dir.path(), world.now)).await.unwrap();
    let Forgot::Would { found, claims, .. } = would else { panic!("{would:?}") };
    assert!(found.chunks.len() > 3 && claims.len() == 2, "{found:?}");
    assert_eq!(world.memory.keys(), before);
    assert!(!holding(&world, site(1).as_str()).await.is_empty());
    let unknown = SiteId::new("nobody").unwrap();
    let nothing = forget(&world.repository, &request(&unknown), (dir.path(), world.now)).await.unwrap();
    assert!(matches!(nothing, Forgot::Nothing), "{nothing:?}");
}
