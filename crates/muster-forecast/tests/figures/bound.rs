//! What any order takes at least.

use std::collections::BTreeMap;

use super::fleet::Fleet;

/// So many least heads, and as many least tails, are tried for each pool.
const THRESHOLDS: usize = 24;

/// A step as one pool sees it, in microseconds.
struct Item {
    /// Until it can start at the earliest.
    head: u64,
    /// From its end to that of what follows, at least.
    tail: u64,
    /// Its units for its duration.
    work: u64,
}

/// The longest path, or what a pool needs: the work of some of its steps over its capacity, with the least time before the
/// first and behind the last of them. In microseconds.
pub(crate) fn bound(fleet: &Fleet) -> u64 {
    let steps = &fleet.steps;
    let mut heads = vec![0u64; steps.len()];
    for (index, step) in steps.iter().enumerate() {
        let end = |&before: &u32| heads[before as usize] + steps[before as usize].estimate_micros;
        heads[index] = step.after.iter().map(end).max().unwrap_or(0);
    }
    let mut tails = vec![0u64; steps.len()];
    for (index, step) in steps.iter().enumerate().rev() {
        for &before in &step.after {
            tails[before as usize] = tails[before as usize].max(tails[index] + step.estimate_micros);
        }
    }
    let mut pools: BTreeMap<&str, Vec<Item>> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        for (pool, units) in step.demand.iter() {
            let work = units * step.estimate_micros;
            pools.entry(pool).or_default().push(Item { head: heads[index], tail: tails[index], work });
        }
    }
    let path = (0..steps.len()).map(|index| heads[index] + steps[index].estimate_micros).max().unwrap_or(0);
    pools.into_iter().map(|(pool, items)| needs(&items, fleet.pools[pool])).fold(path, u64::max)
}

fn needs(items: &[Item], capacity: u64) -> u64 {
    let heads = thresholds(items.iter().map(|item| item.head).collect());
    let tails = thresholds(items.iter().map(|item| item.tail).collect());
    let of = |head: u64, tail: u64| {
        let chosen = items.iter().filter(|item| item.head >= head && item.tail >= tail);
        match chosen.map(|item| item.work).sum::<u64>() {
            0 => 0,
            work => head + tail + work.div_ceil(capacity),
        }
    };
    heads.iter().flat_map(|&head| tails.iter().map(move |&tail| of(head, tail))).max().unwrap_or(0)
}

/// Values spread over all, denser towards the largest.
fn thresholds(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable_by(|a, b| b.cmp(a));
    let last = values.len() - 1;
    let nth = |n: usize| (n as f64 / THRESHOLDS as f64).powi(3) * last as f64;
    let mut chosen: Vec<u64> = (0..=THRESHOLDS).map(|n| values[nth(n) as usize]).collect();
    chosen.dedup();
    chosen
}
