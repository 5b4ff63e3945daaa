//! Steps that run together, and what becomes of those that failed.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use muster_types::plan::{Demand, PlanStep, StepKey};

use super::ScheduleError;
use crate::driver::ErrorClass;

/// Fails where steps of one group could not hold one grant.
pub(super) fn check(steps: &[PlanStep]) -> Result<(), ScheduleError> {
    let mut groups: HashMap<u32, (&Demand, u32, Discriminant<StepKey>)> = HashMap::new();
    for step in steps {
        let Some(group) = step.group else { continue };
        let own = (&step.demand, step.wave, discriminant(&step.key));
        if *groups.entry(group).or_insert(own) != own {
            return Err(ScheduleError::MixedGroup { step: step.key.clone() });
        }
    }
    Ok(())
}

/// A batch under way, or ended.
#[derive(Debug)]
pub(super) struct Batch {
    first: u32,
    size: u32,
    running: u32,
    /// Steps that failed in company, with what can be done about it.
    failed: Vec<(u32, ErrorClass)>,
    throttled: bool,
    /// A failure of it was counted against the other side.
    blamed: bool,
    /// One of its steps did.
    pub(super) succeeded: bool,
}

/// A step that is to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) step: u32,
    /// Most steps of its next batch.
    pub(super) company_max: u32,
    /// Nothing is waited for.
    pub(super) at_once: bool,
}

impl Batch {
    /// The first of its steps.
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// How those that failed go on. Among so many is the cause; half of them are tried together. Where somebody else has
    /// to come round, who would be waited for once a half, each goes on alone.
    pub(super) fn again(&self) -> impl Iterator<Item = Again> {
        let half = u32::try_from(self.failed.len().div_ceil(2)).unwrap_or(u32::MAX);
        self.failed.iter().map(move |&(step, class)| {
            let company_max = match class {
                ErrorClass::Permanent
                | ErrorClass::Fenced
                | ErrorClass::Throttled
                | ErrorClass::Unavailable => half,
                ErrorClass::Transient
                | ErrorClass::Ambiguous
                | ErrorClass::RepositoryAway
                | ErrorClass::StagingLost => 1,
            };
            let at_once = matches!(class, ErrorClass::Permanent | ErrorClass::StagingLost);
            Again { step, company_max, at_once }
        })
    }
}

/// Batches under way.
#[derive(Debug, Default)]
pub(super) struct Batches {
    open: HashMap<u32, Batch>,
    next: u32,
}

impl Batches {
    /// A new one; its number.
    pub(super) fn begin(&mut self, steps: &[u32]) -> u32 {
        // Attempts of a plan are far fewer than numbers, and a number is free again long before it returns.
        self.next = self.next.wrapping_add(1);
        let size = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        let first = steps.first().copied().unwrap_or_default();
        let batch = Batch {
            first,
            size,
            running: size,
            failed: Vec::new(),
            throttled: false,
            blamed: false,
            succeeded: false,
        };
        self.open.insert(self.next, batch);
        self.next
    }

    /// Steps that began together.
    pub(super) fn size(&self, batch: u32) -> u32 {
        self.open.get(&batch).map_or(0, |batch| batch.size)
    }

    /// One of its steps succeeded.
    pub(super) fn succeeded(&mut self, batch: u32) {
        if let Some(batch) = self.open.get_mut(&batch) {
            batch.succeeded = true;
        }
    }

    /// Whether no step of it was throttled before; from now on one was.
    pub(super) fn is_first_throttled(&mut self, batch: u32) -> bool {
        self.open.get_mut(&batch).is_some_and(|batch| !std::mem::replace(&mut batch.throttled, true))
    }

    /// Whether none of its failures was counted against the other side before; from now on one was.
    pub(super) fn is_first_blame(&mut self, batch: u32) -> bool {
        self.open.get_mut(&batch).is_some_and(|batch| !std::mem::replace(&mut batch.blamed, true))
    }

    /// One of its steps has ended; the batch, if that was the last one. `failed`: it did, in company.
    pub(super) fn ended(&mut self, number: u32, step: u32, failed: Option<ErrorClass>) -> Option<Batch> {
        let batch = self.open.get_mut(&number)?;
        batch.running -= 1;
        batch.failed.extend(failed.map(|class| (step, class)));
        if batch.running > 0 { None } else { self.open.remove(&number) }
    }
}
