//! Crashes, takeovers and cancellation: the same final state, nothing published twice.

use super::*;
use crate::fault::{Faults, Point};

/// Runs an engine until it ends or its crash point is reached; `true` if it crashed.
async fn until_crash(work: impl Future<Output = Result<RunSummary, EngineError>>, faults: &Faults) -> bool {
    tokio::select! {
        biased;
        ended = work => {
            ended.unwrap();
            false
        }
        () = faults.crashed() => true,
    }
}

async fn assert_whole(world: &World, context: &str) {
    assert_eq!(world.victims_live(), world.restored, "{context}");
    assert!(world.effects().values().all(|&count| count == 1), "{context}: {:?}", world.effects());
    assert!(world.claims().is_empty(), "{context}");
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert_eq!(report.status, RunStatus::Restored, "{context}");
    assert!(report.proof.shards.values().all(|proof| proof.holds), "{context}");
}

#[tokio::test]
async fn every_crash_point_of_a_small_run() {
    let mut crashes = 0;
    let points = [Point::BeforeEntry, Point::AfterEntry, Point::BeforeEffect, Point::AfterEffect];
    for (point, together) in points.into_iter().flat_map(|point| [(point, false), (point, true)]) {
        for nth in 1.. {
            let mut world = World::new(2, nth % 2 == 0).await;
            if together {
                world.group(2);
            }
            if nth % 4 < 2 {
                world.migrate();
            }
            let mut options = world.options();
            options.faults = Faults::at(point, nth);
            let engine = world.engine(options.clone());
            if !until_crash(engine.apply(world.plan.clone(), &run(), &Cancel::new()), &options.faults).await {
                break;
            }
            crashes += 1;
            // What lies beside the live data may be lost with the machine.
            if nth % 3 == 0 {
                world.shards.values().for_each(|shard| shard.lock().staged.clear());
            }
            let resumed = world.engine(world.options()).resume(&run(), &Cancel::new()).await;
            let context = format!("{point:?} {nth} together: {together}");
            let summary = resumed.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!((summary.sites_restored, summary.sites_failed), (2, 0), "{context}: {summary:?}");
            assert_whole(&world, &context).await;
        }
    }
    assert!(crashes > 60, "{crashes}");
}

#[tokio::test]
async fn crashes_while_resuming_after_a_crash() {
    for first in [1, 4, 7, 11] {
        for second in 1.. {
            let world = World::new(2, false).await;
            let mut options = world.options();
            options.faults = Faults::at(Point::AfterEffect, first);
            let engine = world.engine(options.clone());
            assert!(
                until_crash(engine.apply(world.plan.clone(), &run(), &Cancel::new()), &options.faults).await
            );
            options.faults = Faults::at(Point::BeforeEntry, second);
            let engine = world.engine(options.clone());
            let crashed = until_crash(engine.resume(&run(), &Cancel::new()), &options.faults).await;
            if crashed {
                world.engine(world.options()).resume(&run(), &Cancel::new()).await.unwrap();
            }
            assert_whole(&world, &format!("{first}, then {second}")).await;
            if !crashed {
                break;
            }
        }
    }
}

#[tokio::test]
async fn of_two_engines_that_resume_at_once_one_wins_and_the_other_is_told_who() {
    let world = World::new(3, false).await;
    let mut options = world.options();
    options.faults = Faults::at(Point::AfterEffect, 6);
    let engine = world.engine(options.clone());
    assert!(until_crash(engine.apply(world.plan.clone(), &run(), &Cancel::new()), &options.faults).await);
    let named = |name: &str| {
        let mut options = world.options();
        name.clone_into(&mut options.operator);
        world.engine(options)
    };
    let (first, second) = (named("host-a pid 1"), named("host-b pid 2"));
    let cancel = Cancel::new();
    let (id_a, id_b) = (run(), run());
    let (a, b) = tokio::join!(first.resume(&id_a, &cancel), second.resume(&id_b, &cancel));
    let (won, lost, winner) = match (a, b) {
        (Ok(won), Err(lost)) => (won, lost, "host-a pid 1"),
        (Err(lost), Ok(won)) => (won, lost, "host-b pid 2"),
        other => panic!("{other:?}"),
    };
    assert_eq!((won.sites_restored, won.epoch), (3, Epoch(2)));
    assert!(matches!(&lost, EngineError::Journal(JournalError::Fenced { by, .. }) if by == winner), "{lost}");
    assert_whole(&world, "two resumes").await;
}

#[tokio::test]
async fn an_engine_that_is_taken_over_stops_and_publishes_nothing_more() {
    let mut fenced = 0;
    for publishes in 0..6 {
        let world = World::new(3, false).await;
        let (events, mut told) = Events::channel();
        let first = Engine::new(world.repository.clone(), world.drivers(), world.options(), events);
        let id = run();
        let cancel = Cancel::new();
        let second = async {
            let mut seen = 0;
            while seen <= publishes {
                let event = told.recv().await.unwrap();
                seen += i32::from(matches!(event, Event::Started { step: StepKey::Publish(_), .. }));
            }
            world.engine(world.options()).resume(&id, &cancel).await
        };
        let (first, second) = tokio::join!(first.apply(world.plan.clone(), &id, &cancel), second);
        match first {
            Err(EngineError::Journal(JournalError::Fenced { .. }) | EngineError::FencedInShard { .. }) => {
                fenced += 1;
            }
            // The last publishes leave the second engine too little time to come between.
            Ok(summary) => assert_eq!(summary.sites_restored, 3),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(second.unwrap().sites_restored, 3);
        assert_whole(&world, &format!("taken over at publish {publishes}")).await;
    }
    assert!(fenced >= 3, "{fenced}");
}

#[tokio::test]
async fn a_cancelled_run_ends_cleanly_and_is_resumed() {
    let world = World::new(3, false).await;
    let (events, mut told) = Events::channel();
    let engine = Engine::new(world.repository.clone(), world.drivers(), world.options(), events);
    let (id, cancel) = (run(), Cancel::new());
    let operator = async {
        while !matches!(told.recv().await, Some(Event::Succeeded { step: StepKey::Publish(_), .. })) {}
        cancel.cancel();
    };
    let (summary, ()) = tokio::join!(engine.apply(world.plan.clone(), &id, &cancel), operator);
    let summary = summary.unwrap();
    assert!(summary.cancelled && summary.sites_restored < 3, "{summary:?}");
    let status = load_status(&world.repository, &id, &Clock::system()).await.unwrap();
    assert_eq!((status.status, status.running.len()), (RunStatus::Open, 0));
    world.engine(world.options()).resume(&id, &Cancel::new()).await.unwrap();
    assert_whole(&world, "cancelled").await;
}

#[tokio::test]
async fn a_run_of_the_same_name_is_not_opened_twice() {
    let world = World::new(1, false).await;
    apply(&world).await;
    world.shards.values().for_each(|shard| shard.lock().rows.retain(|(_, site, _)| site.as_str() == "n0"));
    let refused =
        world.engine(world.options()).apply(world.plan.clone(), &run(), &Cancel::new()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Journal(JournalError::Exists { .. })), "{refused}");
}

#[tokio::test]
async fn a_damaged_journal_is_named() {
    let world = World::new(1, false).await;
    apply(&world).await;
    let key = muster_repo::keys::journal_entry(&run(), 2);
    let mut entry: muster_types::journal::JournalEntry =
        serde_json::from_slice(&world.objects.get(&key).await.unwrap().unwrap()).unwrap();
    entry.records.remove(0);
    world.objects.put(&key, serde_json::to_vec(&entry).unwrap().into()).await.unwrap();
    let damaged = load_report(&world.repository, &run()).await.unwrap_err();
    assert!(matches!(damaged, JournalError::Damaged { .. }), "{damaged}");
}
