//! Crashes in mid-run on PostgreSQL and MinIO: of the engine, of capture, of both servers, while neighbours write.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::time::Duration;

use muster_demo::{WriterConfig, Writers};
use muster_tests::{Engine, Incident, Moment, Size, World, cases, seed, until};
use muster_types::report::RunStatus;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const SIZE: Size = Size { sites: 30, rows_per_site: 100 };
const VICTIMS: usize = 12;
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 100, threads: 3 };
const RUN: &str = "crash";
const APPLY: &[&str] = &["apply", "plan.json", "--run", RUN];
const RESUME: &[&str] = &["resume", RUN];

/// What is crashed; each comes back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Engine,
    Capture,
    Postgres,
    Minio,
}

/// A world with a plan, neighbours that write, and capture that follows them.
struct Scene {
    world: World,
    writers: Writers,
    incident: Incident,
    stores: usize,
}

impl Scene {
    fn set(seed: u64) -> Self {
        let mut world = World::on_own_services(SIZE, seed);
        world.capture();
        world.follow();
        let writers = world.fleet.start_writers(WRITERS);
        until("writers at work", || writers.committed() >= 200);
        let incident = Incident::delete(&world, VICTIMS, Duration::from_millis(20));
        world.muster(&["capture", "wait", "--covers", "now"]).ok();
        incident.detect(&world);
        incident.plan(&world, &["--proof", "full"]).ok();
        let kinds = |site: &muster_demo::DeletedSite| world.fleet.sites[site.index].kinds.len();
        let stores = incident.log.sites.iter().map(kinds).sum();
        Self { world, writers, incident, stores }
    }

    /// Crashes it; gives the engine that goes on with the run.
    fn harm(&mut self, harm: Harm, engine: Engine) -> Engine {
        match harm {
            Harm::Engine => {
                engine.kill();
                return Engine::start(&self.world, RUN, RESUME);
            }
            Harm::Capture => {
                self.world.kill_following();
                self.world.follow();
            }
            Harm::Postgres => self.world.crash_postgres(),
            Harm::Minio => self.world.crash_minio(),
        }
        engine
    }

    /// In the end every victim is as it was, each store published once, and no neighbour lost a commit.
    fn conclude(mut self) {
        let before = self.writers.committed();
        until("writers that are still at work", || self.writers.committed() > before);
        self.writers.stop().unwrap();
        self.world.stop_following();
        self.incident.is_undone(&self.world, RUN);
        let report = self.world.report(RUN);
        assert_eq!(report.status, RunStatus::Restored);
        assert!(report.proof.shards.values().all(|proof| proof.holds && proof.error.is_none()));
        let (mut published, mut claims) = (0, 0);
        for database in self.world.fleet.shards.iter().filter_map(|shard| shard.database.as_ref()) {
            let mut client = database.connect().unwrap();
            let mut number = |sql: &str| client.query_one(sql, &[]).unwrap().get::<_, i64>(0);
            published += number("SELECT count(*) FROM muster.published");
            claims += number("SELECT count(*) FROM muster.claim");
        }
        let reported: usize = report.sites.iter().map(|site| site.stores.len()).sum();
        assert_eq!((usize::try_from(published).unwrap(), claims), (reported, 0), "records and claims");
    }
}

/// Moments over the whole run, ascending.
fn moments(stores: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<Moment> {
    let staged = count / 4;
    let mut first: Vec<usize> = (0..staged).map(|_| rng.random_range(1..stores / 3)).collect();
    let mut then: Vec<usize> = (staged..count).map(|_| rng.random_range(1..stores * 9 / 10)).collect();
    first.sort_unstable();
    then.sort_unstable();
    first.into_iter().map(Moment::Staged).chain(then.into_iter().map(Moment::Published)).collect()
}

#[test]
fn crashes_at_random_moments_cost_nobody_a_row() {
    for case in 0..cases(1) {
        let mut scene = Scene::set(seed(40) + case);
        let mut rng = ChaCha8Rng::seed_from_u64(scene.world.seed);
        let mut harms = [Harm::Engine, Harm::Capture, Harm::Postgres, Harm::Minio].repeat(3);
        harms.shuffle(&mut rng);
        let mut done: Vec<(Harm, Moment)> = Vec::new();
        let mut engine = Engine::start(&scene.world, RUN, APPLY);
        for (harm, moment) in harms.iter().copied().zip(moments(scene.stores, harms.len(), &mut rng)) {
            if !engine.wait_for(moment) {
                break;
            }
            engine = scene.harm(harm, engine);
            done.push((harm, moment));
        }
        let ended = engine.finish();
        assert_eq!(ended.code, Some(0), "after {done:?}: {ended}");
        assert!(done.len() >= 8, "it ended after {done:?}");
        println!("seed {}: {done:?}", scene.world.seed);
        scene.conclude();
    }
}
