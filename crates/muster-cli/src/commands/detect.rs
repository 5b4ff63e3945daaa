//! `muster detect`: which sites lost what, when; writes the incident file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_plan::detect::{self, DetectOptions, DetectedSite, Detection};
use muster_types::Timestamp;

use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Most sites that the terminal lists; the incident file has all.
const SITES_MAX: usize = 20;

/// Arguments of `muster detect`.
#[derive(Debug, Args)]
pub(crate) struct DetectArgs {
    /// Start of the window: RFC 3339 or `30m ago`.
    #[arg(long, value_name = "TIME")]
    from: String,
    /// End of the window.
    #[arg(long, value_name = "TIME", default_value = "now")]
    to: String,
    /// Write the incident file, which `muster plan --incident` takes.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A site is lost when its directory row is gone, or more than this share of its rows.
    #[arg(long, default_value_t = 0.5)]
    lost_share: f64,
    /// What the incident is called.
    #[arg(long, default_value = "sites lost")]
    title: String,
}

pub(crate) async fn run(topology: &TopologyPlace, args: DetectArgs) -> Result<ExitCode> {
    let (from, to) = (select::moment(&args.from)?, select::moment(&args.to)?);
    if from > to {
        return Err(exit::input(format!("the window ends before it begins: from {from} to {to}")));
    }
    if !(0.0..=1.0).contains(&args.lost_share) {
        return Err(exit::input(format!("--lost-share {} is not a share between 0 and 1", args.lost_share)));
    }
    let context = Context::open(topology).await?;
    let catalog = context.catalog_of_all().await?;
    let options = DetectOptions { lost_share: args.lost_share, ..DetectOptions::default() };
    let found = detect::detect(&context.topology, &catalog, from, to, &options);
    show(&found, from, to);
    if let (Some(path), true) = (&args.out, found.lost.is_empty()) {
        print::talk(format!("nothing is lost, so {} was not written", path.display()));
    } else if let Some(path) = &args.out {
        write(&found, &args, from, to, path)?;
        print::talk(format!("wrote {} · next: muster plan --incident {0}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn write(found: &Detection, args: &DetectArgs, from: Timestamp, to: Timestamp, path: &Path) -> Result<()> {
    let incident = found.incident(&args.title, &format!("detect {from}..{to}"), context::now());
    let text = toml::to_string(&incident).context("failed to write the incident")?;
    let mut file =
        std::fs::File::create(path).with_context(|| format!("failed to create `{}`", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("failed to write `{}`", path.display()))
}

fn show(found: &Detection, from: Timestamp, to: Timestamp) {
    match (found.lost.first(), found.lost.iter().map(|site| site.last_loss_at).max()) {
        (Some(first), Some(last)) => print::data(format!(
            "{} sites lost between {} and {} ({})",
            print::count(found.lost.len() as u64),
            first.first_loss_at,
            last,
            print::seconds(last.seconds_since(first.first_loss_at)),
        )),
        _ => print::data(format!("no site was lost between {from} and {to}")),
    }
    if !found.lost.is_empty() {
        let header = ["site", "hit at", "stores", "rows before", "rows left", "last recovery point before"];
        print::data(print::table(
            &header,
            &["stores", "rows before", "rows left"],
            found.lost.iter().take(SITES_MAX).map(row),
        ));
        if found.lost.len() > SITES_MAX {
            print::data(format!("… and {} more sites", found.lost.len() - SITES_MAX));
        }
    }
    if !found.marked.is_empty() {
        let rows: u64 = found.marked.iter().map(|loss| loss.rows).sum();
        print::data(format!(
            "Muster itself removed {} rows in the window (roll-backs, overwrites); not counted",
            print::count(rows)
        ));
    }
    for loss in &found.table_losses {
        let rows = print::count(loss.sites.values().sum());
        let lost = match loss.sites.len() {
            0 => String::new(),
            sites => format!("; {rows} rows of {sites} sites"),
        };
        print::data(format!(
            "table {} of {}: {:?} by {}: {}{lost}",
            loss.table, loss.shard, loss.event, loss.at, loss.reason
        ));
    }
}

fn row(site: &DetectedSite) -> Vec<String> {
    let reached = site.stores.iter().filter_map(|store| store.reached).map(|reached| reached.at).min();
    vec![
        site.site.to_string(),
        site.first_loss_at.to_string(),
        site.stores.len().to_string(),
        print::count(site.rows_before),
        print::count(site.rows_after),
        reached.map_or_else(|| "none".to_owned(), |at| at.to_string()),
    ]
}
