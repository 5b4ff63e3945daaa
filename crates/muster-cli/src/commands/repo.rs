//! `muster repo`: keep the repository fit. One file per subcommand.

mod check;
mod compact;
pub(crate) mod fold;
mod forget;
mod hold;
mod prune;
mod stats;
mod topology;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use muster_types::ShardName;

use crate::context::Context;
use crate::exit;
use crate::topology_place::TopologyPlace;

/// Arguments of `muster repo`.
#[derive(Debug, Args)]
pub(crate) struct RepoArgs {
    #[command(subcommand)]
    command: RepoCommand,
}

#[derive(Debug, Subcommand)]
enum RepoCommand {
    /// Lay the change logs out anew, site by site, so that a restore over many days reads few objects.
    Compact(compact::CompactArgs),
    /// Make a new snapshot from the last one and the log, without touching the shard.
    Fold(fold::FoldArgs),
    /// Overwrite everything that is held of a site, for good, and write a receipt.
    Forget(forget::ForgetArgs),
    /// Remove what no promised moment, hold, saved plan or open run needs, in two phases.
    Prune(prune::PruneArgs),
    /// Keep a shard, a site's shards or a stretch of time, whatever the retention says.
    Hold(hold::HoldArgs),
    /// Lift a hold.
    Unhold(hold::UnholdArgs),
    /// Hold objects against their digests, a share at a time.
    Check(check::CheckArgs),
    /// Show objects and bytes by shard, and by site on request.
    Stats(stats::StatsArgs),
    /// The topology that the repository keeps, version by version.
    Topology(topology::TopologyArgs),
    /// List holds, and the saved plans that hold their objects.
    Holds(hold::HoldsArgs),
}

pub(crate) async fn run(topology: &TopologyPlace, args: RepoArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    match args.command {
        RepoCommand::Compact(args) => compact::run(&context, args).await,
        RepoCommand::Fold(args) => fold::run(&context, args).await,
        RepoCommand::Forget(args) => forget::run(&context, args).await,
        RepoCommand::Prune(args) => prune::run(&context, args).await,
        RepoCommand::Hold(args) => hold::place(&context, args).await,
        RepoCommand::Unhold(args) => hold::lift(&context, args).await,
        RepoCommand::Check(args) => check::run(&context, args).await,
        RepoCommand::Stats(args) => stats::run(&context, args).await,
        RepoCommand::Topology(args) => topology::run(&context, args).await,
        RepoCommand::Holds(args) => hold::list(&context, args).await,
    }
}

/// The shards asked for, all that the repository holds if none is.
async fn chosen(context: &Context, asked: &[ShardName]) -> Result<Vec<ShardName>> {
    let known = context.repository.shards().await?;
    if let Some(unknown) = asked.iter().find(|shard| !known.contains(shard)) {
        let names: Vec<&str> = known.iter().map(ShardName::as_str).collect();
        return Err(exit::input(format!(
            "the repository holds nothing of a shard {unknown}; it holds {}",
            names.join(", ")
        )));
    }
    Ok(if asked.is_empty() { known } else { asked.to_vec() })
}
