//! How well runs were forecast, over many of them.

use muster_types::Timestamp;
use muster_types::drill_history::{ForecastErrors, ForecastHistory};
use muster_types::report::{ForecastPoint, ForecastReport};

/// An error within this share of the run is near: what a forecast aims at once a tenth of the work is done.
const NEAR: f64 = 0.15;

/// Of runs that have ended; none where there are none.
pub(crate) fn of<'r>(reports: impl Iterator<Item = &'r ForecastReport>) -> Option<ForecastHistory> {
    let reports: Vec<&ForecastReport> = reports.collect();
    let at_tenth = reports.iter().filter_map(|of| Some((of.at_tenth.as_ref()?, of.ended_at)));
    Some(ForecastHistory {
        at_start: errors(reports.iter().map(|of| (&of.at_start, of.ended_at)))?,
        at_tenth: errors(at_tenth),
    })
}

/// Of `points`, with the real ends of their runs.
fn errors<'r>(
    points: impl Iterator<Item = (&'r ForecastPoint, Option<Timestamp>)>,
) -> Option<ForecastErrors> {
    let ended: Vec<(&ForecastPoint, Timestamp)> =
        points.filter_map(|(point, ended_at)| Some((point, ended_at?))).collect();
    let mut errors: Vec<f64> =
        ended.iter().filter_map(|(point, _)| point.error_share).map(f64::abs).collect();
    errors.sort_by(f64::total_cmp);
    let runs = errors.len();
    let percentile = |percent: usize| errors.get((runs * percent).div_ceil(100).max(1) - 1).copied();
    let share = |count: usize| count as f64 / runs as f64;
    Some(ForecastErrors {
        runs: runs as u64,
        error_median: percentile(50)?,
        error_p95: percentile(95)?,
        near_share: share(errors.iter().filter(|error| **error <= NEAR).count()),
        in_range_share: share(ended.iter().filter(|(point, end)| in_range(point, *end)).count()),
    })
}

fn in_range(point: &ForecastPoint, ended_at: Timestamp) -> bool {
    point.earliest <= ended_at && ended_at <= point.latest
}
