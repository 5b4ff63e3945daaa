//! The choice of a drill, over many fleets and seeds.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::drill::{Candidate, choose, moment};
use muster_types::drill::Stratum;
use muster_types::{SiteId, Timestamp};
use proptest::prelude::*;

const STRATA: [Stratum; 4] = [Stratum::Tier, Stratum::Shard, Stratum::Size, Stratum::Products];

fn site(number: usize) -> SiteId {
    SiteId::new(format!("s{number}")).unwrap()
}

fn candidate(number: usize, (tier, shard, rows, drilled): (u8, u8, u64, Option<i64>)) -> Candidate {
    Candidate {
        site: site(number),
        tier: (tier > 0).then(|| format!("tier-{tier}")),
        shards: [format!("eu-{shard}").parse().unwrap()].into(),
        rows,
        products: BTreeSet::new(),
        drilled_at: drilled.map(Timestamp::from_micros),
    }
}

fn fleets() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0..3_u8, 0..3_u8, 0..2_000_u64, proptest::option::of(1..50_i64));
    proptest::collection::vec(one, 0..40)
        .prop_map(|fleet| fleet.into_iter().enumerate().map(|(number, of)| candidate(number, of)).collect())
}

/// By what the sites of a fleet are told apart, said anew.
fn sort(candidate: &Candidate) -> (Option<String>, String, usize) {
    let shards: Vec<String> = candidate.shards.iter().map(ToString::to_string).collect();
    let digits = if candidate.rows == 0 { 0 } else { candidate.rows.to_string().len() };
    (candidate.tier.clone(), shards.join(" "), digits)
}

proptest! {
    #[test]
    fn as_many_as_asked_for_and_each_once(fleet in fleets(), count in 0..50_usize, seed: u64) {
        let chosen = choose(&fleet, count, &STRATA, seed);
        let distinct: BTreeSet<&SiteId> = chosen.iter().collect();
        prop_assert_eq!(distinct.len(), chosen.len());
        prop_assert_eq!(chosen.len(), count.min(fleet.len()));
        prop_assert!(chosen.iter().all(|site| fleet.iter().any(|candidate| candidate.site == *site)));
    }

    #[test]
    fn the_order_of_candidates_says_nothing(fleet in fleets(), count in 0..50_usize, seed: u64) {
        let mut turned = fleet.clone();
        turned.reverse();
        prop_assert_eq!(choose(&fleet, count, &STRATA, seed), choose(&turned, count, &STRATA, seed));
        // Nor does a longer list change its beginning.
        let longer = choose(&fleet, count + 5, &STRATA, seed);
        prop_assert_eq!(&choose(&fleet, count, &STRATA, seed)[..], &longer[..count.min(longer.len())]);
    }

    #[test]
    fn every_sort_has_its_turn_before_any_has_two(fleet in fleets(), seed: u64) {
        let sorts: BTreeSet<_> = fleet.iter().map(sort).collect();
        let chosen = choose(&fleet, sorts.len(), &STRATA, seed);
        let of = |site: &SiteId| sort(fleet.iter().find(|candidate| candidate.site == *site).unwrap());
        prop_assert_eq!(chosen.iter().map(of).collect::<BTreeSet<_>>(), sorts);
    }

    #[test]
    fn within_a_sort_never_drilled_comes_first_then_longest_ago(fleet in fleets(), seed: u64) {
        let mut by_sort: BTreeMap<_, Vec<Option<Timestamp>>> = BTreeMap::new();
        for chosen in choose(&fleet, fleet.len(), &STRATA, seed) {
            let candidate = fleet.iter().find(|candidate| candidate.site == chosen).unwrap();
            by_sort.entry(sort(candidate)).or_default().push(candidate.drilled_at);
        }
        for turns in by_sort.values() {
            prop_assert!(turns.is_sorted(), "{:?}", turns);
        }
    }

    #[test]
    fn a_moment_lies_in_its_window(from in 0..1_000_000_i64, width in 0..1_000_000_i64, seed: u64) {
        let (first, last) = (Timestamp::from_micros(from), Timestamp::from_micros(from + width));
        let drawn = moment(first, last, seed).unwrap();
        prop_assert!(first <= drawn && drawn <= last);
        prop_assert_eq!(moment(last.plus_micros(1), first, seed), None);
    }
}

#[test]
fn seeds_draw_different_sites_and_moments() {
    let fleet: Vec<Candidate> = (0..30).map(|number| candidate(number, (1, 1, 10, None))).collect();
    let drawn: BTreeSet<SiteId> = (0..20).flat_map(|seed| choose(&fleet, 1, &STRATA, seed)).collect();
    assert!(drawn.len() > 5, "{drawn:?}");
    let (first, last) = (Timestamp::from_micros(0), Timestamp::from_micros(1_000_000));
    let moments: BTreeSet<Timestamp> = (0..20).filter_map(|seed| moment(first, last, seed)).collect();
    assert!(moments.len() > 15, "{moments:?}");
}
