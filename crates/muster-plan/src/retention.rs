//! What retention and holds need of each history. Pure.
//!
//! A moment needs the last restorable point at or before it, the snapshot under that, and the log between. So the
//! moments from `since` on need the log from one snapshot on, and every snapshot behind it is kept, since restores
//! start from the nearest. Incarnations before the one that answers for `since` are not asked for those moments.
//!
//! # Invariants
//! - What is needed for a set of moments is enough to restore each of them to the position that it had before.
//! - Where no point lies before `since`, everything is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use muster_types::catalog::Catalog;
use muster_types::retention::{Hold, Retention};
use muster_types::{ShardName, Timestamp};

use crate::index::{CatalogIndex, ShardIndex};

/// Why something is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Any moment of the last days.
    EveryMoment,
    /// The snapshot of its day.
    Daily,
    /// An operator's hold, by name.
    Hold(String),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EveryMoment => f.write_str("any moment of the last days"),
            Self::Daily => f.write_str("the first snapshot of its day"),
            Self::Hold(name) => write!(f, "hold `{name}`"),
        }
    }
}

/// What is needed of one incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// By number of the snapshot.
    pub snapshots: BTreeMap<usize, BTreeSet<Reason>>,
    /// Sequence numbers of segments.
    pub log: Vec<(RangeInclusive<u64>, Reason)>,
}

impl Needed {
    /// A segment between `first` and `last` is needed.
    pub fn needs_any(&self, first: u64, last: u64) -> Option<&Reason> {
        let meets = |range: &RangeInclusive<u64>| *range.start() <= last && first <= *range.end();
        self.log.iter().find(|(range, _)| meets(range)).map(|(_, reason)| reason)
    }

    /// The first segment that is needed.
    pub fn first_segment(&self) -> Option<u64> {
        self.log.iter().map(|(range, _)| *range.start()).min()
    }

    fn moments(&mut self, one: &Moments<'_>) {
        let history = one.shard.incarnations[one.number].history;
        for (number, snapshot) in history.snapshots.iter().enumerate() {
            let within = one.to.is_none_or(|to| snapshot.boundary.at <= to);
            if one.base == Some(number) || (one.base.is_none_or(|base| number > base) && within) {
                self.snapshots.entry(number).or_default().insert(one.reason.clone());
            }
        }
        let base = one.base.and_then(|base| history.snapshots.get(base));
        let base = base.map(|snapshot| snapshot.boundary.position);
        let wanted = history.segments.iter().filter(|segment| {
            base.is_none_or(|base| segment.boundary.position >= base)
                && one.to.is_none_or(|to| segment.after.at <= to)
        });
        let sequences: Vec<u64> = wanted.map(|segment| segment.sequence).collect();
        if let (Some(first), Some(last)) = (sequences.first(), sequences.last()) {
            self.log.push((*first..=*last, one.reason.clone()));
        }
    }
}

/// Moments of one incarnation.
struct Moments<'a> {
    shard: &'a ShardIndex<'a>,
    number: usize,
    /// Number of the snapshot under the first of them; all of the incarnation if absent.
    base: Option<usize>,
    to: Option<Timestamp>,
    reason: Reason,
}

/// What is needed, by shard and by number of the incarnation.
pub type Needs = BTreeMap<ShardName, Vec<Needed>>;

/// What `retention` promises at `now`, and what `holds` keep beyond it. The catalog must hold the sites that holds name.
pub fn needs(catalog: &Catalog, retention: &Retention, holds: &[Hold], now: Timestamp) -> Needs {
    let index = CatalogIndex::new(catalog);
    let mut needs = Needs::new();
    for name in catalog.shards.keys() {
        let Some(shard) = index.shard(name) else { continue };
        let mut needed = vec![Needed::default(); shard.incarnations.len()];
        let since = retention.every_moment_since(now);
        keep(&mut needed, shard, Some(since), None, &Reason::EveryMoment);
        daily(&mut needed, shard, retention, now);
        for hold in holds.iter().filter(|hold| concerns(catalog, name, hold)) {
            keep(&mut needed, shard, hold.from, hold.to, &Reason::Hold(hold.name.clone()));
        }
        needs.insert(name.clone(), needed);
    }
    needs
}

fn concerns(catalog: &Catalog, name: &ShardName, hold: &Hold) -> bool {
    let of_site = hold.site.as_ref().is_none_or(|site| {
        let traces = catalog.sites.get(site).map_or(&[][..], |site| &site.traces);
        traces.iter().any(|trace| &trace.shard == name)
    });
    of_site && hold.shard.as_ref().is_none_or(|shard| shard == name)
}

/// Keeps what the moments from `from` to `to` need.
fn keep(
    needed: &mut [Needed],
    shard: &ShardIndex<'_>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    reason: &Reason,
) {
    for (number, incarnation) in shard.incarnations.iter().enumerate().rev() {
        let point = from.and_then(|from| incarnation.points.last_at_or_before(from));
        let base = point.and_then(|point| incarnation.snapshot_below(point));
        let moments = Moments { shard, number, base, to, reason: reason.clone() };
        needed[number].moments(&moments);
        if base.is_some() {
            return;
        }
    }
}

/// Keeps the first snapshot of each day.
fn daily(needed: &mut [Needed], shard: &ShardIndex<'_>, retention: &Retention, now: Timestamp) {
    let since = retention.day(retention.daily_since(now));
    let mut days = BTreeSet::new();
    for (number, incarnation) in shard.incarnations.iter().enumerate() {
        let mut snapshots: Vec<_> = incarnation.history.snapshots.iter().enumerate().collect();
        snapshots.sort_by_key(|(_, snapshot)| snapshot.boundary.at);
        for (snapshot, info) in snapshots {
            let day = retention.day(info.boundary.at);
            let first = days.insert(day);
            // By days: else the second snapshot of a day would be its first once that has gone.
            if first && day >= since {
                needed[number].snapshots.entry(snapshot).or_default().insert(Reason::Daily);
            }
        }
    }
}
