//! How well runs were forecast, over many of them.

use muster_types::Timestamp;
use muster_types::report::{ForecastPoint, ForecastReport};
use serde::Serialize;

/// An error within this share of the run is near: what a forecast aims at once a tenth of the work is done.
const NEAR: f64 = 0.15;

/// Forecasts that were due at one time of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ForecastErrors {
    /// How many there are.
    pub runs: u64,
    /// The median of the errors without their signs, as a share of the run.
    pub error_median: f64,
    /// Their 95th percentile.
    pub error_p95: f64,
    /// Within 15 %, as a share.
    pub near_share: f64,
    /// Runs that ended within the range that was forecast, as a share.
    pub in_range_share: f64,
}

/// See [`ForecastErrors`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ForecastHistory {
    /// When the first step started.
    pub at_start: ForecastErrors,
    /// When a tenth of the work was done.
    pub at_tenth: Option<ForecastErrors>,
}

impl ForecastErrors {
    /// `points` with the real ends of their runs.
    fn of<'r>(points: impl Iterator<Item = (&'r ForecastPoint, Option<Timestamp>)>) -> Option<Self> {
        let ended: Vec<(&ForecastPoint, Timestamp)> =
            points.filter_map(|(point, ended_at)| Some((point, ended_at?))).collect();
        let mut errors: Vec<f64> =
            ended.iter().filter_map(|(point, _)| point.error_share).map(f64::abs).collect();
        errors.sort_by(f64::total_cmp);
        let runs = errors.len();
        let percentile = |percent: usize| errors.get((runs * percent).div_ceil(100).max(1) - 1).copied();
        let share = |count: usize| count as f64 / runs as f64;
        Some(Self {
            runs: runs as u64,
            error_median: percentile(50)?,
            error_p95: percentile(95)?,
            near_share: share(errors.iter().filter(|error| **error <= NEAR).count()),
            in_range_share: share(ended.iter().filter(|(point, end)| in_range(point, *end)).count()),
        })
    }
}

fn in_range(point: &ForecastPoint, ended_at: Timestamp) -> bool {
    point.earliest <= ended_at && ended_at <= point.latest
}

impl ForecastHistory {
    /// Of runs that have ended; none where there are none.
    pub fn of<'r>(reports: impl Iterator<Item = &'r ForecastReport>) -> Option<Self> {
        let reports: Vec<&ForecastReport> = reports.collect();
        Some(Self {
            at_start: ForecastErrors::of(reports.iter().map(|of| (&of.at_start, of.ended_at)))?,
            at_tenth: ForecastErrors::of(
                reports.iter().filter_map(|of| Some((of.at_tenth.as_ref()?, of.ended_at))),
            ),
        })
    }
}
