//! The least makespan of a small fleet, by branch and bound.
//!
//! Steps are placed one after another, each at the earliest moment at which those before it have ended and its pools have
//! room throughout. Among the orders that respect the edges is one that gives the optimum (active schedules contain one).

use std::collections::BTreeMap;

use super::fleet::Fleet;

struct Search<'a> {
    fleet: &'a Fleet,
    /// From the start of each step to the end of what follows it.
    tails: Vec<u64>,
    /// Start and end of each step that is placed.
    placed: Vec<Option<(u64, u64)>>,
    best: u64,
}

/// The optimum, in microseconds; `known`: an order that takes so long is known.
pub(crate) fn least_makespan(fleet: &Fleet, known: u64) -> u64 {
    let mut tails: Vec<u64> = fleet.steps.iter().map(|step| step.estimate_micros).collect();
    for (index, step) in fleet.steps.iter().enumerate().rev() {
        for &before in &step.after {
            let through = fleet.steps[before as usize].estimate_micros + tails[index];
            tails[before as usize] = tails[before as usize].max(through);
        }
    }
    let placed = vec![None; fleet.steps.len()];
    let mut search = Search { fleet, tails, placed, best: known };
    search.branch(0);
    search.best
}

impl Search<'_> {
    fn branch(&mut self, latest: u64) {
        let open: Vec<(usize, u64)> = self.open().collect();
        if open.is_empty() {
            self.best = self.best.min(latest);
            return;
        }
        // Whatever is open cannot start earlier than now.
        let hopeless = |&(step, earliest): &(usize, u64)| earliest + self.tails[step] >= self.best;
        if open.iter().any(hopeless) {
            return;
        }
        for (step, earliest) in open {
            let end = earliest + self.fleet.steps[step].estimate_micros;
            self.placed[step] = Some((earliest, end));
            self.branch(latest.max(end));
            self.placed[step] = None;
        }
    }

    /// Steps whose predecessors are placed, with the earliest moment at which each fits.
    fn open(&self) -> impl Iterator<Item = (usize, u64)> {
        let steps = self.fleet.steps.iter().enumerate();
        steps.filter(|(index, _)| self.placed[*index].is_none()).filter_map(|(index, step)| {
            let ends: Option<Vec<u64>> =
                step.after.iter().map(|&before| Some(self.placed[before as usize]?.1)).collect();
            let after = ends?.into_iter().max().unwrap_or(0);
            let ends = self.placed.iter().flatten().map(|&(_, end)| end).filter(|&end| end > after);
            let mut moments: Vec<u64> = ends.chain([after]).collect();
            moments.sort_unstable();
            Some((index, moments.into_iter().find(|&at| self.fits(index, at))?))
        })
    }

    fn fits(&self, index: usize, at: u64) -> bool {
        let step = &self.fleet.steps[index];
        let until = at + step.estimate_micros;
        let others = || {
            let placed = self.placed.iter().enumerate();
            placed.filter_map(|(other, span)| Some((other, (*span)?)))
        };
        // Use of a pool only rises where something starts.
        let moments = others().map(|(_, (start, _))| start).filter(|&start| start > at && start < until);
        moments.chain([at]).all(|moment| {
            let mut used: BTreeMap<&str, u64> = step.demand.iter().collect();
            for (other, (start, end)) in others() {
                if start <= moment && moment < end {
                    for (pool, units) in self.fleet.steps[other].demand.iter() {
                        used.entry(pool).and_modify(|used| *used += units);
                    }
                }
            }
            used.into_iter().all(|(pool, units)| units <= self.fleet.pools[pool])
        })
    }
}
