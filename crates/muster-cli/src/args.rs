//! The command line.

use clap::{Parser, Subcommand};

use crate::commands;
use crate::topology_place::TopologyPlace;

/// Brings many deleted sites back, with all their products, each to its own moment, beside living neighbours.
#[derive(Debug, Parser)]
#[command(name = "muster", version, max_term_width = 110, propagate_version = true)]
pub(crate) struct Args {
    /// The topology file, or `s3://BUCKET/PREFIX`: the newest one that the repository there keeps. Region and endpoint come
    /// from AWS_REGION and AWS_ENDPOINT_URL, or stand behind it as `?region=R&endpoint=URL`.
    #[arg(short, long, global = true, env = "MUSTER_TOPOLOGY", default_value = "muster.toml")]
    pub(crate) topology: TopologyPlace,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole mission on a made-up fleet: make, capture, delete, detect, plan, apply, report, judge.
    Demo(commands::demo::DemoArgs),
    /// Check the topology, the shards against it, and the repository's coverage.
    Check(commands::check::CheckArgs),
    /// Record shards into the repository: snapshots, then changes.
    Capture(commands::capture::CaptureArgs),
    /// List the sites that the repository knows.
    Sites(commands::sites::SitesArgs),
    /// Find the sites that lost their data in a window, and write an incident file.
    Detect(commands::detect::DetectArgs),
    /// Decide everything about a restore and write it down as a plan.
    Plan(Box<commands::plan::PlanArgs>),
    /// Execute a plan.
    Apply(commands::apply::ApplyArgs),
    /// Hold a list of ids that is about to be deleted against what is live, before it is.
    Preflight(commands::preflight::PreflightArgs),
    /// List runs.
    Runs(commands::runs::RunsArgs),
    /// Show where a run stands.
    Status(commands::status::StatusArgs),
    /// Go on with a run that was interrupted, from any machine.
    Resume(commands::apply::ResumeArgs),
    /// Give a run up: release its claims and remove its staging.
    Abandon(commands::abandon::AbandonArgs),
    /// Report on a run: terminal, JSON, or one self-contained HTML file.
    Report(commands::report::ReportArgs),
    /// Run an incident of a given shape through four strategies under virtual time.
    Simulate(commands::simulate::SimulateArgs),
    /// Run beside production for months: capture, scheduled jobs, alarms, health and metrics.
    Serve(commands::serve::ServeArgs),
    /// Show what a site was at a moment.
    Show(commands::show::ShowArgs),
    /// Compare a site at two moments, or with what is live.
    Diff(commands::diff::DiffArgs),
    /// Show when a site changed: changes per minute and table.
    History(commands::history::HistoryArgs),
    /// Write a site as it was into files that sqlite3 or psql load.
    Export(commands::export::ExportArgs),
    /// Rehearse restores in a sandbox, and judge them.
    Drill(commands::drill::DrillArgs),
    /// Keep the repository fit.
    Repo(commands::repo::RepoArgs),
    /// Serve a folder over the S3 protocol.
    S3(commands::s3::S3Args),
}
