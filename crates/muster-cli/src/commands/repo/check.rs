//! `muster repo check`: hold objects against their digests.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::context::{self, Context};
use crate::{exit, print};

/// Arguments of `muster repo check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The share of all bytes to read, such as `10%`; the next check goes on where this one ended.
    #[arg(long, value_name = "SHARE", default_value = "100%", value_parser = share)]
    budget: f64,
}

/// A share above nothing, up to all.
fn share(text: &str) -> Result<f64, String> {
    let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
    match percent {
        Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("write a share above 0% and up to 100%, such as `10%`".to_owned()),
    }
}

pub(crate) async fn run(context: &Context, args: CheckArgs) -> Result<ExitCode> {
    let checked = muster_repo::check::check(&context.repository, args.budget, context::now()).await?;
    for damage in &checked.damages {
        print::data(damage.to_string());
    }
    print::talk(format!(
        "{} objects, {} of {} read; {} whole rounds so far, this one since {}",
        print::count(checked.objects),
        print::bytes(checked.bytes),
        print::bytes(checked.of_bytes),
        checked.progress.rounds,
        checked.progress.round_began_at
    ));
    if checked.damages.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    print::talk(format!("{} objects are damaged or missing", checked.damages.len()));
    Ok(ExitCode::from(exit::Exit::Failed as u8))
}
