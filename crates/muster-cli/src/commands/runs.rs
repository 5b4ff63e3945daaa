//! `muster runs`: the runs in the repository.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_repo::RunObjects;

use crate::context::Context;
use crate::print;
use crate::topology_place::TopologyPlace;

/// Arguments of `muster runs`.
#[derive(Debug, Args)]
pub(crate) struct RunsArgs {}

pub(crate) async fn run(topology: &TopologyPlace, _args: RunsArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let mut rows = Vec::new();
    for run in RunObjects::list(&context.repository).await? {
        let report = muster_engine::load_report(&context.repository, &run).await?;
        let restored = format!("{} of {}", report.totals.sites_restored, report.totals.sites);
        rows.push(vec![
            run.to_string(),
            report.opened_at.to_string(),
            format!("{:?}", report.status),
            restored,
            report.title,
        ]);
    }
    if rows.is_empty() {
        print::talk("no runs yet: muster plan, then muster apply");
        return Ok(ExitCode::SUCCESS);
    }
    print::data(print::table(&["run", "opened", "status", "sites", "incident"], &[], rows));
    Ok(ExitCode::SUCCESS)
}
