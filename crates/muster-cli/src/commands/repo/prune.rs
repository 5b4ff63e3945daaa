//! `muster repo prune`: remove what nothing needs.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_types::Timestamp;
use muster_types::retention::Retention;
use muster_upkeep::prune::{self, Amount, Pruned};

use crate::context::{self, Context};
use crate::{exit, print};

/// Arguments of `muster repo prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Say what would go and why the rest stays, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(context: &Context, args: PruneArgs) -> Result<ExitCode> {
    let Some(policy) = context.topology.retention else {
        return Err(exit::input(
            "the topology has no [retention], so that nothing may be pruned; add it with `every_moment_days = 14` or \
             what you promise",
        ));
    };
    let now = context::now();
    let pruned = prune::prune(&context.repository, &policy, now, args.dry_run).await?;
    show(&pruned, &policy, now, args.dry_run);
    if pruned.left_alone.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    pruned.left_alone.iter().for_each(|reason| print::talk(format!("left alone: {reason}")));
    Ok(ExitCode::from(exit::Exit::Partial as u8))
}

fn show(pruned: &Pruned, policy: &Retention, now: Timestamp, dry_run: bool) {
    print::talk(format!(
        "promised: any moment since {}, a snapshot a day since {}; removed {} hours after it was condemned",
        policy.every_moment_since(now),
        policy.daily_since(now),
        policy.grace_hours
    ));
    let would = if dry_run { "would be " } else { "" };
    let mut rows =
        vec![row(&format!("{would}removed"), "condemned before, and its grace is over", pruned.removed)];
    rows.extend(by_reason(&format!("{would}condemned"), &pruned.condemned));
    rows.push(row("condemned before", "within its grace", pruned.waiting));
    rows.extend(by_reason("kept", &pruned.kept));
    let records = Amount { objects: pruned.records, bytes: 0 };
    rows.push(row("removed", "old records of jobs and alarms, and signs of life", records));
    rows.retain(|row| row[2] != "0");
    print::data(print::table(&["what", "why", "objects", "bytes"], &["objects", "bytes"], rows));
}

fn by_reason(what: &str, amounts: &BTreeMap<String, Amount>) -> Vec<Vec<String>> {
    amounts.iter().map(|(reason, amount)| row(what, reason, *amount)).collect()
}

fn row(what: &str, why: &str, amount: Amount) -> Vec<String> {
    vec![what.to_owned(), why.to_owned(), print::count(amount.objects), print::bytes(amount.bytes)]
}
