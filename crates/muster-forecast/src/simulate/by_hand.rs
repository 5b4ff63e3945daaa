//! Work by hand: one site after another, or in batches with a barrier.

use std::cmp::Reverse;

use muster_types::Timestamp;

use super::fleet::Site;
use super::scenario::{Scenario, Way};

/// How long a batch takes: each step costs a fixed part, and a part for each site.
fn batch_micros(way: &Way, sites: usize) -> i64 {
    let of_sites = (1.0 - way.fixed_share) * sites as f64 / way.batch_sites as f64;
    let step_hours = way.batch_hours / way.steps as f64 * (way.fixed_share + of_sites);
    (step_hours * way.steps as f64 * 3_600e6) as i64
}

/// By index of the site: when it is back, if one site follows another by the first way.
pub(super) fn sequential(scenario: &Scenario, sites: &[Site]) -> Vec<Timestamp> {
    let way = &scenario.by_hand.first;
    let one = batch_micros(way, 1);
    let nth = |index: usize| i64::try_from(index / way.crews as usize + 1).unwrap_or(i64::MAX);
    let back = |index| way.begins_at.plus_micros(one.saturating_mul(nth(index)));
    (0..sites.len()).map(back).collect()
}

/// By index of the site: when it is back, if the sites with most users come first by the first way, and the others by the
/// second. A batch begins when all of those before it have ended.
pub(super) fn batches(scenario: &Scenario, sites: &[Site]) -> Vec<Timestamp> {
    let mut order: Vec<usize> = (0..sites.len()).collect();
    order.sort_by(|&a, &b| sites[b].users.total_cmp(&sites[a].users).then(Reverse(b).cmp(&Reverse(a))));
    let (first, second) = order.split_at(scenario.batches.first_way_sites as usize);
    let mut back = vec![Timestamp::EPOCH; sites.len()];
    for (way, chosen) in [(&scenario.by_hand.first, first), (&scenario.by_hand.second, second)] {
        let mut now = way.begins_at;
        for batch in chosen.chunks((way.batch_sites * way.crews) as usize) {
            // Crews work side by side, each on its part.
            now = now.plus_micros(batch_micros(way, batch.len().div_ceil(way.crews as usize)));
            batch.iter().for_each(|&site| back[site] = now);
        }
    }
    back
}
