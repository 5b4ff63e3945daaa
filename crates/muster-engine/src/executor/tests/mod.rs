//! The engine over shards and a repository in memory.

mod crash;
mod fake;
mod groups;
mod world;

use muster_types::RunId;
use muster_types::journal::{Outcome, Restraint};
use muster_types::plan::StepKey;
use muster_types::report::RunStatus;

use super::*;
use crate::driver::ErrorClass;
use crate::journal::JournalError;
use crate::{Event, load_report, load_status, read_run};
use fake::Stray;
pub(in crate::executor) use world::row;
use world::{World, store, time, victim};

fn run() -> RunId {
    RunId::new("run-1").unwrap()
}

async fn apply(world: &World) -> RunSummary {
    world.engine(world.options()).apply(world.plan.clone(), &run(), &Cancel::new()).await.unwrap()
}

#[tokio::test]
async fn all_sites_come_back_and_the_report_says_so() {
    for capture in [false, true] {
        let world = World::new(5, capture).await;
        let (events, mut told) = Events::channel();
        let engine = Engine::new(world.repository.clone(), world.drivers(), world.options(), events);
        let summary = engine.apply(world.plan.clone(), &run(), &Cancel::new()).await.unwrap();
        assert_eq!((summary.sites_restored, summary.sites_failed, summary.cancelled), (5, 0, false));
        assert_eq!(summary.failures, []);
        assert_eq!(world.victims_live(), world.restored);
        assert!(world.effects().values().all(|&count| count == 1) && world.effects().len() == 10);
        assert!(world.claims().is_empty());

        let report = load_report(&world.repository, &run()).await.unwrap();
        assert_eq!(report.status, RunStatus::Restored);
        assert_eq!((report.totals.sites_restored, report.totals.stores, report.totals.rows), (5, 10, 40));
        assert_eq!((report.proof.sites_proven, report.proof.marked_changes), (5, 40));
        assert!(report.proof.shards.len() == 2 && report.proof.shards.values().all(|proof| proof.holds));
        assert_eq!(report.rpo.max, 20.0);
        assert_eq!(report.rto_declared.count, 5);

        let status = load_status(&world.repository, &run(), &Clock::system()).await.unwrap();
        assert_eq!((status.total, status.steps["publish"].succeeded), (status.done, 10));
        drop(engine);
        let mut last = None;
        while let Some(event) = told.recv().await {
            last = Some(event);
        }
        assert_eq!(last, Some(Event::Done { sites_restored: 5, sites_failed: 0, cancelled: false }));
    }
}

/// Captures all shards every so often until it is dropped.
fn capturing(world: &World) -> tokio::task::JoinSet<()> {
    let mut captures = tokio::task::JoinSet::new();
    for shard in world.shards.values() {
        let shard = std::sync::Arc::clone(shard);
        captures.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                shard.run_capture().await;
            }
        });
    }
    captures
}

#[tokio::test]
async fn a_log_that_only_the_repository_has_is_waited_for() {
    let world = World::new(2, true).await;
    // So far apart that stepping through positions would never end.
    world.shards.values().for_each(|shard| shard.lock().sparse = Some(1 << 50));
    let _captures = capturing(&world);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.failures), (2, vec![]));
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert!(report.proof.shards.values().all(|proof| proof.holds && proof.changes > 0), "{:?}", report.proof);
}

#[tokio::test]
async fn the_wait_for_capture_ends_by_its_limit_and_by_a_stop() {
    for stop in [false, true] {
        let world = World::new(1, true).await;
        world.shards.values().for_each(|shard| shard.lock().sparse = Some(1 << 20));
        let mut options = world.options();
        options.capture_wait = if stop { Duration::from_secs(3_600) } else { Duration::from_millis(50) };
        let cancel = Cancel::new();
        let stopping = cancel.clone();
        if stop {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                stopping.cancel();
            });
        }
        let (engine, run) = (world.engine(options), run());
        let work = engine.apply(world.plan.clone(), &run, &cancel);
        let summary = tokio::time::timeout(Duration::from_secs(60), work).await.unwrap().unwrap();
        assert_eq!((summary.cancelled, summary.sites_restored), (stop, 0));
        if !stop {
            let check = StepKey::Check(victim(0));
            let failure = summary.failures.iter().find(|failure| failure.step == check).unwrap();
            assert!(failure.error.contains("muster capture --once"), "{}", failure.error);
        }
        // Once capture has come, the run ends well.
        let _captures = capturing(&world);
        let resumed = world.engine(world.options()).resume(&run, &Cancel::new()).await.unwrap();
        assert_eq!((resumed.sites_restored, resumed.failures), (1, vec![]));
    }
}

#[tokio::test]
async fn a_planted_stray_write_is_caught_by_both_proofs() {
    for (stray, capture) in [(Stray::Marked, false), (Stray::Marked, true), (Stray::Silent, false)] {
        let world = World::new(2, capture).await;
        world.shard("d").lock().stray = Some(stray);
        let summary = apply(&world).await;
        let failed: Vec<&StepKey> = summary.failures.iter().map(|failure| &failure.step).collect();
        let full = StepKey::DigestAfter("d".parse().unwrap());
        assert!(failed.contains(&&full), "{stray:?}: {failed:?}");
        let checks = [StepKey::Check(victim(0)), StepKey::Check(victim(1))];
        // Only the digest sees what went past the log.
        let marked = stray == Stray::Marked;
        assert!(checks.iter().all(|check| failed.contains(&check) == marked), "{stray:?}: {failed:?}");
        if marked {
            let error = &summary.failures.iter().find(|failure| failure.step == checks[0]).unwrap().error;
            assert!(error.contains("stray write") && error.contains("site:n0"), "{error}");
            assert_eq!(summary.sites_restored, 0);
        }
        let report = load_report(&world.repository, &run()).await.unwrap();
        assert!(!report.proof.shards["d"].holds && report.proof.shards["e"].holds);
    }
}

#[tokio::test]
async fn a_table_that_was_read_again_meanwhile_is_compared_with_its_live_rows() {
    for short in [false, true] {
        let world = World::new(2, true).await;
        let shard = world.shard("d");
        shard.lock().reread = Some("sites".to_owned());
        if short {
            // The publish answers, and the rows of one site go before the check.
            shard.lock().forget = Some(victim(1));
        }
        let summary = apply(&world).await;
        let checks = summary.failures.iter().filter(|failure| matches!(failure.step, StepKey::Check(_)));
        let checks: Vec<_> = checks.collect();
        if !short {
            assert!(checks.is_empty(), "{checks:?}");
            let read = crate::journal::read_run(&world.repository, &run()).await.unwrap();
            let outcome = read.state.step(&StepKey::Check(victim(0))).and_then(|step| step.outcome.clone());
            let Some(Outcome::Checked { compared_live, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(compared_live, ["sites"]);
            continue;
        }
        assert_eq!(checks.len(), 1, "{summary:?}");
        assert_eq!(checks[0].step, StepKey::Check(victim(1)));
        assert!(checks[0].error.contains("live rows are not the staged ones"), "{}", checks[0].error);
    }
}

#[tokio::test]
async fn staging_that_is_lost_is_made_again_and_the_journal_need_not_know() {
    let world = World::new(2, false).await;
    let lost = (ErrorClass::StagingLost, 1);
    world.shard("d").lock().failures.insert(("digest", store(1, "metadata")), lost);
    world.shard("e").lock().failures.insert(("publish", store(0, "identity")), lost);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (2, 0), "{summary:?}");
    assert_eq!(world.victims_live(), world.restored);
    assert!(world.effects().values().all(|&count| count == 1), "{:?}", world.effects());
    assert_eq!(world.shard("e").lock().stagings[&store(0, "identity")], 2);
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert_eq!(report.status, RunStatus::Restored);
    assert!(report.proof.shards.values().all(|proof| proof.holds));
}

#[tokio::test]
async fn migrated_rows_are_published_proven_and_reported() {
    for capture in [false, true] {
        let mut world = World::new(2, capture).await;
        world.migrate();
        let lost = (ErrorClass::StagingLost, 1);
        world.shard("e").lock().failures.insert(("publish", store(0, "identity")), lost);
        let summary = apply(&world).await;
        assert_eq!((summary.sites_restored, summary.sites_failed), (2, 0), "{summary:?}");
        assert_eq!(world.victims_live(), world.restored);
        let report = load_report(&world.repository, &run()).await.unwrap();
        assert!(report.proof.shards.values().all(|proof| proof.holds));
        let notes: Vec<_> = report.notes.iter().filter(|note| note.code == "migrated").collect();
        assert_eq!(notes.len(), 4);
        assert_eq!(notes[0].subject, store(0, "metadata").to_string());
        assert_eq!(notes[0].text, "migration `turn` was applied to table `sites`: 4 rows before, 4 after");
    }
}

#[tokio::test]
async fn a_migration_that_fails_costs_its_own_site() {
    let mut world = World::new(2, false).await;
    world.migrate();
    world.shard("e").lock().failures.insert(("migrate", store(1, "identity")), (ErrorClass::Permanent, 1));
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (1, 1), "{summary:?}");
    let failed: Vec<_> = summary.failures.iter().map(|failure| failure.step.clone()).collect();
    assert_eq!(failed, [StepKey::Verify(store(1, "identity"))]);
}

#[tokio::test]
async fn staging_that_is_lost_each_time_fails_its_own_site() {
    let world = World::new(2, false).await;
    let lost = (ErrorClass::StagingLost, u32::MAX);
    world.shard("e").lock().failures.insert(("publish", store(0, "identity")), lost);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (1, 1), "{summary:?}");
    world.shard("e").lock().failures.clear();
    let resumed = world.engine(world.options()).resume(&run(), &Cancel::new()).await.unwrap();
    assert_eq!((resumed.sites_restored, resumed.sites_failed), (2, 0));
}

#[tokio::test]
async fn a_shard_that_is_away_is_paused_and_others_can_see_it() {
    let world = World::new(5, false).await;
    for number in 0..5 {
        let away = (ErrorClass::Unavailable, u32::MAX);
        world.shard("e").lock().failures.insert(("stage", store(number, "identity")), away);
    }
    let watched = async {
        loop {
            // There is no run before its first entry.
            let status = load_status(&world.repository, &run(), &Clock::system()).await;
            if let Some(status) = status.ok().filter(|status| !status.pauses.is_empty()) {
                world.shard("e").lock().failures.clear();
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let (summary, status) = tokio::join!(apply(&world), watched);
    let shards: Vec<_> =
        status.pauses.iter().map(|pause| pause.shard.as_ref().map(ShardName::as_str)).collect();
    assert_eq!((status.status, shards), (RunStatus::Open, vec![Some("e")]));
    assert!(status.pools.iter().all(|pool| pool.used <= pool.limit && pool.limit == pool.capacity));
    assert_eq!(status.pools.len(), world.plan.pools.len());
    assert_eq!((summary.sites_restored, summary.sites_failed), (5, 0), "{summary:?}");
    assert_eq!(world.victims_live(), world.restored);
    let history = read_run(&world.repository, &run()).await.unwrap();
    let last = history.entries.iter().filter_map(|entry| entry.restraint.as_ref()).next_back();
    assert_eq!(last, Some(&Restraint::default()), "an answer ends the pause");
}

#[tokio::test]
async fn a_failure_costs_its_own_site_and_a_resume_brings_it_back() {
    let world = World::new(4, false).await;
    world.shard("e").lock().failures.insert(("publish", store(2, "identity")), (ErrorClass::Permanent, 1));
    world.shard("d").lock().failures.insert(("stage", store(1, "metadata")), (ErrorClass::Transient, 3));
    world
        .shard("d")
        .lock()
        .failures
        .insert(("publish-answer", store(3, "metadata")), (ErrorClass::Ambiguous, 1));
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (3, 1));
    assert_eq!(summary.failures.len(), 1);
    assert_eq!(summary.failures[0].step, StepKey::Publish(store(2, "identity")));
    assert_eq!(world.claims().len(), 2, "the failed site stays claimed");
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert_eq!(report.status, RunStatus::RestoredInPart);
    assert_eq!(report.sites[2].failure, Some(summary.failures[0].clone()));

    let resumed = world.engine(world.options()).resume(&run(), &Cancel::new()).await.unwrap();
    assert_eq!((resumed.sites_restored, resumed.sites_failed), (4, 0));
    assert_eq!(world.victims_live(), world.restored);
    assert!(world.effects().values().all(|&count| count == 1));
}

#[tokio::test]
async fn a_shard_that_cannot_be_prepared_costs_the_sites_in_it() {
    let world = World::new(2, false).await;
    world.shard("e").lock().read_only = true;
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (0, 2));
    assert!(summary.failures.iter().all(|failure| failure.error.contains("read-only")), "{summary:?}");
    assert!(world.effects().is_empty() && world.claims().is_empty());
}

/// The clock of a runtime whose time runs only while everybody waits.
fn virtual_clock() -> Clock {
    let (began, since) = (Clock::system().now(), tokio::time::Instant::now());
    Clock::from_fn(move || began.plus_micros(i64::try_from(since.elapsed().as_micros()).unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_starts_up_is_waited_for() {
    let world = World::new(2, false).await;
    world.shard("e").lock().away = 12;
    // More often than a step may fail.
    world.shard("d").lock().failures.insert(("publish", store(0, "metadata")), (ErrorClass::Unavailable, 20));
    let options = Options { clock: virtual_clock(), ..world.options() };
    let summary = world.engine(options).apply(world.plan.clone(), &run(), &Cancel::new()).await.unwrap();
    assert_eq!((summary.sites_restored, summary.sites_failed), (2, 0), "{summary:?}");
    assert_eq!(world.victims_live(), world.restored);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_holds_no_retry_up() {
    let world = World::new(1, false).await;
    world.shard("d").lock().failures.insert(("stage", store(0, "metadata")), (ErrorClass::Transient, 3));
    let (asked, real) = (AtomicU64::new(0), virtual_clock());
    // An hour back with every look.
    let clock = Clock::from_fn(move || {
        let hours = i64::try_from(asked.fetch_add(1, Ordering::Relaxed)).unwrap();
        real.now().plus_micros(-3_600_000_000 * hours)
    });
    let began = tokio::time::Instant::now();
    let options = Options { clock, ..world.options() };
    let summary = world.engine(options).apply(world.plan.clone(), &run(), &Cancel::new()).await.unwrap();
    assert_eq!(summary.sites_restored, 1);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_stays_away_costs_the_sites_in_it_in_the_end() {
    let world = World::new(2, false).await;
    world.shard("e").lock().away = 1_000;
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (0, 2));
    assert!(summary.failures.iter().all(|failure| failure.error.contains("starts up")), "{summary:?}");
}

#[tokio::test]
async fn a_second_run_on_the_same_stores_is_told_who_holds_them() {
    let world = World::new(2, false).await;
    let other = RunId::new("drill-7").unwrap();
    world.shard("d").lock().claims.insert(store(0, "metadata"), other.clone());
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (1, 1));
    let failed: Vec<&StepKey> = summary.failures.iter().map(|failure| &failure.step).collect();
    assert_eq!(failed, [&StepKey::Stage(store(0, "metadata")), &StepKey::Stage(store(0, "identity"))]);
    assert!(summary.failures[0].error.contains("run drill-7"), "{}", summary.failures[0].error);
    assert_eq!(world.claims().into_values().collect::<Vec<_>>(), [other]);
}

#[tokio::test]
async fn a_plan_whose_inputs_changed_is_refused_by_name() {
    let refused = async |world: &World, options: Options, plan: Plan| {
        let engine = world.engine(options);
        match engine.apply(plan, &run(), &Cancel::new()).await {
            Err(EngineError::Refused { reasons }) => reasons.join("; "),
            other => panic!("{other:?}"),
        }
    };
    let world = World::new(1, false).await;
    let mut edited = world.plan.clone();
    edited.sites[0].stores[0].overwrite = true;
    assert!(refused(&world, world.options(), edited).await.contains("edited"));
    let mut elsewhere = world.options();
    elsewhere.topology = Digest::of(b"another");
    assert!(refused(&world, elsewhere, world.plan.clone()).await.contains("topology"));
    let mut late = world.options();
    late.clock = Clock::from_fn(|| muster_types::Timestamp::from_micros(i64::MAX));
    let mut expired = world.plan.clone();
    expired.expires_at = time(5);
    assert!(refused(&world, late, expired.seal()).await.contains("expired"));
    let mut missing = world.plan.clone();
    missing.objects[0].key.push('x');
    let key = missing.objects[0].key.clone();
    let looked = world.engine(world.options()).preflight(&missing.seal()).await;
    assert!(
        matches!(&looked, Err(EngineError::Refused { reasons }) if reasons[0].contains(&key)),
        "{looked:?}"
    );
    world.shard("d").lock().insert("sites", &victim(0), None, row("alive", "v0"));
    let alive = refused(&world, world.options(), world.plan.clone()).await;
    assert!(alive.contains("site:v0/metadata had 0 live rows") && alive.contains("1 now"), "{alive}");
    assert!(world.effects().is_empty());
    assert!(matches!(load_report(&world.repository, &run()).await, Err(JournalError::NoRun { .. })));
}

#[tokio::test]
async fn an_abandoned_run_gives_its_stores_back_and_cannot_go_on() {
    let world = World::new(2, false).await;
    world.shard("e").lock().failures.insert(("publish", store(0, "identity")), (ErrorClass::Permanent, 1));
    apply(&world).await;
    assert_eq!(world.claims().len(), 2);
    let engine = world.engine(world.options());
    engine.abandon(&run(), "the site is restored by hand").await.unwrap();
    assert!(world.claims().is_empty());
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert_eq!(report.status, RunStatus::Abandoned);
    let refused = engine.resume(&run(), &Cancel::new()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Journal(JournalError::Abandoned { .. })), "{refused}");
}

#[tokio::test]
async fn abandoning_goes_through_all_shards_and_tells_all_that_failed() {
    let world = World::new(1, false).await;
    let fail = |shard: &str, call, kind| {
        world.shard(shard).lock().failures.insert((call, store(0, kind)), (ErrorClass::Permanent, 1));
    };
    fail("e", "publish", "identity");
    apply(&world).await;
    let engine = world.engine(world.options());
    fail("d", "release", "metadata");
    fail("e", "release", "identity");
    let both = engine.abandon(&run(), "given up").await.unwrap_err().to_string();
    assert!(both.contains("shard `d`") && both.contains("shard `e`"), "{both}");
    assert_eq!(world.claims().len(), 2);

    fail("d", "release", "metadata");
    let first = engine.abandon(&run(), "given up").await.unwrap_err().to_string();
    assert!(first.contains("shard `d`") && !first.contains("shard `e`"), "{first}");
    assert_eq!(world.claims().len(), 1, "the shard behind the one that failed is released");

    engine.abandon(&run(), "given up").await.unwrap();
    assert!(world.claims().is_empty());
    assert_eq!(load_report(&world.repository, &run()).await.unwrap().status, RunStatus::Abandoned);
}

#[tokio::test]
async fn declared_commands_rebuild_after_publishing_and_check_at_hand_back() {
    let mut world = World::new(2, false).await;
    world.add_commands(&["echo", "indexed {site}"], &["echo", "routed {site}"]);
    assert_eq!(apply(&world).await.sites_restored, 2);
    let history = crate::read_run(&world.repository, &run()).await.unwrap();
    let output = |step: StepKey| match &history.state.step(&step).unwrap().outcome {
        Some(muster_types::journal::Outcome::CommandRan { output }) => output.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(output(StepKey::Publish(store(0, "search"))), "indexed v0");
    assert_eq!(output(StepKey::Handback(victim(0))), "routed v0");

    let mut world = World::new(2, false).await;
    world.add_commands(&["true"], &["false"]);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (1, 1));
    assert_eq!(summary.failures[0].step, StepKey::Handback(victim(0)));
    assert_eq!(world.claims().len(), 2, "a site whose check fails stays claimed");
}

#[tokio::test]
async fn no_engine_fences_itself_when_answers_are_lost() {
    use muster_repo::memory::AttemptFault;
    let world = World::new(3, false).await;
    world.memory.0.fail_creates(vec![AttemptFault::LostAnswer; 1000]);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.epoch), (3, Epoch(1)));
    let history = crate::read_run(&world.repository, &run()).await.unwrap();
    let starts =
        history.records().filter(|record| matches!(record, muster_types::journal::Record::Started { .. }));
    assert_eq!(starts.count(), world.plan.steps.len());
}
