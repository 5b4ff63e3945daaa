//! How fast runs and drills went, for forecasts.

use muster_engine::{JournalError, RunHistory, read_run};
use muster_forecast::{Pace, forecast_report};
use muster_repo::{DrillObjects, Repository, RunObjects};
use muster_types::report::ForecastReport;
use muster_types::{RunId, Timestamp};

use crate::RUN_PREFIX;
use crate::error::DrillError;

/// So many of the last runs, and of the last drills, are read: newer ones say more, and each costs the reading of a plan and
/// a journal.
const RUNS_MAX: usize = 8;

/// The pace of runs and drills that had ended before `before`: the last ones, by the names of runs (which begin with their
/// time, unless the operator chose them) and by the records of drills.
///
/// # Errors
/// What the repository answers.
pub async fn pace(repository: &Repository, before: Timestamp) -> Result<Pace, DrillError> {
    let mut runs: Vec<RunId> = RunObjects::list(repository).await?;
    runs.retain(|run| !run.as_str().starts_with(RUN_PREFIX));
    let mut chosen = runs.split_off(runs.len().saturating_sub(RUNS_MAX));
    let drills = DrillObjects::new(repository).records(Timestamp::EPOCH).await?;
    let ended = drills.iter().filter(|drill| drill.ended_at < before);
    let mut of_drills: Vec<RunId> = ended.flat_map(|drill| drill.runs.iter().cloned()).collect();
    chosen.append(&mut of_drills.split_off(of_drills.len().saturating_sub(RUNS_MAX)));
    let mut pace = Pace::stated();
    for run in chosen {
        match read_run(repository, &run).await {
            Ok(history) if is_over(&history, before) => pace.learn(&history.plan, &history.state, before),
            // A run under way says nothing of the past, and one that is damaged or gone nothing at all.
            Ok(_) | Err(JournalError::NoRun { .. } | JournalError::Damaged { .. }) => {}
            Err(error) => return Err(DrillError::Engine(error.into())),
        }
    }
    Ok(pace)
}

fn is_over(history: &RunHistory, before: Timestamp) -> bool {
    history.state.finished().is_some() && history.state.last_at().is_some_and(|last| last < before)
}

/// What was forecast of a run, and how wrong it was; none before its first step.
///
/// # Errors
/// What the repository answers.
pub async fn judged(repository: &Repository, run: &RunId) -> Result<Option<ForecastReport>, DrillError> {
    let history = read_run(repository, run).await.map_err(|error| DrillError::Engine(error.into()))?;
    let Some(opened_at) = history.state.opened_at() else { return Ok(None) };
    let pace = pace(repository, opened_at).await?;
    forecast_report(&history.plan, &history.state, &pace).map_err(|error| DrillError::Engine(error.into()))
}
