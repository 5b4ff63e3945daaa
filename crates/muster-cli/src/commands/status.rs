//! `muster status`: where a run stands.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_engine::{Clock, Status};
use muster_types::RunId;
use muster_types::report::RunStatus;

use crate::commands::apply;
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
}

pub(crate) async fn run(topology: &TopologyPlace, args: StatusArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let status = muster_engine::load_status(&context.repository, &args.run, &Clock::system())
        .await
        .map_err(|error| apply::failure(error.into()))?;
    show(&status);
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) {
    let left =
        status.seconds_left.map(|left| format!(", about {} left", print::seconds(left))).unwrap_or_default();
    print::data(format!(
        "run {} · {:?} · {} of {} sites, {} of {} rows, {} of {}{left}",
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
    if status.status == RunStatus::Open {
        print::talk(format!("if no engine is at work on it: muster resume {}", status.run));
    }
}
