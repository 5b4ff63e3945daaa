//! `muster drill`: rehearse restores in a sandbox.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use muster_drill::{Drill, DrillError, clean, spec};
use muster_engine::{Cancel, Options};
use muster_stores::sandbox::SandboxError;
use muster_types::DrillId;
use muster_types::drill::{DrillRecord, Made, Verdict};

use crate::commands::{apply, drill_history};
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Arguments of `muster drill`.
#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    #[command(subcommand)]
    command: DrillCommand,
}

#[derive(Debug, Subcommand)]
enum DrillCommand {
    /// Rehearse what a drill file says, compare it with the repository, remove it, and record what came of it.
    Run(RunArgs),
    /// Remove what drills left in the sandboxes that did not come to their end.
    Clean,
    /// Show what was proven, what never was, and whether it takes longer.
    History(drill_history::HistoryArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The drill file; config/drills has examples.
    drill: PathBuf,
    /// Instead of the seed in the file, so that a choice can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the record as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(topology: &TopologyPlace, args: DrillArgs) -> Result<ExitCode> {
    match args.command {
        DrillCommand::Run(args) => rehearse(topology, args).await,
        DrillCommand::Clean => clean_up(topology).await,
        DrillCommand::History(args) => drill_history::run(topology, args).await,
    }
}

/// Rehearses what a drill file says; `seed` goes before the file's.
pub(crate) async fn run_file(
    context: &Context,
    file: &Path,
    seed: Option<u64>,
    cancel: Cancel,
) -> Result<DrillRecord> {
    let mut spec = spec::read(file).map_err(failure)?;
    let incident = spec::incident(&spec, file).map_err(failure)?;
    spec.seed = seed.or(spec.seed);
    let (id, seed) = draw()?;
    let drill = Drill {
        repository: &context.repository,
        topology: &context.topology,
        spec: &spec,
        incident: incident.as_ref(),
        id,
        seed,
        options: Options::new(apply::operator(), context.topology.digest),
        cancel,
    };
    drill.run().await.map_err(failure)
}

async fn rehearse(topology: &TopologyPlace, args: RunArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let record = run_file(&context, &args.drill, args.seed, apply::cancel_on_signal()).await?;
    if args.json {
        print::data(serde_json::to_string_pretty(&record)?);
    } else {
        show(&record);
    }
    match record.verdict {
        Verdict::Passed => Ok(ExitCode::SUCCESS),
        Verdict::Failed => Ok(ExitCode::from(exit::Exit::Partial as u8)),
        Verdict::Stopped => Ok(ExitCode::from(exit::Exit::Refused as u8)),
    }
}

/// An id and a seed of this process alone.
fn draw() -> Result<(DrillId, u64)> {
    use std::hash::{BuildHasher, Hasher};
    // Every state is keyed at random.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_i64(context::now().as_micros());
    let drawn = hasher.finish();
    // Twelve digits: a name of a database has room for them, and two drills of one second do not meet.
    let id = format!("{:012x}", drawn >> 16);
    Ok((DrillId::new(id)?, drawn))
}

fn show(record: &DrillRecord) {
    let verdict = match record.verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
        Verdict::Stopped => "stopped",
    };
    let moment = record.moment.map_or_else(String::new, |moment| format!(" to {moment}"));
    print::data(format!("drill {} {verdict} · {} ({}){moment}", record.id, record.name, record.class.name()));
    let stores: usize = record.sites.iter().map(|site| site.stores.len()).sum();
    let seconds = |of: Option<f64>| of.map_or_else(|| "unknown".to_owned(), print::seconds);
    print::data(format!(
        "{} sites, {stores} stores, {} rows compared; recovery time {} (95th percentile), recovery point {} (worst); seed {}",
        print::count(record.sites.len() as u64),
        print::count(record.rows),
        seconds(record.rto_seconds),
        seconds(record.rpo_seconds),
        record.seed,
    ));
    for error in &record.errors {
        print::data(format!("  {error}"));
    }
    match record.left.is_empty() {
        true => print::data(format!("made {} and removed all of it", names(&record.made))),
        false => print::data(format!("LEFT in the sandbox: {}", names(&record.left))),
    }
}

fn names(made: &[Made]) -> String {
    if made.is_empty() {
        return "nothing".to_owned();
    }
    made.iter().map(|made| format!("{}/{}", made.sandbox, made.name)).collect::<Vec<_>>().join(", ")
}

async fn clean_up(topology: &TopologyPlace) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let options = Options::new(apply::operator(), context.topology.digest);
    let cleaned = clean::clean(&context.repository, &context.topology, &options).await.map_err(failure)?;
    print::data(format!("removed {}", names(&cleaned.removed)));
    if !cleaned.held.is_empty() {
        print::talk(format!("of drills that are under way: {}", names(&cleaned.held)));
    }
    if !cleaned.unknown.is_empty() {
        print::talk(format!(
            "left alone, since this repository knows nothing of their drills: {}",
            names(&cleaned.unknown)
        ));
    }
    for problem in &cleaned.problems {
        print::talk(format!("not cleaned: {problem}"));
    }
    if cleaned.problems.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(exit::Exit::Failed as u8))
    }
}

/// With the exit code that scripts know.
pub(crate) fn failure(error: DrillError) -> anyhow::Error {
    match error {
        DrillError::Input(_) => exit::input(error),
        DrillError::Refused(_) | DrillError::Sandbox(SandboxError::Live { .. }) => exit::refused(error),
        DrillError::Engine(error) => apply::failure(error),
        error => anyhow!("{error}"),
    }
}
