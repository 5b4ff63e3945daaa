//! One file per command.

pub(crate) mod abandon;
pub(crate) mod apply;
pub(crate) mod capture;
pub(crate) mod check;
pub(crate) mod demo;
mod demo_alarm;
pub(crate) mod detect;
pub(crate) mod diff;
pub(crate) mod drill;
mod drill_history;
pub(crate) mod export;
mod families;
mod forecast;
pub(crate) mod history;
pub(crate) mod plan;
mod plan_view;
pub(crate) mod preflight;
mod preflight_view;
mod release;
pub(crate) mod repo;
pub(crate) mod report;
pub(crate) mod runs;
pub(crate) mod s3;
pub(crate) mod serve;
mod serve_alarm;
mod serve_jobs;
pub(crate) mod show;
pub(crate) mod simulate;
pub(crate) mod sites;
pub(crate) mod status;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Args, Command};

/// Runs the command; the exit code says how it ended.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let topology = &args.topology;
    match args.command {
        Command::Demo(command) => demo::run(command).await,
        Command::Check(command) => check::run(topology, command).await,
        Command::Capture(command) => capture::run(topology, command).await,
        Command::Sites(command) => sites::run(topology, command).await,
        Command::Detect(command) => detect::run(topology, command).await,
        Command::Plan(command) => plan::run(topology, *command).await,
        Command::Preflight(command) => preflight::run(topology, command).await,
        Command::Apply(command) => apply::apply(topology, command).await,
        Command::Runs(command) => runs::run(topology, command).await,
        Command::Status(command) => status::run(topology, command).await,
        Command::Resume(command) => apply::resume(topology, command).await,
        Command::Abandon(command) => abandon::run(topology, command).await,
        Command::Repo(command) => repo::run(topology, command).await,
        Command::Report(command) => report::run(topology, command).await,
        Command::Simulate(command) => simulate::run(&command),
        Command::Serve(command) => serve::run(topology, command).await,
        Command::Show(command) => show::run(topology, command).await,
        Command::Diff(command) => diff::run(topology, command).await,
        Command::History(command) => history::run(topology, command).await,
        Command::Export(command) => export::run(topology, command).await,
        Command::Drill(command) => drill::run(topology, command).await,
        Command::S3(command) => s3::run(command).await,
    }
}
