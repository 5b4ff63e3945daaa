//! Stores that are worked on together.

use super::*;

#[tokio::test]
async fn sites_come_back_in_groups() {
    let mut world = World::new(7, false).await;
    world.group(4);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed, summary.failures), (7, 0, vec![]));
    assert_eq!(world.victims_live(), world.restored);
    assert!(world.effects().values().all(|&count| count == 1) && world.effects().len() == 14);
    assert!(world.claims().is_empty());
    for shard in world.shards.values() {
        let mut groups = shard.lock().groups.clone();
        groups.sort_unstable();
        assert_eq!(groups, [3, 4], "{}", shard.name);
    }
    let report = load_report(&world.repository, &run()).await.unwrap();
    assert_eq!(report.status, RunStatus::Restored);
    assert_eq!((report.totals.sites_restored, report.totals.stores, report.totals.rows), (7, 14, 56));
    assert_eq!((report.proof.sites_proven, report.proof.marked_changes), (7, 56));
    assert!(report.proof.shards.values().all(|proof| proof.holds));
}

#[tokio::test]
async fn a_culprit_in_a_group_fails_alone_and_a_resume_brings_it_back() {
    for (class, times) in [(ErrorClass::Permanent, u32::MAX), (ErrorClass::Transient, u32::MAX)] {
        let mut world = World::new(9, false).await;
        world.group(9);
        world.shard("d").lock().failures.insert(("publish", store(5, "metadata")), (class, times));
        let summary = apply(&world).await;
        assert_eq!((summary.sites_restored, summary.sites_failed), (8, 1), "{summary:?}");
        let failed: Vec<&StepKey> = summary.failures.iter().map(|failure| &failure.step).collect();
        assert_eq!(failed, [&StepKey::Publish(store(5, "metadata"))]);
        assert_eq!(world.claims().len(), 2, "the failed site stays claimed");
        let report = load_report(&world.repository, &run()).await.unwrap();
        assert_eq!(report.status, RunStatus::RestoredInPart);
        // That the others were undone with it is over, and no fault of theirs.
        let failed: Vec<_> = report.sites.iter().filter(|site| site.failure.is_some()).collect();
        assert!(failed.len() == 1 && failed[0].site == victim(5), "{failed:?}");

        world.shard("d").lock().failures.clear();
        let resumed = world.engine(world.options()).resume(&run(), &Cancel::new()).await.unwrap();
        assert_eq!((resumed.sites_restored, resumed.sites_failed), (9, 0));
        assert_eq!(world.victims_live(), world.restored);
        assert!(world.effects().values().all(|&count| count == 1));
    }
}

#[tokio::test]
async fn what_goes_wrong_for_one_in_a_group_costs_no_other() {
    let mut world = World::new(6, false).await;
    world.group(6);
    let failures = |shard: &str, call, store, class| {
        world.shard(shard).lock().failures.insert((call, store), (class, 1));
    };
    failures("d", "stage", store(0, "metadata"), ErrorClass::Transient);
    failures("d", "digest", store(1, "metadata"), ErrorClass::StagingLost);
    failures("d", "publish-answer", store(2, "metadata"), ErrorClass::Ambiguous);
    failures("e", "publish", store(3, "identity"), ErrorClass::StagingLost);
    failures("e", "publish", store(4, "identity"), ErrorClass::Throttled);
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (6, 0), "{summary:?}");
    assert_eq!(world.victims_live(), world.restored);
    assert!(world.effects().values().all(|&count| count == 1), "{:?}", world.effects());
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_taken_out_of_its_group() {
    let mut world = World::new(4, false).await;
    world.group(4);
    // Its digest is not that of the object's bytes.
    let damaged = &mut world.plan.sites[2].stores[0].tables[0];
    damaged.base.as_mut().unwrap().rows_digest = Digest::of(b"other");
    world.plan = world.plan.clone().seal();
    let summary = apply(&world).await;
    assert_eq!((summary.sites_restored, summary.sites_failed), (3, 1), "{summary:?}");
    assert_eq!(summary.failures[0].step, StepKey::Stage(store(2, "metadata")));
    let history = crate::read_run(&world.repository, &run()).await.unwrap();
    let attempts = |number| history.state.step(&StepKey::Stage(store(number, "metadata"))).unwrap().attempts;
    assert_eq!((attempts(1), attempts(2), attempts(3)), (1, 2, 1), "only it is tried again, alone");
}

#[tokio::test]
async fn a_stray_write_within_a_group_is_caught_by_the_mark_of_its_store() {
    let mut world = World::new(4, true).await;
    world.group(4);
    world.shard("d").lock().stray = Some(Stray::Marked);
    let summary = apply(&world).await;
    for number in 0..4 {
        let check = StepKey::Check(victim(number));
        let failure = summary.failures.iter().find(|failure| failure.step == check).unwrap();
        assert!(
            failure.error.contains("stray write") && failure.error.contains("site:n0"),
            "{}",
            failure.error
        );
    }
}

#[tokio::test]
async fn records_of_a_group_are_its_steps_own() {
    let mut world = World::new(3, false).await;
    world.group(3);
    apply(&world).await;
    let history = crate::read_run(&world.repository, &run()).await.unwrap();
    for number in 0..3 {
        for key in [StepKey::Stage(store(number, "metadata")), StepKey::Publish(store(number, "identity"))] {
            let step = history.state.step(&key).unwrap();
            assert!(step.attempts == 1 && step.outcome.is_some() && step.error.is_none(), "{key}: {step:?}");
        }
    }
}

#[tokio::test]
async fn each_object_is_read_once_however_many_stores_need_it() {
    for size in [1, 4] {
        let mut world = World::new(9, false).await;
        if size > 1 {
            world.group(size);
        }
        world.memory.1.lock().unwrap().clear();
        let taken = apply(&world).await;
        assert_eq!(taken.sites_restored, 9);
        let reads = world.memory.1.lock().unwrap().clone();
        assert_eq!(world.plan.objects.len(), 2, "a pack a shard");
        for object in &world.plan.objects {
            assert_eq!(reads.get(&object.key), Some(&1), "{}", object.key);
        }
    }
}
