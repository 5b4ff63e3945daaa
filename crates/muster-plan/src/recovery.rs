//! The recovery point of a shard for a target: at or before, never after, never silently earlier.
//!
//! # Invariants
//! - Incarnations are tried newest first by time; within one, positions order history and time never does.
//! - A recovery point needs a snapshot at or before it and an unbroken log between the two.
//! - What lies between the target and the point reached is said in [`RecoveryPoint::because`].
//! - Where the log has commits, the cut for a time is the longest prefix without a commit time behind it. Commits
//!   behind the cut whose own times are not behind the target are told in [`RecoveryPoint::late`].
//!
//! # Errors
//! [`NoRecoveryPoint`] when nothing of the shard can be restored to the target.

use muster_types::catalog::ShardHistory;
use muster_types::incident::BeforePosition;
use muster_types::segment::Gap;
use muster_types::{Boundary, Incarnation, Timestamp};

use crate::index::{IncarnationIndex, ShardIndex};
use crate::points::LateCommits;

/// What was asked of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// The state at this time.
    At(Timestamp),
    /// The state before a change.
    Before(&'a BeforePosition),
}

/// The place of a shard's history that a target comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// Index into the shard's incarnations.
    pub number: usize,
    /// The incarnation's name.
    pub incarnation: Incarnation,
    /// The recovery point.
    pub boundary: Boundary,
    /// Why it is not the target, in words.
    pub because: String,
    /// Nothing of the shard's history lies between it and the target.
    pub exact: bool,
    /// The log reaches the target.
    pub covered: bool,
    /// The reason of the gap that the target lies in, if it does.
    pub gap: Option<String>,
    /// Commits behind it whose own times are at or before the target.
    pub late: Option<LateCommits>,
}

/// Why a shard has no recovery point for a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRecoveryPoint {
    /// No history at all.
    #[error("the repository holds no history of the shard")]
    NoHistory,
    /// The named incarnation is not there.
    #[error("the repository holds no incarnation {0} of the shard")]
    UnknownIncarnation(Incarnation),
    /// No snapshot at or before the target.
    #[error("no snapshot of the shard lies at or before the target{}", first.map_or(String::new(), |first| format!("; the first recovery point is {}", first.at)))]
    MissingSnapshot {
        /// The first that can be restored.
        first: Option<Boundary>,
    },
}

/// The recovery point of one shard; for many targets of one shard use [`ShardIndex`] and [`recover`].
///
/// # Errors
/// [`NoRecoveryPoint`].
pub fn recovery_point(history: &ShardHistory, target: Target<'_>) -> Result<RecoveryPoint, NoRecoveryPoint> {
    recover(&ShardIndex::new(history), target)
}

/// As [`recovery_point`], over an index: costs a binary search per incarnation.
///
/// # Errors
/// [`NoRecoveryPoint`].
pub fn recover(shard: &ShardIndex<'_>, target: Target<'_>) -> Result<RecoveryPoint, NoRecoveryPoint> {
    if shard.incarnations.is_empty() {
        return Err(NoRecoveryPoint::NoHistory);
    }
    match target {
        Target::At(at) => recover_at(shard, at),
        Target::Before(before) => recover_before(shard, before),
    }
}

fn recover_at(shard: &ShardIndex<'_>, at: Timestamp) -> Result<RecoveryPoint, NoRecoveryPoint> {
    let newest_first = shard.incarnations.iter().enumerate().rev();
    let found = newest_first
        .filter_map(|(number, one)| Some((number, one, one.points.last_at_or_before(at)?)))
        .next();
    let Some((number, incarnation, boundary)) = found else {
        let first = shard.incarnations.iter().find_map(|incarnation| incarnation.points.first());
        return Err(NoRecoveryPoint::MissingSnapshot { first });
    };
    let next = incarnation.points.next_after(boundary);
    let later = shard.incarnations[number + 1..].iter().find_map(|one| one.points.all.first().copied());
    let gap = gap_at(shard, number, boundary, at);
    let at_target = boundary.at == at;
    let covered = (at_target && !incarnation.has_commits) || later.is_some() || incarnation.covers(at);
    let idle = next.is_some_and(|next| next.position == boundary.position && next.at >= at);
    let follows = next.is_some_and(|next| next.at > at && incarnation.is_next_commit(boundary, next));
    let exact = (at_target && covered) || ((idle || follows) && gap.is_none());
    let word = incarnation.word_for(boundary);
    let because = match (&gap, next) {
        _ if at_target && covered => format!("a {word} stands at the target itself"),
        (Some(reason), _) => format!("the log has a gap behind this recovery point: {reason}"),
        (None, _) if !covered => "the log ends here: the target is not covered yet".to_owned(),
        (None, Some(_)) if idle => {
            "nothing changed in the shard between this point and the target".to_owned()
        }
        (None, Some(next)) => format!("the last {word} at or before the target; the next is {}", next.at),
        (None, None) => format!("the last {word} at or before the target"),
    };
    let late = incarnation.points.late_behind(boundary.position, at);
    let incarnation = incarnation.history.incarnation.clone();
    Ok(RecoveryPoint { number, incarnation, boundary, because, exact, covered, gap, late })
}

fn recover_before(shard: &ShardIndex<'_>, before: &BeforePosition) -> Result<RecoveryPoint, NoRecoveryPoint> {
    let Some(number) = shard.number(&before.incarnation) else {
        return Err(NoRecoveryPoint::UnknownIncarnation(before.incarnation.clone()));
    };
    let incarnation = &shard.incarnations[number];
    let Some(boundary) = incarnation.points.last_below(before.position) else {
        return Err(NoRecoveryPoint::MissingSnapshot { first: incarnation.points.first() });
    };
    // Positions of a log with commits are sparse: only the log itself tells that nothing lies between.
    let missing = before.position.0 - 1 - boundary.position.0;
    let next = incarnation.points.next_after(boundary).filter(|next| next.position >= before.position);
    let adjacent = missing == 0 || next.is_some_and(|next| incarnation.is_next_commit(boundary, next));
    let covered = incarnation.points.all.last().is_some_and(|last| last.position >= before.position);
    let gap = gap_below(incarnation, boundary, before);
    let position = before.position;
    let because = match &gap {
        Some(reason) => format!("the log has a gap behind this recovery point: {reason}"),
        None if adjacent => format!("exactly the state before position {position}"),
        None if !covered => format!("the log ends here: position {position} is not covered yet"),
        None if incarnation.has_commits => {
            format!("the last {} before position {position}", incarnation.word_for(boundary))
        }
        None => format!("the last recovery point before position {position}, by {missing} positions"),
    };
    Ok(RecoveryPoint {
        number,
        incarnation: before.incarnation.clone(),
        boundary,
        because,
        exact: adjacent,
        covered,
        gap,
        late: None,
    })
}

/// The reason of the gap that `at` lies in, behind `boundary`.
fn gap_at(shard: &ShardIndex<'_>, number: usize, boundary: Boundary, at: Timestamp) -> Option<String> {
    let recorded = shard.gaps().find(|gap| {
        let starts =
            gap.after.at < at && (gap.after.at >= boundary.at || begins_at(shard, number, boundary, gap));
        starts && gap.before.is_none_or(|before| at < before.at)
    });
    if let Some(gap) = recorded {
        return Some(gap.reason.clone());
    }
    let incarnation = &shard.incarnations[number];
    let last = incarnation.points.all.last()?;
    if last.at < at && number + 1 < shard.incarnations.len() {
        return Some(format!("history {} ended at {}", incarnation.history.incarnation, last.at));
    }
    // A later point at or before the target exists and cannot be restored.
    let skipped = incarnation.points.next_after(boundary).is_some_and(|next| next.at <= at);
    skipped.then(|| {
        "the changes behind it are not all in the log, and no snapshot follows before the target".to_owned()
    })
}

/// The gap begins where `boundary` stands, whose effective time may be later than its own.
fn begins_at(shard: &ShardIndex<'_>, number: usize, boundary: Boundary, gap: &Gap) -> bool {
    let incarnation = &shard.incarnations[number];
    incarnation.has_commits
        && gap.after.position == boundary.position
        && incarnation.history.gaps.iter().any(|own| own == gap)
}

fn gap_below(
    incarnation: &IncarnationIndex<'_>,
    boundary: Boundary,
    before: &BeforePosition,
) -> Option<String> {
    let behind = |gap: &Gap| match incarnation.has_commits {
        true => gap.after.position >= boundary.position,
        false => gap.after >= boundary,
    };
    let starts = |gap: &&Gap| behind(gap) && gap.after.position < before.position;
    let ends = |gap: &&Gap| gap.before.is_none_or(|end| end.position >= before.position);
    let recorded = incarnation.history.gaps.iter().filter(starts).find(ends).map(|gap| gap.reason.clone());
    recorded.or_else(|| {
        let next = incarnation.points.next_after(boundary)?;
        let skipped = next.position < before.position;
        skipped.then(|| "the changes behind it are not all in the log, and no snapshot follows".to_owned())
    })
}
