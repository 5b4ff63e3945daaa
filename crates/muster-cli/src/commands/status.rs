//! `muster status`: where a run stands.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_engine::{Clock, Status};
use muster_forecast::Forecast;
use muster_types::RunId;
use muster_types::journal::Pause;
use muster_types::report::RunStatus;
use serde::Serialize;

use crate::commands::{apply, forecast};
use crate::context::Context;
use crate::print;
use crate::topology_place::TopologyPlace;

/// Most running or failed steps listed.
const STEPS_MAX: usize = 10;

/// Arguments of `muster status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The run.
    run: RunId,
    /// List when each site that is not back is expected.
    #[arg(long)]
    sites: bool,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// The status of a run with the forecast of what is left of it.
#[derive(Serialize)]
struct Forecasted<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<&'a Forecast>,
}

pub(crate) async fn run(topology: &TopologyPlace, args: StatusArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let history = muster_engine::read_run(&context.repository, &args.run)
        .await
        .map_err(|error| apply::failure(error.into()))?;
    let status = muster_engine::status(&history, Clock::system().now());
    let forecast = match status.status {
        RunStatus::Open => Some(forecast::of_run(&context, &history).await?),
        _ => None,
    };
    if args.json {
        let forecasted = Forecasted { status: &status, forecast: forecast.as_ref() };
        print::data(serde_json::to_string_pretty(&forecasted)?);
        return Ok(ExitCode::SUCCESS);
    }
    show(&status);
    if let Some(forecast) = forecast {
        forecast::show(&forecast);
        if args.sites {
            forecast::show_sites(&forecast);
        }
        print::talk(format!("if no engine is at work on it: muster resume {}", status.run));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) {
    print::data(format!(
        "run {} · {:?} · {} of {} sites, {} of {} rows, {} of {}",
        status.run,
        status.status,
        print::count(status.done.sites),
        print::count(status.total.sites),
        print::count(status.done.rows_published),
        print::count(status.total.rows_published),
        print::bytes(status.done.bytes),
        print::bytes(status.total.bytes),
    ));
    if let Some(holder) = &status.held_by {
        let (epoch, by, since) = (holder.epoch, &holder.by, holder.since);
        print::data(format!("epoch {epoch}, held by {by} since {since}"));
    }
    let header = ["step", "pending", "running", "done", "failed", "blocked"];
    let rows = status.steps.iter().map(|(verb, counts)| {
        let figures = [counts.pending, counts.running, counts.succeeded, counts.failed, counts.blocked];
        std::iter::once((*verb).to_owned()).chain(figures.map(print::count)).collect()
    });
    print::data(print::table(&header, &header[1..], rows));
    show_pools(status);
    for running in status.running.iter().take(STEPS_MAX) {
        let (step, attempt, since) = (&running.step, running.attempt, running.since);
        print::data(format!("running {step}, attempt {attempt}, since {since}"));
    }
    for failure in status.failures.iter().take(STEPS_MAX) {
        print::data(format!("failed {}: {}", failure.step, failure.error));
    }
}

/// Pools in use, or lowered, and what is paused.
fn show_pools(status: &Status) {
    let shown = status.pools.iter().filter(|pool| pool.used > 0 || pool.limit < pool.capacity);
    let rows: Vec<Vec<String>> = shown
        .map(|pool| {
            let figures = [pool.used, pool.limit, pool.capacity].map(print::count);
            std::iter::once(pool.pool.clone()).chain(figures).collect()
        })
        .collect();
    if !rows.is_empty() {
        let header = ["pool", "used", "limit", "capacity"];
        print::data(print::table(&header, &header[1..], rows));
    }
    for pause in &status.pauses {
        print::data(pause_text(pause));
    }
}

fn pause_text(pause: &Pause) -> String {
    let side = match &pause.shard {
        Some(shard) => format!("shard `{shard}`"),
        None => "the repository".to_owned(),
    };
    let failed = print::count(u64::from(pause.failed_probes));
    match (pause.given_up, pause.probe_at) {
        (true, _) => {
            format!("{side} does not answer: given up after {failed} probes, each step has one attempt left")
        }
        (false, Some(at)) => {
            format!("{side} does not answer: paused, next probe at {at}, {failed} failed so far")
        }
        (false, None) => format!("{side} does not answer: a step probes it, {failed} failed so far"),
    }
}
