//! Lists of ids, judged.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

#[allow(unused_imports, reason = "this binary uses a part of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_plan::planner::StoreToProbe;
use muster_plan::preflight::{FoundId, GivenId, Judgement, PreflightInput, judge};
use muster_plan::recovery::RecoveryPoint;
use muster_types::catalog::SiteFacts;
use muster_types::plan::LiveStore;
use muster_types::preflight::{Expectation, hash_of};
use muster_types::{Boundary, Incarnation, Position, SiteId, StoreId};
use proptest::prelude::*;
use support::{at, kind, shard, site, topology};

const NOW: f64 = 1_000.0;

/// Sites `s-0`, `s-1`, …; site `n` has one store, which can be brought back to so many seconds before now.
struct World {
    found: BTreeSet<FoundId>,
    facts: BTreeMap<SiteId, SiteFacts>,
    stores: Vec<StoreToProbe>,
    live: BTreeMap<StoreId, LiveStore>,
}

impl World {
    fn new(ages_seconds: &[f64]) -> Self {
        let mut world =
            Self { found: BTreeSet::new(), facts: BTreeMap::new(), stores: vec![], live: BTreeMap::new() };
        for (number, age_seconds) in ages_seconds.iter().enumerate() {
            let id = site(&format!("s-{number}"));
            let store = StoreId { site: id.clone(), kind: kind("metadata") };
            world.found.insert(FoundId {
                id_type: "site".into(),
                id: id.as_str().into(),
                site: id.clone(),
                kind: None,
            });
            world
                .facts
                .insert(id, SiteFacts { name: Some(format!("name-{number}")), ..SiteFacts::default() });
            let point = RecoveryPoint {
                number: 0,
                incarnation: Incarnation::new("0001-00000000").unwrap(),
                boundary: Boundary { position: Position(7), at: at(NOW - age_seconds) },
                because: String::new(),
                exact: false,
                covered: false,
                gap: None,
                late: None,
            };
            world.live.insert(store.clone(), LiveStore { rows: 10, ..LiveStore::default() });
            let (here, tables) = (shard("shard-0"), Arc::new(vec![]));
            world.stores.push(StoreToProbe {
                store,
                shard: here.clone(),
                source: here,
                point,
                rows: 9,
                tables,
            });
        }
        world
    }

    fn judge(&self, ids: &[&str], expected: &Expectation) -> Judgement {
        let given: Vec<GivenId> = ids
            .iter()
            .enumerate()
            .map(|(line, id)| GivenId::read(format!("list:{}", line + 1), id))
            .collect();
        judge(PreflightInput {
            topology: &topology(),
            expected,
            given: &given,
            found: &self.found,
            facts: &self.facts,
            stores: &self.stores,
            live: &self.live,
            now: at(NOW),
        })
    }
}

fn sites(count: u64, age: Option<u64>) -> Expectation {
    Expectation { id_type: "site".into(), count, recovery_point_age_seconds_max: age }
}

fn codes(judgement: &Judgement) -> Vec<&str> {
    judgement.refusals.iter().map(|refusal| refusal.code.as_str()).collect()
}

#[test]
fn a_recovery_point_is_new_enough_or_the_list_is_refused() {
    let world = World::new(&[0.0, 60.0, 61.5]);
    let ids = ["s-0", "s-1", "s-2"];
    assert_eq!(codes(&world.judge(&ids[..2], &sites(2, Some(60)))), [""; 0]);
    let judged = world.judge(&ids, &sites(3, Some(60)));
    assert_eq!(codes(&judged), ["old-recovery-point"]);
    assert!(
        judged.refusals[0].text.contains("site:s-2 (name-2)/metadata: 61 s old, 60 s at most"),
        "{judged:?}"
    );
    assert_eq!(codes(&world.judge(&ids, &sites(3, Some(61)))), [""; 0]);

    // Nothing said: the tier's, or the strictest of any tier where the site's is not known.
    let strictest = topology().tiers.values().map(|tier| tier.rpo_seconds).min().unwrap() as f64;
    let world = World::new(&[strictest, strictest + 1.0]);
    assert_eq!(codes(&world.judge(&ids[..1], &sites(1, None))), [""; 0]);
    assert_eq!(codes(&world.judge(&ids[..2], &sites(2, None))), ["old-recovery-point"]);
}

#[test]
fn gaps_and_open_runs_stand_in_the_way() {
    let mut world = World::new(&[0.0, 0.0]);
    world.stores[0].point.gap = Some("capture was away".into());
    world.live.get_mut(&world.stores[1].store).unwrap().claimed_by = Some("r-1".into());
    let judged = world.judge(&["site:s-0", "s-1"], &sites(2, None));
    assert_eq!(codes(&judged), ["held-by-run", "no-recovery-point"]);
    assert!(judged.refusals[0].text.contains("run r-1"), "{judged:?}");
}

proptest! {
    /// The hash is that of what is named: not of the order, nor of what the stores hold; and any other thing changes it.
    #[test]
    fn the_hash_is_of_what_is_named(
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        rows in 0..100_u64,
        other in 0..8_usize,
        rename in any::<bool>(),
    ) {
        let mut world = World::new(&[0.0; 9]);
        let ids: Vec<String> = (0..8).map(|number| format!("s-{number}")).collect();
        let list = |order: &[usize]| order.iter().map(|&number| ids[number].as_str()).collect::<Vec<_>>();
        let expected = sites(8, None);
        let sorted: Vec<usize> = (0..8).collect();
        let first = hash_of(&expected, &world.judge(&list(&sorted), &expected).subjects);
        for live in world.live.values_mut() {
            live.rows = rows;
        }
        prop_assert_eq!(first, hash_of(&expected, &world.judge(&list(&order), &expected).subjects));

        let mut changed = list(&order);
        if rename {
            world.facts.get_mut(&site(&format!("s-{other}"))).unwrap().name = Some("another".into());
        } else {
            changed[other] = "s-8";
        }
        let subjects = world.judge(&changed, &expected).subjects;
        prop_assert_ne!(first, hash_of(&expected, &subjects));
        prop_assert_ne!(first, hash_of(&sites(9, None), &world.judge(&list(&order), &expected).subjects));
    }
}
