//! The recovery points of one unbroken history in order, and which of them can be restored.
//!
//! # Invariants
//! - Where the log has commits, points ascend by position and by (effective) time, so that one binary search finds
//!   the cut for a time. Elsewhere a stamp may lie before that of an earlier point, and the last one at or before
//!   the time counts.
//! - Memory: 16 bytes a point (and 8 more where stamps do not ascend), 24 bytes a commit whose time lies before that of
//!   an earlier one. The catalog under it holds 16 bytes a commit, so that a million commits cost 32 MB.

use std::ops::Range;

use muster_types::catalog::IncarnationHistory;
use muster_types::segment::Commit;
use muster_types::{Boundary, Position, Timestamp};

/// A stretch `(after, upto]` of positions whose changes are not in the log.
#[derive(Clone, Copy, Debug)]
struct Hole {
    after: Position,
    upto: Position,
}

/// Commits behind a cut that are not behind its time: their times are earlier than that of a commit before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateCommits {
    /// How many there are.
    pub commits: u64,
    /// Where the first of them stands.
    pub first: Position,
}

/// All recovery points of an incarnation.
#[derive(Debug)]
pub struct Points {
    /// Every one, ascending.
    pub all: Vec<Boundary>,
    /// Their times are effective ones, since the log has commits.
    effective: bool,
    /// Stretches of `all` that can be restored, ascending.
    usable: Vec<Range<usize>>,
    /// Where stamps do not ascend: the earliest stamp among the usable ones of `all[i..]`, for a binary search by time.
    earliest_from: Option<Vec<Timestamp>>,
    /// The latest stamp of all.
    pub latest: Option<Timestamp>,
    /// Commits with a time before that of an earlier one, ascending, each with the earliest time from there on.
    late: Vec<(Commit, Timestamp)>,
}

impl Points {
    /// The points of `history`.
    pub(crate) fn new(history: &IncarnationHistory) -> Self {
        let mut all = history.boundaries();
        let mut usable = self::usable(history, &all);
        if add_stranded(history, &mut all, &usable) {
            usable = self::usable(history, &all);
        }
        let ascending = all.is_sorted_by_key(|boundary| boundary.at);
        let earliest_from = (!ascending).then(|| earliest_from(&all, &usable));
        let latest = all.iter().map(|boundary| boundary.at).max();
        let late = late(history, &all);
        Self { all, effective: history.has_commits(), usable, earliest_from, latest, late }
    }

    /// The first that can be restored.
    pub fn first(&self) -> Option<Boundary> {
        self.usable.first().map(|stretch| self.all[stretch.start])
    }

    /// The last restorable one stamped at or before `at`.
    pub fn last_at_or_before(&self, at: Timestamp) -> Option<Boundary> {
        match &self.earliest_from {
            Some(earliest_from) => {
                let count = earliest_from.partition_point(|earliest| *earliest <= at);
                count.checked_sub(1).map(|last| self.all[last])
            }
            None => self.last_of(self.all.partition_point(|boundary| boundary.at <= at)),
        }
    }

    /// The last restorable one below `position`.
    pub fn last_below(&self, position: Position) -> Option<Boundary> {
        self.last_of(self.all.partition_point(|boundary| boundary.position < position))
    }

    /// The last restorable one at or before the end of a segment.
    pub fn last_upto(&self, end: Boundary) -> Option<Boundary> {
        if self.effective {
            // Its stamp may lie before the effective time of the point that stands there.
            return self.last_of(self.all.partition_point(|candidate| candidate.position <= end.position));
        }
        self.last_of(self.all.partition_point(|candidate| *candidate <= end))
    }

    /// The one that follows `boundary` in the log, restorable or not.
    pub fn next_after(&self, boundary: Boundary) -> Option<Boundary> {
        self.all.get(self.all.partition_point(|candidate| *candidate <= boundary)).copied()
    }

    /// Commits behind `cut` with a time of their own at or before `at`.
    pub fn late_behind(&self, cut: Position, at: Timestamp) -> Option<LateCommits> {
        let behind = self.late.partition_point(|(commit, _)| commit.position <= cut);
        let near = self.late[behind..].iter().take_while(|(_, earliest)| *earliest <= at);
        let mut late = near.map(|(commit, _)| commit).filter(|commit| commit.at <= at);
        let first = late.next()?.position;
        Some(LateCommits { commits: 1 + late.count() as u64, first })
    }

    /// The last restorable one of the first `count`.
    fn last_of(&self, count: usize) -> Option<Boundary> {
        let stretches = self.usable.partition_point(|stretch| stretch.start < count);
        let stretch = &self.usable[stretches.checked_sub(1)?];
        Some(self.all[stretch.end.min(count) - 1])
    }
}

fn earliest_from(all: &[Boundary], usable: &[Range<usize>]) -> Vec<Timestamp> {
    let mut earliest_from = vec![Timestamp::from_micros(i64::MAX); all.len()];
    for number in usable.iter().cloned().flatten() {
        earliest_from[number] = all[number].at;
    }
    for number in (1..earliest_from.len()).rev() {
        earliest_from[number - 1] = earliest_from[number - 1].min(earliest_from[number]);
    }
    earliest_from
}

/// Adds snapshots that lie between commits, where no commit before them can be restored: they are points of their own
/// then. `true` if there are any.
fn add_stranded(history: &IncarnationHistory, all: &mut Vec<Boundary>, usable: &[Range<usize>]) -> bool {
    if !history.has_commits() {
        return false;
    }
    let mut stranded = Vec::new();
    for snapshot in &history.snapshots {
        let Boundary { position, at } = snapshot.boundary;
        let behind = all.partition_point(|point| point.position <= position);
        let before = behind.checked_sub(1);
        let segment = history.segment_at(position).map(|number| &history.segments[number]);
        let reaches = |before: &usize| {
            // Nothing between the two is missing.
            segment.is_none_or(|segment| segment.after.position <= all[*before].position)
                && usable.iter().any(|stretch| stretch.contains(before))
        };
        if before.as_ref().is_some_and(reaches) {
            continue;
        }
        // Its stamp is an upper bound, and times ascend here.
        let at = before.map_or(at, |before| at.max(all[before].at));
        if all.get(behind).is_none_or(|next| at < next.at) {
            stranded.push(Boundary { position, at });
        }
    }
    let any = !stranded.is_empty();
    all.append(&mut stranded);
    all.sort();
    all.dedup();
    any
}

/// A snapshot is a base for `point`. Where the log has commits, times of snapshots are upper bounds: positions tell.
pub(crate) fn is_base(history_has_commits: bool, snapshot: Boundary, point: Boundary) -> bool {
    match history_has_commits {
        true => snapshot.position <= point.position,
        false => snapshot <= point,
    }
}

/// A recovery point can be restored if a snapshot lies at or before it and no hole between the two.
fn usable(history: &IncarnationHistory, points: &[Boundary]) -> Vec<Range<usize>> {
    let holes = holes(history);
    let has_commits = history.has_commits();
    let mut usable: Vec<Range<usize>> = Vec::new();
    let mut next_snapshot = 0;
    let mut base: Option<Boundary> = None;
    for (number, point) in points.iter().enumerate() {
        while let Some(snapshot) = history.snapshots.get(next_snapshot)
            && is_base(has_commits, snapshot.boundary, *point)
        {
            base = Some(history.snapshots[next_snapshot].boundary);
            next_snapshot += 1;
        }
        let Some(base) = base else { continue };
        // A snapshot inside a hole is a base of its own: nothing lies between it and itself.
        let crossed = holes.iter().any(|hole| hole.after.max(base.position) < hole.upto.min(point.position));
        if crossed {
            continue;
        }
        match usable.last_mut().filter(|stretch| stretch.end == number) {
            Some(stretch) => stretch.end += 1,
            None => usable.push(number..number + 1),
        }
    }
    usable
}

/// Recorded gaps, and places where one segment does not continue from its predecessor.
fn holes(history: &IncarnationHistory) -> Vec<Hole> {
    let here = |boundary: &Boundary| {
        history.segments.binary_search_by(|segment| segment.boundary.cmp(boundary)).is_ok()
            || history.snapshots.binary_search_by(|snapshot| snapshot.boundary.cmp(boundary)).is_ok()
    };
    // Where segments are missing, the next one goes on at a boundary that is not there.
    let begins = |boundary: &Boundary| {
        history.segments.binary_search_by(|segment| segment.after.cmp(boundary)).is_ok()
    };
    let mut holes = Vec::new();
    // A gap may start or end at a recovery point of another incarnation, whose positions mean nothing here.
    for gap in history.gaps.iter().filter(|gap| here(&gap.after)) {
        let end = gap
            .before
            .filter(|before| here(before) || begins(before))
            .map_or(Position(u64::MAX), |before| before.position);
        holes.push(Hole { after: gap.after.position, upto: end });
    }
    let mut reached = Position(0);
    for segment in &history.segments {
        holes.push(Hole { after: reached, upto: segment.after.position });
        reached = reached.max(segment.boundary.position);
    }
    holes.retain(|hole| hole.after < hole.upto);
    holes
}

/// Commits whose effective time is not their own: the only ones that a cut by time can leave behind itself.
fn late(history: &IncarnationHistory, points: &[Boundary]) -> Vec<(Commit, Timestamp)> {
    let commits = history.segments.iter().flat_map(|segment| segment.recovery_commits());
    let mut next = 0;
    let mut late: Vec<(Commit, Timestamp)> = Vec::new();
    for commit in commits {
        while points.get(next).is_some_and(|point| point.position < commit.position) {
            next += 1;
        }
        if points.get(next).is_some_and(|point| commit.at < point.at) {
            late.push((*commit, commit.at));
        }
    }
    for number in (1..late.len()).rev() {
        late[number - 1].1 = late[number - 1].1.min(late[number].1);
    }
    late
}
