//! How near the scheduler comes to what is possible, and what its order is worth.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

mod figures;

use figures::bound::bound;
use figures::exact::least_makespan;
use figures::fleet::{Figures, Fleet};
use figures::list::list_schedule;
use figures::worse;

/// Fleets with at least 50 steps a slot; `MUSTER_FLEETS=1000` for the figures of docs/benchmarks.md.
const LARGE: u64 = 100;

/// Fleets of at most ten steps.
const SMALL: u64 = 500;

/// One large fleet.
struct Compared {
    seed: u64,
    bound: u64,
    own: Figures,
    list: Figures,
}

impl Compared {
    fn of(seed: u64) -> Self {
        let fleet = Fleet::large(seed);
        let own = Figures::of_course(&fleet, &fleet.course());
        Self { seed, bound: bound(&fleet), own, list: Figures::of(&fleet, &list_schedule(&fleet)) }
    }

    fn longer(&self) -> bool {
        self.own.makespan as f64 > self.list.makespan as f64 * 1.02
    }

    fn mean_worse(&self) -> bool {
        self.own.mean_back > self.list.mean_back
    }

    fn more_misses(&self) -> bool {
        self.own.misses > self.list.misses
    }
}

/// Median, 95th percentile and largest.
fn spread(ratios: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = ratios.collect();
    sorted.sort_by(f64::total_cmp);
    [50, 95, 100].map(|percent| sorted[(sorted.len() * percent).div_ceil(100) - 1])
}

#[test]
fn large_fleets_are_near_the_bound_and_better_than_by_plain_list_scheduling() {
    let large = std::env::var("MUSTER_FLEETS").map_or(LARGE, |fleets| fleets.parse().unwrap());
    let half = |from: u64| move || (from..large).step_by(2).map(Compared::of).collect::<Vec<_>>();
    let other = std::thread::spawn(half(1));
    let mut all = half(0)();
    all.extend(other.join().unwrap());
    all.sort_by_key(|fleet| fleet.seed);

    let own = spread(all.iter().map(|fleet| fleet.own.makespan as f64 / fleet.bound as f64));
    let list = spread(all.iter().map(|fleet| fleet.list.makespan as f64 / fleet.bound as f64));
    let mean = spread(all.iter().map(|fleet| fleet.own.mean_back / fleet.list.mean_back));
    let misses = |of: fn(&Compared) -> &Figures| all.iter().map(|fleet| of(fleet).misses).sum::<usize>();
    let (own_misses, list_misses) = (misses(|fleet| &fleet.own), misses(|fleet| &fleet.list));
    println!("makespan to bound, median, p95, largest: {own:.3?}; by list scheduling: {list:.3?}");
    println!("mean recovery time to that of list scheduling: {mean:.3?}");
    println!("late sites: {own_misses}; by list scheduling: {list_misses}");
    assert!(own[0] < 1.02 && own[1] < 1.11 && own[1] <= list[1], "{own:?}");
    assert!(mean[0] < 0.93 && mean[1] < 1.04, "{mean:?}");
    assert!(own_misses * 4 < list_misses, "{own_misses} of {list_misses}");

    let seeds = |worse: fn(&Compared) -> bool| {
        all.iter().filter(|fleet| worse(fleet)).map(|fleet| fleet.seed).collect::<Vec<_>>()
    };
    let kept = |seeds: &[u64]| seeds.iter().copied().filter(|&seed| seed < large).collect::<Vec<_>>();
    let found = [Compared::longer, Compared::mean_worse, Compared::more_misses].map(seeds);
    println!("fleets that are worse (makespan by over 2 %, mean, late sites): {found:?}");
    let known = [worse::LONGER, worse::MEAN_WORSE, worse::MORE_MISSES].map(kept);
    assert_eq!(found, known, "the fleets that are worse are others than those of figures/worse.rs");
}

#[test]
fn small_fleets_are_near_the_optimum() {
    let ratio = |seed| {
        let fleet = Fleet::small(seed);
        let own = Figures::of_course(&fleet, &fleet.course()).makespan;
        let least = least_makespan(&fleet, own);
        assert!(least <= own && least >= bound(&fleet), "fleet {seed}: {own}, {least}");
        own as f64 / least as f64
    };
    let ratios: Vec<f64> = (0..SMALL).map(ratio).collect();
    let solved = ratios.iter().filter(|&&ratio| ratio < 1.000_001).count();
    let spread = spread(ratios.into_iter());
    println!("makespan to optimum, median, p95, largest: {spread:.3?}; {solved} of {SMALL} are optimal");
    assert!(spread[0] < 1.03 && spread[1] < 1.2 && spread[2] < 1.5, "{spread:?}");
}
