//! `muster repo hold`, `unhold` and `holds`: what stays, whatever the retention says.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_repo::retention;
use muster_types::format::FORMAT;
use muster_types::retention::Hold;
use muster_types::{ShardName, SiteId, Timestamp};

use crate::context::{self, Context};
use crate::{exit, print, select};

/// Arguments of `muster repo hold`.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// A name for it: letters, digits, `-`, `_` and `.`.
    name: String,
    /// Why, for those who ask.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Hold this shard only.
    #[arg(long, value_name = "NAME")]
    shard: Option<ShardName>,
    /// Hold the shards that have anything of this site.
    #[arg(long, value_name = "SITE")]
    site: Option<SiteId>,
    /// Any moment from here on: RFC 3339 or `3d ago`; from the beginning if absent.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Any moment up to here; without end if absent.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

/// Arguments of `muster repo unhold`.
#[derive(Debug, Args)]
pub(crate) struct UnholdArgs {
    /// Its name.
    name: String,
}

/// Arguments of `muster repo holds`.
#[derive(Debug, Args)]
pub(crate) struct HoldsArgs {
    /// Print them as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn place(context: &Context, args: HoldArgs) -> Result<ExitCode> {
    // Names of shards and holds are spelled alike: both stand in keys.
    if ShardName::new(args.name.as_str()).is_err() {
        return Err(exit::input(format!(
            "`{}` is no name for a hold: use letters, digits, `-`, `_` and `.`",
            args.name
        )));
    }
    let moment = |text: &Option<String>| text.as_deref().map(select::moment).transpose();
    let (from, to) = (moment(&args.from)?, moment(&args.to)?);
    if let (Some(from), Some(to)) = (from, to)
        && to < from
    {
        return Err(exit::input(format!("the hold would end at {to}, before it begins at {from}")));
    }
    if let Some(shard) = &args.shard {
        super::chosen(context, std::slice::from_ref(shard)).await?;
    }
    let hold = Hold {
        format: FORMAT,
        name: args.name,
        placed_at: context::now(),
        reason: args.reason,
        shard: args.shard,
        site: args.site,
        from,
        to,
    };
    retention::place(&context.repository, &hold).await?;
    print::talk(format!("held until: muster repo unhold {}", hold.name));
    print::talk(
        "what was removed before stays removed: `muster capture status` shows how far back each shard reaches",
    );
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn lift(context: &Context, args: UnholdArgs) -> Result<ExitCode> {
    if !retention::lift(&context.repository, &args.name).await? {
        return Err(exit::input(format!("there is no hold `{}`; `muster repo holds` lists them", args.name)));
    }
    print::talk(format!(
        "`{}` holds nothing any more; `muster repo prune` may condemn what it held",
        args.name
    ));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(context: &Context, args: HoldsArgs) -> Result<ExitCode> {
    let holds = retention::holds(&context.repository).await?;
    let plans: Vec<_> = retention::plan_holds(&context.repository)
        .await?
        .into_iter()
        .filter(|plan| plan.expires_at >= context::now())
        .collect();
    if args.json {
        print::data(serde_json::to_string_pretty(&serde_json::json!({ "holds": holds, "plans": plans }))?);
        return Ok(ExitCode::SUCCESS);
    }
    let time = |at: Option<Timestamp>, otherwise: &str| at.map_or(otherwise.to_owned(), |at| at.to_string());
    let mut rows: Vec<Vec<String>> = holds
        .iter()
        .map(|hold| {
            let shard = hold.shard.as_ref().map(|shard| format!("shard {shard}"));
            let site = hold.site.as_ref().map(|site| format!("shards of {site}"));
            let what: Vec<String> = shard.into_iter().chain(site).collect();
            let what = if what.is_empty() { "everything".to_owned() } else { what.join(", ") };
            let (from, to) = (time(hold.from, "the beginning"), time(hold.to, "no end"));
            vec![hold.name.clone(), what, from, to, hold.reason.clone()]
        })
        .collect();
    rows.extend(plans.iter().map(|plan| {
        let name = format!("plan {}", plan.plan.as_str().chars().take(12).collect::<String>());
        let what = format!("{} objects", print::count(plan.objects.len() as u64));
        vec![name, what, plan.created_at.to_string(), plan.expires_at.to_string(), plan.title.clone()]
    }));
    print::data(print::table(&["hold", "of", "from", "to", "why"], &[], rows));
    Ok(ExitCode::SUCCESS)
}
