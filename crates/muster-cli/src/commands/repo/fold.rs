//! `muster repo fold`: new snapshots from the repository alone.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_repo::scratch::Scratch;
use muster_types::{ShardName, Timestamp};
use muster_upkeep::fold::{self, Compared, Folded};

use crate::context::{self, Context};
use crate::{exit, print, select};

/// Arguments of `muster repo fold`.
#[derive(Debug, Args)]
pub(crate) struct FoldArgs {
    /// The shards; all that the repository holds if none is named.
    #[arg(value_name = "SHARD")]
    shard: Vec<ShardName>,
    /// Fold at the last recovery point at or before this moment: RFC 3339 or `5m ago`.
    #[arg(long, value_name = "TIME", conflicts_with = "compare")]
    at: Option<String>,
    /// Only hold the newest snapshot that was read from the shard against what folding gives at its place.
    #[arg(long)]
    compare: bool,
}

pub(crate) async fn run(context: &Context, args: FoldArgs) -> Result<ExitCode> {
    let at = args.at.as_deref().map(select::moment).transpose()?;
    let mut differences = 0;
    for shard in super::chosen(context, &args.shard).await? {
        let done = shard_folded(context, &shard, at, args.compare).await?;
        done.tell(&shard);
        differences += done.compared.map_or(0, |compared| compared.differences.len());
    }
    if differences == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    print::talk(format!("{differences} tables of sites are not what the shard had"));
    Ok(ExitCode::from(exit::Exit::Failed as u8))
}

/// What was done with one shard.
pub(crate) struct ShardFolded {
    /// Where the newest snapshot is one that was read from the shard.
    pub(crate) compared: Option<Compared>,
    pub(crate) folded: Option<Folded>,
}

/// Compares the newest snapshot, if it was read from the shard, and folds a new one unless only that is wanted.
pub(crate) async fn shard_folded(
    context: &Context,
    shard: &ShardName,
    at: Option<Timestamp>,
    only_compare: bool,
) -> Result<ShardFolded> {
    let now = context::now();
    let compared = fold::compare(&context.repository, shard, now).await?;
    if only_compare {
        return Ok(ShardFolded { compared, folded: None });
    }
    let dir =
        Scratch::new(None).context("failed to make a folder for packs; set TMPDIR to a disk with room")?;
    let folded = fold::fold(&context.repository, shard, at, (dir.path(), now)).await?;
    Ok(ShardFolded { compared, folded })
}

impl ShardFolded {
    fn tell(&self, shard: &ShardName) {
        if let Some(compared) = &self.compared {
            let found = differences(compared);
            found.iter().for_each(|line| print::data(format!("{shard}: {line}")));
            if found.is_empty() {
                print::data(format!(
                    "{shard}: snapshot {} is what folding gives: {} tables of sites are equal",
                    compared.snapshot,
                    print::count(compared.slices)
                ));
            }
        }
        match &self.folded {
            Some(folded) => print::data(format!(
                "{shard}: snapshot {} of {} rows of {} sites as of {}, folded from {}",
                folded.snapshot,
                print::count(folded.rows),
                print::count(folded.sites),
                folded.boundary.at,
                folded.from
            )),
            None if self.compared.is_none() => {
                print::data(format!("{shard}: nothing new to fold, and nothing to compare"));
            }
            None => {}
        }
    }
}

/// What differs, a line each, with what to do in the end.
pub(crate) fn differences(compared: &Compared) -> Vec<String> {
    let mut lines: Vec<String> = compared.differences.iter().map(ToString::to_string).collect();
    if !lines.is_empty() {
        lines.push(format!(
            "snapshot {} was read from the shard and counts; moments between {} and {} may be restored wrong: take \
             snapshots daily until the cause is known",
            compared.snapshot, compared.from, compared.boundary.at
        ));
    }
    lines
}
