//! When a run will end: the virtual run of what is left of it.

use std::collections::HashMap;

use muster_engine::journal::{RunState, StepPhase};
use muster_engine::scheduler::{
    Attempt, Input, RetryPolicy, ScheduleError, Scheduler, Standing, StandingPhase,
};
use muster_types::plan::{Plan, StepKey};
use muster_types::report::{ForecastPoint, ForecastReport};
use muster_types::{SiteId, Timestamp};
use serde::Serialize;

use crate::pace::{Likely, Pace, PlanPace};
use crate::virtual_run::{Course, Work, virtual_run};

/// A forecast is corrected, and judged, once this share of the work is done.
const TENTH: f64 = 0.1;

/// A step that takes longer than expected takes this share of it again, at least.
const OVERDUE_SHARE: f64 = 0.1;

/// When a run, and each of its sites, will be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// When it was made.
    pub at: Timestamp,
    /// The end of the last step.
    pub ends: Range,
    /// Sites that are not back yet, in the order in which they are expected.
    pub sites: Vec<SiteForecast>,
    /// Measured starts that it rests on; 0: stated defaults alone.
    pub measured: u64,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteForecast {
    /// The site.
    pub site: SiteId,
    /// When it is handed back.
    pub back: Range,
}

/// A moment, and what is likely around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// If all goes as fast as the spread of the rates allows.
    pub earliest: Timestamp,
    /// As measured.
    pub expected: Timestamp,
    /// If all goes as slow as the spread allows.
    pub latest: Timestamp,
}

impl Range {
    /// Of what three courses say; each order of steps is another, so that none of them need be the earliest.
    fn of([fast, even, slow]: [Timestamp; 3]) -> Self {
        Self { earliest: fast.min(even), expected: even, latest: slow.max(even) }
    }
}

/// The forecast of a plan that is applied at `now`.
///
/// # Errors
/// A plan that cannot be scheduled.
pub fn forecast_plan(plan: &Plan, now: Timestamp, pace: &Pace) -> Result<Forecast, ScheduleError> {
    Left::all().forecast(plan, now, pace)
}

/// The forecast of a run under way, corrected by what it has measured itself. `pace`: what was known before it.
///
/// # Errors
/// A plan that cannot be scheduled.
pub fn forecast_run(
    plan: &Plan,
    state: &RunState,
    now: Timestamp,
    pace: &Pace,
) -> Result<Forecast, ScheduleError> {
    let mut own = pace.for_run();
    own.learn(plan, state, now);
    Left::at(plan, state, now).forecast(plan, now, &own)
}

/// What was forecast of a run, from `pace` as it was known before; none before its first step.
///
/// # Errors
/// A plan that cannot be scheduled.
pub fn forecast_report(
    plan: &Plan,
    state: &RunState,
    pace: &Pace,
) -> Result<Option<ForecastReport>, ScheduleError> {
    let Some(began) = state.steps().iter().filter_map(|step| step.started_at).min() else {
        return Ok(None);
    };
    let ended_at = state.finished().and(state.steps().iter().filter_map(|step| step.ended_at).max());
    let point = |forecast: Forecast| ForecastPoint {
        at: forecast.at,
        ends_at: forecast.ends.expected,
        earliest: forecast.ends.earliest,
        latest: forecast.ends.latest,
        measured: forecast.measured,
        error_share: ended_at
            .map(|ended| forecast.ends.expected.seconds_since(ended) / ended.seconds_since(began).max(1e-6)),
    };
    let at_start = point(forecast_plan(plan, began, pace)?);
    let at_tenth = match tenth(plan, state, pace) {
        Some(at) => Some(point(forecast_run(plan, state, at, pace)?)),
        None => None,
    };
    Ok(Some(ForecastReport { ended_at, at_start, at_tenth }))
}

/// When a tenth of the work was done, by the pace known before the run.
fn tenth(plan: &Plan, state: &RunState, pace: &Pace) -> Option<Timestamp> {
    let paces = pace.of(plan);
    let weigh = |step: usize| paces.micros(&[step as u32], Likely::Even) as f64;
    let all: f64 = (0..plan.steps.len()).map(weigh).sum();
    let ended = |(index, step): (usize, &muster_engine::journal::StepState)| {
        Some((step.ended_at.filter(|_| step.phase == StepPhase::Succeeded)?, index))
    };
    let mut ends: Vec<(Timestamp, usize)> = state.steps().iter().enumerate().filter_map(ended).collect();
    ends.sort_unstable();
    let mut done = 0.0;
    ends.into_iter().find_map(|(at, step)| {
        done += weigh(step);
        (done >= all * TENTH).then_some(at)
    })
}

/// What is left of a run at a moment.
struct Left {
    begin: Input,
    /// Steps under way: since when.
    running: HashMap<u32, Timestamp>,
}

impl Left {
    fn all() -> Self {
        Self { begin: Input::Begin, running: HashMap::new() }
    }

    fn at(plan: &Plan, state: &RunState, now: Timestamp) -> Self {
        let mut running = HashMap::new();
        let mut standings = Vec::with_capacity(plan.steps.len());
        for (index, step) in (0u32..).zip(state.steps()) {
            let over = step.ended_at.is_some_and(|ended| ended <= now);
            let phase = match step.phase {
                StepPhase::Succeeded if over => StandingPhase::Succeeded,
                StepPhase::Failed if over => StandingPhase::Failed,
                StepPhase::Blocked if over => StandingPhase::Blocked,
                _ => StandingPhase::Pending,
            };
            if phase == StandingPhase::Pending
                && let Some(since) = step.started_at.filter(|&started| started <= now)
                && step.ended_at.is_none_or(|ended| ended > now)
            {
                running.insert(index, since);
            }
            standings.push(Standing { phase, attempts: 0 });
        }
        Self { begin: Input::Restore(standings), running }
    }

    fn forecast(self, plan: &Plan, now: Timestamp, pace: &Pace) -> Result<Forecast, ScheduleError> {
        let paces = pace.of(plan);
        let course = |likely: Likely| -> Result<Course, ScheduleError> {
            let scheduler = Scheduler::for_plan(plan, RetryPolicy::default())?;
            let work = Paced { paces: &paces, running: &self.running, likely };
            Ok(virtual_run(scheduler, plan.steps.len(), self.begin.clone(), now, &work))
        };
        let courses = [course(Likely::Fast)?, course(Likely::Even)?, course(Likely::Slow)?];
        let mut sites: Vec<SiteForecast> = Vec::new();
        for (index, step) in plan.steps.iter().enumerate() {
            let StepKey::Handback(site) = &step.key else { continue };
            if let [Some(fast), Some(even), Some(slow)] = [0, 1, 2].map(|nth| courses[nth].end_of(index)) {
                sites.push(SiteForecast { site: site.clone(), back: Range::of([fast, even, slow]) });
            }
        }
        sites.sort_by_key(|site| site.back.expected);
        let ends = Range::of([0, 1, 2].map(|nth| courses[nth].ended_at));
        Ok(Forecast { at: now, ends, sites, measured: pace.measured() })
    }
}

struct Paced<'a> {
    paces: &'a PlanPace<'a>,
    running: &'a HashMap<u32, Timestamp>,
    likely: Likely,
}

impl Work for Paced<'_> {
    fn micros(&self, now: Timestamp, attempts: &[Attempt]) -> u64 {
        let steps: Vec<u32> = attempts.iter().map(|attempt| attempt.step).collect();
        let micros = self.paces.micros(&steps, self.likely);
        let passed = steps.iter().filter_map(|step| self.running.get(step));
        let passed = passed.map(|since| now.seconds_since(*since) * 1e6).fold(0.0, f64::max);
        if passed == 0.0 {
            return micros;
        }
        (micros as f64 - passed).max(micros as f64 * OVERDUE_SHARE) as u64
    }
}
