//! `muster capture`: record shards into the repository.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

/// Arguments of `muster capture`.
#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {}

pub(crate) async fn run(_topology: &Path, _args: CaptureArgs) -> Result<ExitCode> {
    anyhow::bail!("not yet")
}
