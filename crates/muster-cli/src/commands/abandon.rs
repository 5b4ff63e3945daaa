//! `muster abandon`: give a run up.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_types::RunId;

use crate::commands::apply;
use crate::context::Context;
use crate::print;
use crate::topology_place::TopologyPlace;

/// Arguments of `muster abandon`.
#[derive(Debug, Args)]
pub(crate) struct AbandonArgs {
    /// The run.
    run: RunId,
    /// Why, for the journal.
    #[arg(long, default_value = "given up by the operator")]
    reason: String,
}

pub(crate) async fn run(topology: &TopologyPlace, args: AbandonArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let (engine, _shown) = apply::engine(&context);
    engine.abandon(&args.run, &args.reason).await.map_err(apply::failure)?;
    print::data(format!("run {} is abandoned: its claims are released, what it published stays", args.run));
    Ok(ExitCode::SUCCESS)
}
