//! `muster repo compact`: lay the change logs out anew.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_repo::scratch::Scratch;
use muster_types::ShardName;

use crate::context::Context;
use crate::print;

/// Arguments of `muster repo compact`.
#[derive(Debug, Args)]
pub(crate) struct CompactArgs {
    /// Only this shard; may be given more than once.
    #[arg(long, value_name = "NAME")]
    shard: Vec<ShardName>,
}

pub(crate) async fn run(context: &Context, args: CompactArgs) -> Result<ExitCode> {
    let dir =
        Scratch::new(None).context("failed to make a folder for packs; set TMPDIR to a disk with room")?;
    let mut rows = Vec::new();
    for shard in super::chosen(context, &args.shard).await? {
        let done = muster_upkeep::compact::compact_shard(&context.repository, &shard, dir.path()).await?;
        let level = done.merged.iter().map(|merged| merged.level).max().unwrap_or(0);
        let bytes: u64 = done.merged.iter().map(|merged| merged.bytes).sum();
        rows.push(vec![
            shard.to_string(),
            done.merged.len().to_string(),
            level.to_string(),
            print::bytes(bytes),
            done.left.to_string(),
        ]);
    }
    let header = ["shard", "compacted", "highest level", "bytes written", "left as large enough"];
    print::data(print::table(&header, &header[1..], rows));
    Ok(ExitCode::SUCCESS)
}
