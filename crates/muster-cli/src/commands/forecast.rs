//! Forecasts: of a plan, and of a run under way.

use anyhow::Result;
use muster_drill::past_runs;
use muster_engine::{EngineError, RunHistory};
use muster_forecast::{Forecast, Range, forecast_plan, forecast_run};
use muster_types::Timestamp;
use muster_types::plan::Plan;

use crate::commands::apply;
use crate::context::{self, Context};
use crate::print;

/// The forecast of a plan that is applied now.
pub(crate) async fn of_plan(context: &Context, plan: &Plan) -> Result<Forecast> {
    let now = context::now();
    let pace = past_runs::pace(&context.repository, now).await?;
    // A plan that cannot be scheduled has fatal notes; there is nothing to forecast.
    let nothing = Range { earliest: now, expected: now, latest: now };
    Ok(forecast_plan(plan, now, &pace).unwrap_or(Forecast {
        at: now,
        ends: nothing,
        sites: vec![],
        measured: 0,
    }))
}

/// The forecast of a run under way.
pub(crate) async fn of_run(context: &Context, history: &RunHistory) -> Result<Forecast> {
    let now = context::now();
    let before = history.state.opened_at().unwrap_or(now);
    let pace = past_runs::pace(&context.repository, before).await?;
    forecast_run(&history.plan, &history.state, now, &pace)
        .map_err(|error| apply::failure(EngineError::from(error)))
}

/// The end of all, in a line.
pub(crate) fn show(forecast: &Forecast) {
    let after = |at: Timestamp| print::seconds(at.seconds_since(forecast.at));
    let ends = &forecast.ends;
    let rests_on = match forecast.measured {
        0 => "stated defaults: nothing was measured yet".to_owned(),
        starts => format!("{} measured starts of steps", print::count(starts)),
    };
    print::data(format!(
        "forecast: all back in about {} ({} to {}), by {rests_on}",
        after(ends.expected),
        after(ends.earliest),
        after(ends.latest)
    ));
}

/// Each site that is not back.
pub(crate) fn show_sites(forecast: &Forecast) {
    let rows = forecast.sites.iter().map(|site| {
        let Range { earliest, expected, latest } = site.back;
        [site.site.to_string()]
            .into_iter()
            .chain([expected, earliest, latest].map(|at| at.to_string()))
            .collect()
    });
    print::data(print::table(&["site", "expected back", "earliest", "latest"], &[], rows));
}
