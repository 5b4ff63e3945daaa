//! `muster report`: what a run did, for the terminal, as JSON, or as one HTML file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_types::report::{Distribution, ForecastPoint, Report, RunStatus, SiteReport};

use muster_types::{RunId, Timestamp};

use crate::commands::apply;
use crate::context::Context;
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Most sites that the terminal lists; the page and the JSON have all.
const TERMINAL_SITES_MAX: usize = 25;

/// Arguments of `muster report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run.
    run: RunId,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Write the report as one self-contained HTML file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(topology: &TopologyPlace, args: ReportArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let mut report = muster_engine::load_report(&context.repository, &args.run)
        .await
        .map_err(|error| apply::failure(error.into()))?;
    report.forecast = muster_drill::past_runs::judged(&context.repository, &args.run).await?;
    if let Some(path) = &args.html {
        let page = muster_dashboard::report_page(&report);
        std::fs::write(path, page).with_context(|| format!("failed to write `{}`", path.display()))?;
        print::talk(format!("wrote {}", path.display()));
    }
    if args.json {
        print::data(serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    Ok(code(&report))
}

/// The exit code that a report stands for.
pub(crate) fn code(report: &Report) -> ExitCode {
    match report.status {
        RunStatus::Restored => ExitCode::SUCCESS,
        RunStatus::Open | RunStatus::RestoredInPart | RunStatus::Abandoned => {
            ExitCode::from(exit::Exit::Partial as u8)
        }
    }
}

/// Prints the report for people.
pub(crate) fn show(report: &Report) {
    let totals = &report.totals;
    print::data(format!(
        "run {} · {} · {} of {} sites restored ({} customers, {} users)",
        report.run,
        status_text(report.status),
        print::count(totals.sites_restored),
        print::count(totals.sites),
        print::count(totals.customers),
        print::count(totals.users),
    ));
    print::data(format!(
        "{} stores, {} rows, {} read in {} ({} rows/s)",
        print::count(totals.stores),
        print::count(totals.rows),
        print::bytes(totals.bytes),
        print::seconds(totals.seconds),
        print::count((totals.rows as f64 / totals.seconds.max(1e-3)) as u64),
    ));
    print::data("");
    print::data(distributions(report));
    show_forecast(report);
    show_proof(report);
    show_checks(report);
    show_failures(report);
    show_slowest(report);
}

fn status_text(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Open => "open",
        RunStatus::Restored => "restored",
        RunStatus::RestoredInPart => "restored in part",
        RunStatus::Abandoned => "abandoned",
    }
}

fn distributions(report: &Report) -> String {
    let row = |name: &str, figures: &Distribution| {
        let mut cells = vec![name.to_owned(), print::count(figures.count)];
        cells.extend([figures.p50, figures.p95, figures.max].map(print::seconds));
        cells.push(print::count(figures.misses.len() as u64));
        cells
    };
    print::table(
        &["per site", "sites", "p50", "p95", "max", "misses"],
        &["sites", "p50", "p95", "max", "misses"],
        [
            row("RTO since declared", &report.rto_declared),
            row("RTO since outage", &report.rto_outage),
            row("RPO (worst store)", &report.rpo),
        ],
    )
}

fn show_forecast(report: &Report) {
    let Some(forecast) = &report.forecast else { return };
    let point = |when: &str, point: &ForecastPoint| {
        let error =
            point.error_share.map(|error| format!(", {:+.0} % off", error * 100.0)).unwrap_or_default();
        let after = |at: Timestamp| print::seconds(at.seconds_since(point.at));
        print::data(format!(
            "forecast {when}: {} more ({} to {}){error}",
            after(point.ends_at),
            after(point.earliest),
            after(point.latest)
        ));
    };
    print::data("");
    point("at the start", &forecast.at_start);
    if let Some(tenth) = &forecast.at_tenth {
        point("with a tenth done", tenth);
    }
}

fn show_proof(report: &Report) {
    let proof = &report.proof;
    print::data("");
    print::data(format!(
        "neighbours: {} marked row changes of {} sites read back from the change logs, each a staged row",
        print::count(proof.marked_changes),
        print::count(proof.sites_proven),
    ));
    for (shard, proof) in &proof.shards {
        let verdict = match (&proof.error, proof.holds) {
            (None, true) => "untouched".to_owned(),
            (None, false) => "not proven".to_owned(),
            (Some(error), _) => format!("NOT PROVEN: {error}"),
        };
        print::data(format!(
            "  {shard}: {} neighbour rows, {} logged changes of their own: {verdict}",
            print::count(proof.rows),
            print::count(proof.changes),
        ));
    }
}

/// References across stores and the operator's checks; nothing where none are declared.
fn show_checks(report: &Report) {
    let counts: Vec<_> = report
        .sites
        .iter()
        .filter_map(|site| site.references.as_ref())
        .flat_map(|found| &found.counts)
        .collect();
    if !counts.is_empty() {
        print::data(format!(
            "references: {} rows refer to other stores; {} of them led nowhere before, too",
            print::count(counts.iter().map(|count| count.rows).sum()),
            print::count(counts.iter().map(|count| count.orphans_before).sum()),
        ));
    }
    for note in report.notes.iter().filter(|note| note.code == "reference-unchecked").take(TERMINAL_SITES_MAX)
    {
        print::data(format!("  {}: {}; {}", note.subject, note.text, note.hint));
    }
    let checks: Vec<_> = report.sites.iter().flat_map(|site| &site.kind_checks).collect();
    if !checks.is_empty() {
        let ended = |passed: bool| checks.iter().filter(|check| check.passed == Some(passed)).count() as u64;
        print::data(format!(
            "checks of kinds: {} passed, {} failed, of {}",
            print::count(ended(true)),
            print::count(ended(false)),
            print::count(checks.len() as u64),
        ));
    }
}

fn show_failures(report: &Report) {
    let failed: Vec<&SiteReport> = report.sites.iter().filter(|site| site.failure.is_some()).collect();
    if failed.is_empty() {
        return;
    }
    print::data("");
    print::data(format!("{} sites are not back:", failed.len()));
    for site in failed.iter().take(TERMINAL_SITES_MAX) {
        if let Some(failure) = &site.failure {
            print::data(format!("  {}: {} failed: {}", site.site, failure.step, failure.error));
        }
    }
    if failed.len() > TERMINAL_SITES_MAX {
        print::data(format!(
            "  … and {} more: muster report {} --json",
            failed.len() - TERMINAL_SITES_MAX,
            report.run
        ));
    }
}

fn show_slowest(report: &Report) {
    let mut sites: Vec<&SiteReport> =
        report.sites.iter().filter(|site| site.rto_declared_seconds.is_some()).collect();
    sites.sort_by(|a, b| {
        b.rto_declared_seconds.unwrap_or(0.0).total_cmp(&a.rto_declared_seconds.unwrap_or(0.0))
    });
    if sites.is_empty() {
        return;
    }
    print::data("");
    print::data("slowest sites:");
    let rows = sites.iter().take(5).map(|site| {
        vec![
            site.site.to_string(),
            site.facts.name.clone().unwrap_or_default(),
            site.facts.tier.clone().unwrap_or_default(),
            site.stores.len().to_string(),
            print::count(site.stores.iter().map(|store| store.rows).sum()),
            site.rto_declared_seconds.map(print::seconds).unwrap_or_default(),
            site.rpo_seconds.map(print::seconds).unwrap_or_default(),
        ]
    });
    print::data(print::table(
        &["site", "name", "tier", "stores", "rows", "RTO", "RPO"],
        &["stores", "rows", "RTO", "RPO"],
        rows,
    ));
}
