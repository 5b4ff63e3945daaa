//! `muster repo forget`: everything that is held of a site, overwritten for good.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_repo::forget::Found;
use muster_repo::scratch::Scratch;
use muster_types::SiteId;
use muster_types::forget::ForgetReceipt;
use muster_upkeep::forget::{self, ForgetError, ForgetRequest, Forgot};

use crate::commands::apply;
use crate::context::{self, Context};
use crate::{exit, print};

/// Arguments of `muster repo forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The site, as `site:ID`. It must be deleted in its shards before.
    #[arg(value_name = "SITE")]
    site: String,
    /// Why: it stands in the receipt.
    #[arg(long, value_name = "WHY")]
    reason: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also where a hold, a saved plan or an open run needs the site, or where it lives.
    #[arg(long)]
    despite_claims: bool,
    /// Print the receipt as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(context: &Context, args: ForgetArgs) -> Result<ExitCode> {
    let site: SiteId = args.site.parse().map_err(exit::input)?;
    let request = ForgetRequest {
        site: site.clone(),
        reason: args.reason,
        by: apply::operator(),
        despite_claims: args.despite_claims,
        dry_run: args.dry_run,
    };
    let dir =
        Scratch::new(None).context("failed to make a folder for objects; set TMPDIR to a disk with room")?;
    let done = forget::forget(&context.repository, &request, (dir.path(), context::now())).await;
    match done {
        Err(error @ (ForgetError::Claimed { .. } | ForgetError::Another { .. })) => {
            return Err(exit::refused(error));
        }
        Err(error) => return Err(error.into()),
        Ok(Forgot::Nothing) => print::data(format!("the repository holds nothing of {site}")),
        Ok(Forgot::Would { found, runs, claims }) => {
            would(&found);
            runs.iter()
                .for_each(|run| print::data(format!("facts would be taken out of the plan of run {run}")));
            claims.iter().for_each(|claim| print::data(format!("needed: {claim}")));
        }
        Ok(Forgot::Done(receipt)) if args.json => print::data(serde_json::to_string_pretty(&receipt)?),
        Ok(Forgot::Done(receipt)) => show(&receipt),
    }
    Ok(ExitCode::SUCCESS)
}

fn would(found: &Found) {
    let rows = found.chunks.iter().map(|(key, (object, chunks))| {
        let bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
        vec![key.clone(), print::bytes(object.bytes), print::bytes(bytes)]
    });
    print::data(print::table(
        &["would be rewritten", "bytes", "of the site"],
        &["bytes", "of the site"],
        rows,
    ));
    ids_kept(&found.documents);
    unnamed(&found.unnamed);
}

fn show(receipt: &ForgetReceipt) {
    let rows = receipt.rewritten.iter().map(|object| {
        vec![object.key.clone(), object.chunks.to_string(), object.before.short(), object.after.short()]
    });
    let header = ["rewritten", "chunks", "digest before", "digest now"];
    print::data(print::table(&header, &["chunks"], rows));
    receipt.redacted.iter().for_each(|key| print::data(format!("facts taken out: {key}")));
    ids_kept(&receipt.keep_ids);
    unnamed(&receipt.unnamed);
    if receipt.old_versions_removed > 0 {
        print::data(format!("{} older versions removed", receipt.old_versions_removed));
    }
    for kept in &receipt.old_versions_kept {
        print::talk(format!("warning: older versions may hold its rows: {kept}"));
    }
    print::data(format!("receipt: {}", muster_repo::keys::forget_receipt(&receipt.forgetting.name)));
}

fn ids_kept(documents: &std::collections::BTreeMap<String, u64>) {
    for (sort, count) in documents {
        print::data(format!(
            "{} {sort} keep its id, counts and digests; where a check or a statement failed, what it said of the rows",
            print::count(*count)
        ));
    }
}

fn unnamed(keys: &[String]) {
    if !keys.is_empty() {
        print::talk(format!(
            "{} objects were left by writers that ended early, and may hold rows of any site: `muster repo prune` removes \
             them, or they are under way: forget the site again once they are done",
            keys.len()
        ));
    }
}
