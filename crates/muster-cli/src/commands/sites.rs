//! `muster sites`: the sites that the repository knows.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_repo::catalog;
use muster_types::ShardName;

use crate::context::Context;
use crate::print;
use crate::topology_place::TopologyPlace;

/// Arguments of `muster sites`.
#[derive(Debug, Args)]
pub(crate) struct SitesArgs {}

pub(crate) async fn run(topology: &TopologyPlace, _args: SitesArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    for (site, shards) in catalog::list_sites(&context.repository, None).await? {
        let shards: Vec<&str> = shards.iter().map(ShardName::as_str).collect();
        print::data(format!("{site}\t{}", shards.join(",")));
    }
    Ok(ExitCode::SUCCESS)
}
