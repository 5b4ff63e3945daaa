//! `kill -9` at many moments of a run, and what `resume` makes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use muster_demo::{WriterConfig, tables};
use muster_tests::{Engine, Incident, Moment, Ran, Saved, Size, World, query, seed, until};
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::StepKey;
use muster_types::report::RunStatus;
use rusqlite::types::Value;

const SIZE: Size = Size { sites: 20, rows_per_site: 60 };
const VICTIMS: usize = 8;
const RUN: &str = "crash";
const APPLY: &[&str] = &["apply", "plan.json", "--run", RUN];
const RESUME: &[&str] = &["resume", RUN];

/// Every application table of every shard, whole.
type Content = BTreeMap<(String, &'static str), Vec<Vec<Value>>>;

/// A world with a plan, and what one whole run of it looked like.
struct Scene {
    world: World,
    saved: Saved,
    before: Content,
    journal: usize,
    stores: usize,
}

impl Scene {
    fn set(default_seed: u64) -> Self {
        let world = World::captured(SIZE, seed(default_seed));
        let writers = world.fleet.start_writers(WriterConfig { transactions_per_second: 500, threads: 2 });
        until("writers at work", || writers.committed() >= 100);
        writers.stop().unwrap();
        world.capture_once();
        let before = content(&world);
        let incident = Incident::delete(&world, VICTIMS, Duration::ZERO);
        world.capture_once();
        assert_ne!(content(&world), before);
        incident.detect(&world);
        incident.plan(&world, &["--proof", "full"]).ok();
        let saved = Saved::of(&world);
        let mut scene = Self { world, saved, before, journal: 0, stores: 0 };
        scene.world.muster(APPLY).ok();
        incident.is_undone(&scene.world, RUN);
        scene.journal = scene.world.objects(&format!("runs/{RUN}/journal")).len();
        scene.stores = scene.world.report(RUN).sites.iter().map(|site| site.stores.len()).sum();
        scene.is_restored();
        scene
    }

    /// A fresh start: the run never happened.
    fn again(&self) {
        self.saved.restore(&self.world);
        assert!(self.world.objects(&format!("runs/{RUN}")).is_empty());
    }

    /// Starts an engine and kills it at a moment; false if it had ended before.
    fn killed(&self, args: &[&str], moment: Moment) -> bool {
        let mut engine = Engine::start(&self.world, RUN, args);
        engine.wait_for(moment) && engine.kill()
    }

    /// Everything is as it was before the deletion, and every store was published exactly once.
    #[track_caller]
    fn is_restored(&self) {
        let now = content(&self.world);
        for (place, rows) in &self.before {
            assert!(now.get(place) == Some(rows), "{place:?} is not what it was");
        }
        assert_eq!(self.world.report(RUN).status, RunStatus::Restored);
        let (mut published, mut rows, mut inserted, mut deleted) = (0, 0, 0, 0);
        for shard in &self.world.fleet.shards {
            let number = |sql: &str| match query(&shard.path, sql)[0][0] {
                Value::Integer(number) => number,
                ref other => panic!("{sql}: {other:?}"),
            };
            published += number(&format!("SELECT count(*) FROM _muster_publish WHERE run = '{RUN}'"));
            rows +=
                number(&format!("SELECT coalesce(sum(rows), 0) FROM _muster_publish WHERE run = '{RUN}'"));
            inserted += number("SELECT count(*) FROM _muster_change WHERE mark IS NOT NULL AND op = 'I'");
            deleted += number("SELECT count(*) FROM _muster_change WHERE mark IS NOT NULL AND op <> 'I'");
            assert_eq!(number("SELECT count(*) FROM _muster_claim"), 0, "claims are left in {}", shard.name);
        }
        assert_eq!(usize::try_from(published).unwrap(), self.stores, "publish records");
        assert_eq!((inserted, deleted), (rows, 0), "marked changes of the run");
        self.every_publish_succeeded_once();
        for shard in &self.world.fleet.shards {
            let staging = self.world.path(&format!("shards/{}.db.muster/{RUN}", shard.name));
            assert!(!staging.exists(), "staging is left in {}", staging.display());
        }
    }

    fn every_publish_succeeded_once(&self) {
        let mut successes: BTreeMap<StepKey, usize> = BTreeMap::new();
        for path in self.world.objects(&format!("runs/{RUN}/journal")) {
            let entry: JournalEntry = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            for record in entry.records {
                if let Record::Succeeded { step: step @ StepKey::Publish(_), .. } = record {
                    *successes.entry(step).or_default() += 1;
                }
            }
        }
        assert_eq!(successes.len(), self.stores);
        let twice: Vec<_> = successes.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "published more than once by the journal: {twice:?}");
    }

    /// Moments over the whole run: its journal, its publishes, its staging.
    fn moments(&self) -> Vec<Moment> {
        let part = |whole: usize, percent: usize| (whole * percent / 100).max(1);
        let mut moments = vec![Moment::Journal(1), Moment::Journal(2), Moment::Staged(1)];
        moments
            .extend([10, 20, 30, 40, 50, 65, 80].map(|percent| Moment::Journal(part(self.journal, percent))));
        moments.extend([1, 30, 60].map(|percent| Moment::Published(part(self.stores, percent))));
        moments.extend([10, 30].map(|percent| Moment::Staged(part(self.stores, percent))));
        moments.dedup();
        moments
    }
}

fn content(world: &World) -> Content {
    let mut content = Content::new();
    for shard in &world.fleet.shards {
        for table in tables(shard.role) {
            let sql = format!("SELECT * FROM {} ORDER BY {}", table.name, table.key.join(", "));
            content.insert((shard.name.clone(), table.name), query(&shard.path, &sql));
        }
    }
    content
}

#[test]
fn killed_anywhere_it_resumes_to_the_same_end() {
    let scene = Scene::set(2);
    let mut killed = 0;
    for moment in scene.moments() {
        scene.again();
        if !scene.killed(APPLY, moment) {
            continue;
        }
        killed += 1;
        scene.world.muster(RESUME).ok();
        scene.is_restored();
    }
    assert!(killed >= 12, "only {killed} of {:?} came before the end", scene.moments());
}

#[test]
fn a_resume_may_be_killed_as_well() {
    let scene = Scene::set(3);
    let mut killed = 0;
    for (first, second) in [(2, 40), (20, 60), (50, 75)] {
        scene.again();
        let at = |percent: usize| Moment::Journal((scene.journal * percent / 100).max(2));
        killed += usize::from(scene.killed(APPLY, at(first)));
        killed += usize::from(scene.killed(RESUME, at(second)));
        killed += usize::from(scene.killed(RESUME, Moment::Published(scene.stores * 9 / 10)));
        scene.world.muster(RESUME).ok();
        scene.is_restored();
    }
    assert!(killed >= 6, "only {killed} kills came before the end");
}

#[test]
fn of_two_engines_on_one_run_one_goes_on() {
    let scene = Scene::set(4);
    two_resumes_at_once(&scene);
    an_engine_that_was_asleep_is_fenced(&scene);
}

fn two_resumes_at_once(scene: &Scene) {
    scene.again();
    assert!(scene.killed(APPLY, Moment::Journal(2)));
    let engines = [Engine::start(&scene.world, RUN, RESUME), Engine::start(&scene.world, RUN, RESUME)];
    let mut ended: Vec<Ran> = engines.into_iter().map(Engine::finish).collect();
    ended.sort_by_key(|ran| ran.code);
    let codes: Vec<_> = ended.iter().map(|ran| ran.code).collect();
    assert_eq!(codes, [Some(0), Some(4)], "{}\n{}", ended[0], ended[1]);
    was_told_who(ended.remove(1));
    scene.is_restored();
}

fn an_engine_that_was_asleep_is_fenced(scene: &Scene) {
    scene.again();
    let mut asleep = Engine::start(&scene.world, RUN, APPLY);
    assert!(
        asleep.wait_for(Moment::Journal((scene.journal / 4).max(3))),
        "it ended before it was put to sleep"
    );
    asleep.sleep_between_publishes(&scene.world);
    scene.world.muster(RESUME).ok();
    scene.is_restored();
    asleep.signal("CONT");
    was_told_who(asleep.finish());
    scene.is_restored();
}

/// The engine that lost the run says who has it, by its journal or by a shard.
fn was_told_who(ran: Ran) {
    let ran = ran.code(4).says(&["run crash", "nothing is lost", "muster status crash"]);
    let who = ["is held by", "was taken over by"];
    assert!(who.iter().any(|who| ran.stderr.contains(who)), "it does not say who holds the run: {ran}");
}
