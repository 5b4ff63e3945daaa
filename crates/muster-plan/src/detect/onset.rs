//! Where the fall of a store began, within the fall of its site.

use muster_types::{Boundary, Position, Timestamp};

use super::DetectOptions;
use super::account::{SiteAccount, Step, StoreAccount};
use super::site_fall::SiteFall;

/// Deletions this close to each other are one action, however few they are: a script that a poll boundary cut.
pub(super) const CONTINUOUS_SECONDS: f64 = 0.2;
/// A fall reaches back at least to where there was this share of the most rows.
pub(super) const WHOLE_SHARE: f64 = 0.8;
/// Fewer rows than this are nothing that ordinary work could not have taken.
pub(super) const SEVERAL_ROWS: i64 = 4;

/// The stretch of the log in which a store lost its rows.
pub(super) struct Fall {
    pub(super) first_at: Timestamp,
    pub(super) last_at: Timestamp,
    /// The first deletion; none where a whole table went at a place that is not known.
    pub(super) position: Option<Position>,
    /// The last recovery point before it.
    pub(super) reached: Option<Boundary>,
}

/// How a store fell.
pub(super) enum Course {
    /// With its site, or with the directory row.
    WithSite(Fall),
    /// Apart from it, and several rows at that.
    Alone(Fall),
    /// A few rows, apart from its site: rather ordinary work.
    Ordinary(Fall),
}

/// The fall of a store that lost more than the given share of its rows, or the directory row, or came within the window
/// and fell with its site.
pub(super) fn course(
    account: &SiteAccount<'_>,
    number: usize,
    site: &SiteFall<'_>,
    options: &DetectOptions,
) -> Option<Course> {
    let store = &account.stores[number];
    let directory = account.directory_lost() && store.holds_directory;
    let loss = store.net_loss();
    let most_rows = loss > 0 && loss as f64 > options.lost_share * store.rows_before as f64;
    let brief = !most_rows && store.came_and_went();
    if !(most_rows || brief) {
        // Only the directory row went: the last time that it did.
        let last = store.steps.iter().rfind(|step| step.directory_loss > 0).filter(|_| directory)?;
        return Some(Course::WithSite(between(store, last, last)));
    }
    let (levels, lowest) = levels(store);
    let last = (0..=lowest).rev().find(|step| store.steps[*step].net_loss > 0)?;
    let left = levels[last] - store.steps[last].net_loss;
    let most = |upto: usize| levels[..=upto].iter().copied().max().unwrap_or(0);
    let fall = |first: usize| between(store, &store.steps[first], &store.steps[last]);
    if let Some(first) = first_with_site(store, number, site, &levels, last, options) {
        let gone_before = most(first) - levels[first];
        // A store most of which went before its site did fell on its own.
        if brief || gone_before < SEVERAL_ROWS || gone_before <= levels[first] - left {
            return Some(Course::WithSite(fall(first)));
        }
    }
    if brief {
        return None;
    }
    let alone = fall(first_alone(store, &levels, last, options));
    let few = most(last) - left < SEVERAL_ROWS && !directory;
    Some(if few { Course::Ordinary(alone) } else { Course::Alone(alone) })
}

/// Rows before each step, and the last step that led to the fewest.
pub(super) fn levels(store: &StoreAccount<'_>) -> (Vec<i64>, usize) {
    let mut rows = store.rows_before as i64;
    let mut levels = Vec::with_capacity(store.steps.len());
    let (mut lowest, mut fewest) = (0, i64::MAX);
    for (number, step) in store.steps.iter().enumerate() {
        levels.push(rows);
        rows += step.marked_gain - step.net_loss;
        if rows <= fewest {
            (lowest, fewest) = (number, rows);
        }
    }
    (levels, lowest)
}

/// Goes back from the last step of a store's fall to its first one within its site's fall; none if it ended before.
fn first_with_site(
    store: &StoreAccount<'_>,
    number: usize,
    site: &SiteFall<'_>,
    levels: &[i64],
    last: usize,
    options: &DetectOptions,
) -> Option<usize> {
    let steps = &store.steps;
    let inside = |step: usize| {
        steps[step].took() > 0 && (site.holds(number, step) || site.reaches(number, &steps[step]))
    };
    let mut first = Some(last).filter(|last| inside(*last))?;
    let most = levels[..=last].iter().copied().max().unwrap_or(0);
    for earlier in (0..last).rev().filter(|step| inside(*step)) {
        let gap = start_of(store, &steps[first]).seconds_since(end_of(store, &steps[earlier]));
        let not_whole = (levels[first] as f64) < WHOLE_SHARE * most as f64;
        if gap <= options.burst_gap_seconds || not_whole || site.holds(number, earlier) {
            first = earlier;
        }
    }
    Some(first)
}

/// Goes back from the last step of the fall of a store to its first, by the store alone.
fn first_alone(store: &StoreAccount<'_>, levels: &[i64], last: usize, options: &DetectOptions) -> usize {
    let steps = &store.steps;
    let most = levels[..=last].iter().copied().max().unwrap_or(0);
    let total = most - (levels[last] - steps[last].net_loss);
    let mut first = last;
    while let Some(earlier) = (0..first).rev().find(|step| steps[*step].net_loss > 0) {
        let gap = start_of(store, &steps[first]).seconds_since(end_of(store, &steps[earlier]));
        let loss = steps[earlier].net_loss;
        // Of the size of what follows, or a notable part of the whole: not an ordinary deletion nearby.
        let alike = loss * 4 >= steps[first].net_loss || loss * 20 >= total;
        let one_action = gap <= CONTINUOUS_SECONDS || (gap <= options.burst_gap_seconds && alike);
        let not_whole = (levels[first] as f64) < WHOLE_SHARE * most as f64;
        if !(one_action || not_whole) {
            break;
        }
        first = earlier;
    }
    first
}

pub(super) fn start_of(store: &StoreAccount<'_>, step: &Step) -> Timestamp {
    let after = store.index.history.segments[step.segment as usize].after.at;
    let deleted = step.deletions.map(|(first, _)| (Some(first.key.position), first.at));
    let whole = step.whole_table.map(|whole| (whole.position, whole.at));
    match (deleted, whole) {
        // Where both stand in the log, the earlier one; the stamp of what does not is an upper bound.
        (Some((deleted, at)), Some((Some(whole), whole_at))) => {
            if Some(whole) < deleted {
                whole_at
            } else {
                at
            }
        }
        (deleted, whole) => deleted.or(whole).map_or(after, |(_, at)| at),
    }
}

pub(super) fn end_of(store: &StoreAccount<'_>, step: &Step) -> Timestamp {
    let deleted = step.deletions.map(|(_, last)| last.at);
    let boundary = store.index.history.segments[step.segment as usize].boundary.at;
    deleted.max(step.whole_table.map(|whole| whole.at)).unwrap_or(boundary)
}

fn between(store: &StoreAccount<'_>, first: &Step, last: &Step) -> Fall {
    let deleted = first.deletions.map(|(first, _)| first.key.position);
    let position = match first.whole_table {
        None => deleted,
        // Without a place of its own it stands anywhere in the segment.
        Some(whole) => whole.position.map(|whole| deleted.map_or(whole, |deleted| deleted.min(whole))),
    };
    let after = store.index.history.segments[first.segment as usize].after;
    let points = &store.index.points;
    let reached = position.map_or_else(|| points.last_upto(after), |position| points.last_below(position));
    Fall { first_at: start_of(store, first), last_at: end_of(store, last), position, reached }
}
