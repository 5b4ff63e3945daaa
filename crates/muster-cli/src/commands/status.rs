//! `muster status`: where a run stands.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_engine::{Clock, Status};
use muster_types::RunId;
use muster_types::report::RunStatus;

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
}

pub(crate) async fn run(topology: &TopologyPlace, args: StatusArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let history = muster_engine::read_run(&context.repository, &args.run)
        .await
        .map_err(|error| apply::failure(error.into()))?;
    let status = muster_engine::status(&history, Clock::system().now());
    show(&status);
    if status.status == RunStatus::Open {
        let forecast = forecast::of_run(&context, &history).await?;
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
    if let Some((epoch, by, since)) = &status.held_by {
        print::data(format!("epoch {epoch}, held by {by} since {since}"));
    }
    let header = ["step", "pending", "running", "done", "failed", "blocked"];
    let rows = status.steps.iter().map(|(verb, counts)| {
        let figures = [counts.pending, counts.running, counts.succeeded, counts.failed, counts.blocked];
        std::iter::once((*verb).to_owned()).chain(figures.map(print::count)).collect()
    });
    print::data(print::table(&header, &header[1..], rows));
    for (step, attempt, since) in status.running.iter().take(STEPS_MAX) {
        print::data(format!("running {step}, attempt {attempt}, since {since}"));
    }
    for failure in status.failures.iter().take(STEPS_MAX) {
        print::data(format!("failed {}: {}", failure.step, failure.error));
    }
}
