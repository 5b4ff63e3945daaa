//! The plan's edges both ways.

use std::collections::HashSet;

use muster_types::plan::{PlanStep, StepKey};

use super::ScheduleError;

/// Lists of numbers by step, in one allocation.
pub(super) struct Lists {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Lists {
    /// Turns edges "step waits for others" around.
    fn reversed<'a>(steps: &'a [PlanStep], edges: impl Fn(&'a PlanStep) -> &'a [u32]) -> Self {
        let mut starts = vec![0u32; steps.len() + 1];
        for step in steps {
            for &before in edges(step) {
                starts[before as usize + 1] += 1;
            }
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut next = starts.clone();
        let mut items = vec![0u32; starts.last().copied().unwrap_or(0) as usize];
        for (index, step) in (0u32..).zip(steps) {
            for &before in edges(step) {
                let slot = &mut next[before as usize];
                items[*slot as usize] = index;
                *slot += 1;
            }
        }
        Self { starts, items }
    }

    pub(super) fn of(&self, step: u32) -> &[u32] {
        let step = step as usize;
        &self.items[self.starts[step] as usize..self.starts[step + 1] as usize]
    }
}

/// See the module.
pub(super) struct Graph {
    keys: Vec<StepKey>,
    predecessors: Vec<u32>,
    after: Lists,
    after_ended: Lists,
    sites: u64,
}

impl Graph {
    /// The graph; by step the longest estimated path from its start to the end of what depends on it; and a topological order.
    pub(super) fn new(steps: &[PlanStep]) -> Result<(Self, Vec<u64>, Vec<u32>), ScheduleError> {
        check(steps)?;
        let after = Lists::reversed(steps, |step| &step.after);
        let after_ended = Lists::reversed(steps, |step| &step.after_ended);
        let predecessors: Vec<u32> = steps.iter().map(count_predecessors).collect();
        let order = topological(steps, &predecessors, &after, &after_ended)?;
        let remaining = remaining_paths(steps, &order, &after);
        let graph = Self {
            keys: steps.iter().map(|step| step.key.clone()).collect(),
            predecessors,
            after,
            after_ended,
            sites: steps.iter().filter_map(|step| step.key.site()).collect::<HashSet<_>>().len() as u64,
        };
        Ok((graph, remaining, order))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "edges are u32, so plans hold at most that many steps"
    )]
    pub(super) fn len(&self) -> u32 {
        self.keys.len() as u32
    }

    pub(super) fn sites(&self) -> u64 {
        self.sites
    }

    pub(super) fn key(&self, step: u32) -> &StepKey {
        &self.keys[step as usize]
    }

    /// Number of edges into the step.
    pub(super) fn predecessors(&self, step: u32) -> u32 {
        self.predecessors[step as usize]
    }

    pub(super) fn roots(&self) -> Vec<u32> {
        (0..self.len()).filter(|&step| self.predecessors(step) == 0).collect()
    }

    /// By step, those that wait for its success.
    pub(super) fn all_dependents(&self) -> &Lists {
        &self.after
    }

    /// Steps that wait for the success of this one.
    pub(super) fn dependents(&self, step: u32) -> &[u32] {
        self.after.of(step)
    }

    /// Steps that wait for what happened: for the end of this one and, if it succeeded, for its success.
    pub(super) fn successors(&self, step: u32, succeeded: bool) -> Vec<u32> {
        let succeeded: &[u32] = if succeeded { self.after.of(step) } else { &[] };
        [self.after_ended.of(step), succeeded].concat()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "edges are u32, so there are fewer predecessors than that"
)]
fn count_predecessors(step: &PlanStep) -> u32 {
    (step.after.len() + step.after_ended.len()) as u32
}

fn check(steps: &[PlanStep]) -> Result<(), ScheduleError> {
    let mut seen = HashSet::with_capacity(steps.len());
    for step in steps {
        if !seen.insert(&step.key) {
            return Err(ScheduleError::Repeated { step: step.key.clone() });
        }
        let unknown = |&&edge: &&u32| edge as usize >= steps.len();
        if let Some(&edge) = step.after.iter().chain(&step.after_ended).find(unknown) {
            return Err(ScheduleError::UnknownStep { step: step.key.clone(), edge });
        }
    }
    Ok(())
}

fn topological(
    steps: &[PlanStep],
    predecessors: &[u32],
    after: &Lists,
    after_ended: &Lists,
) -> Result<Vec<u32>, ScheduleError> {
    let mut unmet = predecessors.to_vec();
    let mut order: Vec<u32> =
        (0u32..).zip(&unmet).filter(|&(_, &count)| count == 0).map(|(step, _)| step).collect();
    let mut next = 0;
    while let Some(&step) = order.get(next) {
        next += 1;
        for &successor in after.of(step).iter().chain(after_ended.of(step)) {
            unmet[successor as usize] -= 1;
            if unmet[successor as usize] == 0 {
                order.push(successor);
            }
        }
    }
    match unmet.iter().position(|&count| count > 0) {
        Some(step) => Err(ScheduleError::Cycle { step: steps[step].key.clone() }),
        None => Ok(order),
    }
}

/// The longest estimated path from the start of each step to the end of what depends on it.
fn remaining_paths(steps: &[PlanStep], order: &[u32], after: &Lists) -> Vec<u64> {
    let mut remaining = vec![0u64; steps.len()];
    for &step in order.iter().rev() {
        let behind = after.of(step).iter().map(|&successor| remaining[successor as usize]).max().unwrap_or(0);
        remaining[step as usize] = steps[step as usize].estimate_micros.saturating_add(behind);
    }
    remaining
}
