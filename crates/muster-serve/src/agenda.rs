//! What a server does next about a job: a pure function of the job's chain of records, the clock and who is alive.
//!
//! Each job has a chain of create-if-absent records in the repository, like a run's journal: whoever wins the next slot
//! has decided. A record says everything that the next decision needs, so that a server reads the last one only.
//!
//! # Invariants
//! - One occurrence is at work at a time; those that come meanwhile, or while no server was there, are counted in the
//!   record of the one that follows: never run twice, never left out in silence.
//! - Occurrences ascend along the chain, whatever the clocks do.
//! - Who was taken for dead and lives finds its slot taken: what it did does not count.

use muster_types::Timestamp;
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord, Missed};

use crate::schedule::Schedule;

/// Takeovers of one occurrence: what brings down three servers is not the servers' fault.
pub const ATTEMPTS_MAX: u32 = 3;

/// Missed occurrences that are counted one by one; a longer absence says "at least".
const COUNTED_MAX: u64 = 100_000;

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// When it is due.
    pub schedule: Schedule,
}

/// What a server does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write this decision into the next slot; if that is won and it is a claim, do the work.
    Decide {
        /// What [`JobRecord::settled`] becomes.
        settled: Timestamp,
        /// What is decided.
        decision: JobDecision,
    },
    /// Nothing until then, as far as is known now.
    Wait {
        /// When to look again.
        until: Option<Timestamp>,
    },
}

/// Decides. `last` is the last record of the chain, `alive` says whether a server shows signs of life.
///
/// An attempt of the asking server itself that it knows nothing of is one of its former life: `alive` says no to it.
pub fn next(job: &Job, last: Option<&JobRecord>, now: Timestamp, alive: impl Fn(&str) -> bool) -> Next {
    let Some(last) = last else {
        return Next::Decide { settled: now, decision: JobDecision::Begun };
    };
    if matches!(last.decision, JobDecision::Claimed { .. }) && alive(&last.server) {
        return Next::Wait { until: None };
    }
    if let Some((occurrence, attempt)) = unfinished(last) {
        let decision = if attempt < ATTEMPTS_MAX {
            JobDecision::Claimed { occurrence, attempt: attempt + 1, missed: None }
        } else {
            JobDecision::Done { occurrence, attempt, outcome: JobOutcome::Lost }
        };
        return Next::Decide { settled: last.settled, decision };
    }
    match latest_due(job, last.settled, now) {
        Some((occurrence, missed)) => Next::Decide {
            settled: occurrence,
            decision: JobDecision::Claimed { occurrence, attempt: 1, missed },
        },
        None => {
            let next = job.schedule.next_after(last.settled);
            Next::Wait { until: next.map(|next| job.schedule.starts_at(&job.name, next)) }
        }
    }
}

/// The last occurrence behind `settled` that has started, and those before it.
fn latest_due(job: &Job, settled: Timestamp, now: Timestamp) -> Option<(Timestamp, Option<Missed>)> {
    let schedule = &job.schedule;
    let mut latest = schedule.last_at(now)?;
    // Jitter may put the start of the last ones behind now.
    while latest > settled && schedule.starts_at(&job.name, latest) > now {
        latest = schedule.last_at(latest.plus_micros(-1))?;
    }
    if latest <= settled {
        return None;
    }
    let mut missed: Option<Missed> = None;
    let mut one = schedule.next_after(settled)?;
    while one < latest {
        let known = missed.get_or_insert(Missed { first: one, last: one, count: 0 });
        known.count += 1;
        if known.count >= COUNTED_MAX {
            known.last = schedule.last_at(latest.plus_micros(-1)).unwrap_or(one);
            break;
        }
        known.last = one;
        one = schedule.next_after(one)?;
    }
    Some((latest, missed))
}

/// The occurrence that is at work, or that has started and nobody works on: the earliest one.
pub fn unsettled(job: &Job, last: Option<&JobRecord>, now: Timestamp) -> Option<Timestamp> {
    let last = last?;
    if let Some((occurrence, _)) = unfinished(last) {
        return Some(occurrence);
    }
    let next = job.schedule.next_after(last.settled)?;
    (job.schedule.starts_at(&job.name, next) <= now).then_some(next)
}

/// The attempt that has not come to its end.
fn unfinished(last: &JobRecord) -> Option<(Timestamp, u32)> {
    match last.decision {
        JobDecision::Claimed { occurrence, attempt, .. } | JobDecision::Released { occurrence, attempt } => {
            Some((occurrence, attempt))
        }
        JobDecision::Begun | JobDecision::Done { .. } => None,
    }
}

/// Whether `record` may follow `last`: what a chain is held against when it is written.
pub fn follows(last: Option<&JobRecord>, record: &JobRecord) -> bool {
    let Some(last) = last else {
        return record.sequence == 1 && record.decision == JobDecision::Begun;
    };
    record.sequence == last.sequence + 1
        && match unfinished(last) {
            Some(tried) => record.settled == last.settled && continues(last, tried, record),
            None => begins(last, record),
        }
}

/// Whether `record` goes on with the attempt of `last`.
fn continues(last: &JobRecord, (of, tried): (Timestamp, u32), record: &JobRecord) -> bool {
    let is_claimed = matches!(last.decision, JobDecision::Claimed { .. });
    match &record.decision {
        JobDecision::Claimed { occurrence, attempt, missed } => {
            *occurrence == of && *attempt == tried + 1 && missed.is_none()
        }
        JobDecision::Done { occurrence, attempt, .. } => *occurrence == of && *attempt == tried,
        JobDecision::Released { occurrence, attempt } => is_claimed && *occurrence == of && *attempt == tried,
        JobDecision::Begun => false,
    }
}

/// Whether `record` begins an occurrence behind everything that is settled.
fn begins(last: &JobRecord, record: &JobRecord) -> bool {
    let JobDecision::Claimed { occurrence, attempt, missed } = &record.decision else { return false };
    let between = missed.is_none_or(|missed| {
        last.settled < missed.first && missed.first <= missed.last && missed.last < *occurrence
    });
    *attempt == 1 && last.settled < *occurrence && record.settled == *occurrence && between
}
