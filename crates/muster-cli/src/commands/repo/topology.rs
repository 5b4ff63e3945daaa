//! `muster repo topology`: the topology that the repository keeps.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use muster_repo::topologies;
use muster_types::Timestamp;
use muster_types::topology::TopologyVersion;

use crate::context::Context;
use crate::{exit, print, select};

/// Arguments of `muster repo topology`.
#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    #[command(subcommand)]
    command: TopologyCommand,
}

#[derive(Debug, Subcommand)]
enum TopologyCommand {
    /// List the versions.
    List,
    /// Print a version's text, the newest by default.
    #[command(disable_version_flag = true)]
    Show {
        /// The one that was the newest at this moment: RFC 3339 or `5m ago`.
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// The one with this number.
        #[arg(long, value_name = "N", conflicts_with = "at")]
        version: Option<u64>,
    },
    /// Store the topology, as capture does when it begins.
    Store,
}

pub(crate) async fn run(context: &Context, args: TopologyArgs) -> Result<ExitCode> {
    match args.command {
        TopologyCommand::List => list(topologies::all(&context.repository).await?),
        TopologyCommand::Show { at, version } => {
            let at = at.as_deref().map(select::moment).transpose()?;
            show(&chosen(topologies::all(&context.repository).await?, at, version)?);
        }
        TopologyCommand::Store => {
            let (kept, new) = context.keep_topology().await.map_err(exit::input)?;
            let how = if new { "stored as" } else { "is already" };
            print::data(format!("{how} version {}", kept.version));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(versions: Vec<TopologyVersion>) {
    let rows = versions.into_iter().map(|kept| {
        let sites: usize = kept.site_lists.values().map(|list| list.lines().count()).sum();
        let lists = if kept.site_lists.is_empty() { String::new() } else { format!("{sites} lines") };
        let lines = print::count(kept.text.lines().count() as u64);
        vec![
            kept.version.to_string(),
            kept.stored_at.to_string(),
            kept.stored_by,
            kept.digest.short(),
            lines,
            lists,
        ]
    });
    let header = ["version", "since", "stored by", "digest", "lines", "lists of sites"];
    print::data(print::table(&header, &["version", "lines"], rows));
}

fn chosen(
    versions: Vec<TopologyVersion>,
    at: Option<Timestamp>,
    version: Option<u64>,
) -> Result<TopologyVersion> {
    let wanted = |kept: &TopologyVersion| {
        at.is_none_or(|at| kept.stored_at <= at) && version.is_none_or(|version| kept.version == version)
    };
    versions.into_iter().rfind(wanted).ok_or_else(|| {
        exit::input(
            "the repository keeps no such version of the topology; `muster repo topology list` lists them",
        )
    })
}

/// The text goes to stdout as it is; the lists of sites would make it another one.
fn show(kept: &TopologyVersion) {
    print::data(kept.text.strip_suffix('\n').unwrap_or(&kept.text));
    for (name, list) in &kept.site_lists {
        print::talk(format!("it names {name}, which has {} lines:\n{list}", list.lines().count()));
    }
}
