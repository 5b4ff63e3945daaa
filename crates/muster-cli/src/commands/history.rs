//! `muster history`: when a site changed.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_plan::history::{self, Activity};
use muster_types::SiteId;

use crate::context::Context;
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Arguments of `muster history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The site, as `site:ID`.
    site: String,
    /// Start: RFC 3339 or `1h ago`; without it everything that the log holds.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End.
    #[arg(long, value_name = "TIME", default_value = "now")]
    to: String,
}

pub(crate) async fn run(topology: &TopologyPlace, args: HistoryArgs) -> Result<ExitCode> {
    let site: SiteId = args.site.parse().map_err(exit::input)?;
    let from = args.from.as_deref().map(select::moment).transpose()?;
    let to = select::moment(&args.to)?;
    let context = Context::open(topology).await?;
    let catalog = context.catalog_of([site.clone()]).await?;
    if !catalog.sites.contains_key(&site) {
        return Err(exit::input(format!(
            "the repository holds nothing of {site}; `muster sites` lists what it holds"
        )));
    }
    let wanted =
        |activity: &Activity| from.is_none_or(|from| activity.last_at >= from) && activity.first_at <= to;
    let activity: Vec<Activity> = history::history(&catalog, &site).into_iter().filter(wanted).collect();
    if activity.is_empty() {
        print::talk(format!("the log holds no change of {site} in that time"));
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["minute", "shard", "table", "inserted", "updated", "deleted", "by"];
    print::data(print::table(&header, &["inserted", "updated", "deleted"], activity.iter().map(row)));
    Ok(ExitCode::SUCCESS)
}

fn row(activity: &Activity) -> Vec<String> {
    let by = match &activity.mark {
        Some(mark) => format!("muster run {}", mark.run),
        None if activity.reread => "table read again whole".to_owned(),
        None => String::new(),
    };
    vec![
        activity.minute.to_string().replace(":00.000000Z", "Z"),
        activity.shard.to_string(),
        activity.table.clone(),
        print::count(activity.inserts),
        print::count(activity.updates),
        print::count(activity.deletes),
        by,
    ]
}
