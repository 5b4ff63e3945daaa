//! Plain list scheduling: whenever something ends, every ready step that fits starts, in the order of the plan.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::fleet::Fleet;

/// The end of each step, in microseconds.
pub(crate) fn list_schedule(fleet: &Fleet) -> Vec<u64> {
    let steps = &fleet.steps;
    let mut free: BTreeMap<&str, u64> =
        fleet.pools.iter().map(|(pool, &units)| (pool.as_str(), units)).collect();
    let mut open: Vec<usize> = steps.iter().map(|step| step.after.len()).collect();
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    for (index, step) in steps.iter().enumerate() {
        step.after.iter().for_each(|&before| followers[before as usize].push(index));
    }
    let mut ready: BTreeSet<usize> = (0..steps.len()).filter(|&step| open[step] == 0).collect();
    let mut running = BinaryHeap::new();
    let mut ends = vec![0; steps.len()];
    let mut now = 0;
    loop {
        let mut started = Vec::new();
        for &index in &ready {
            let fits = steps[index].demand.iter().all(|(pool, units)| free[pool] >= units);
            if fits {
                for (pool, units) in steps[index].demand.iter() {
                    *free.get_mut(pool).unwrap() -= units;
                }
                running.push(Reverse((now + steps[index].estimate_micros, index)));
                started.push(index);
            }
        }
        started.iter().for_each(|index| {
            ready.remove(index);
        });
        let Some(&Reverse((at, _))) = running.peek() else { return ends };
        now = at;
        while running.peek().is_some_and(|Reverse((end, _))| *end == now) {
            let Reverse((_, index)) = running.pop().unwrap();
            ends[index] = now;
            for (pool, units) in steps[index].demand.iter() {
                *free.get_mut(pool).unwrap() += units;
            }
            for &follower in &followers[index] {
                open[follower] -= 1;
                if open[follower] == 0 {
                    ready.insert(follower);
                }
            }
        }
    }
}
