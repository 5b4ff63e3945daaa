//! A plan as tables for people.

use std::collections::BTreeMap;

use muster_forecast::Forecast;
use muster_types::ShardName;
use muster_types::plan::{Note, Plan, Severity, SitePlan};

use crate::commands::forecast;
use crate::print;

/// Most rows that the terminal shows of sites and of notes of one code; the plan file has all.
const ROWS_MAX: usize = 15;

/// Prints the plan.
pub(crate) fn show(plan: &Plan, forecast: &Forecast) {
    let stores: usize = plan.sites.iter().map(|site| site.stores.len()).sum();
    let sum = |figure: fn(&SitePlan) -> u64| plan.sites.iter().map(figure).sum::<u64>();
    print::data(format!(
        "plan {} · {}",
        &plan.id.as_str()[..12.min(plan.id.as_str().len())],
        plan.request.incident.title
    ));
    print::data(format!(
        "{} sites, {} stores, {} rows, {} to read from {} objects, {} steps",
        print::count(plan.sites.len() as u64),
        print::count(stores as u64),
        print::count(sum(|site| site.stores.iter().map(|store| store.rows).sum())),
        print::bytes(sum(|site| site.stores.iter().map(|store| store.bytes).sum())),
        print::count(plan.objects.len() as u64),
        print::count(plan.steps.len() as u64),
    ));
    forecast::show(forecast);
    if !plan.sites.is_empty() {
        print::data("");
        show_shards(plan);
        show_sites(plan);
    }
    show_notes(&plan.notes);
}

fn show_shards(plan: &Plan) {
    let mut longest: BTreeMap<&ShardName, u64> = BTreeMap::new();
    for store in plan.sites.iter().flat_map(|site| &site.stores) {
        let block = longest.entry(&store.shard).or_default();
        *block = (*block).max(store.publish_block_milliseconds);
    }
    let rows = plan.shards.iter().map(|(name, shard)| {
        vec![
            name.to_string(),
            shard.region.clone(),
            print::count(shard.stores),
            print::count(shard.rows),
            format!(
                "{} of {} ms",
                longest.get(name).copied().unwrap_or(0),
                shard.writer_block_milliseconds_max
            ),
        ]
    });
    let header = ["shard", "region", "stores", "rows", "writers blocked at most"];
    print::data(print::table(&header, &["stores", "rows", "writers blocked at most"], rows));
}

fn show_sites(plan: &Plan) {
    print::data("");
    let rows = plan.sites.iter().take(ROWS_MAX).map(site_row);
    let header =
        ["site", "name", "region", "tier", "stores", "rows", "bytes", "target", "reached (oldest)", "RPO"];
    print::data(print::table(&header, &["stores", "rows", "bytes", "RPO"], rows));
    if plan.sites.len() > ROWS_MAX {
        print::data(format!("… and {} more sites", plan.sites.len() - ROWS_MAX));
    }
}

fn site_row(site: &SitePlan) -> Vec<String> {
    let oldest = site.stores.iter().map(|store| store.reached.at).min();
    let lost_from = site.outage_at.unwrap_or(site.target);
    vec![
        site.site.to_string(),
        site.facts.name.clone().unwrap_or_default(),
        site.facts.region.clone().unwrap_or_default(),
        site.facts.tier.clone().unwrap_or_default(),
        site.stores.len().to_string(),
        print::count(site.stores.iter().map(|store| store.rows).sum()),
        print::bytes(site.stores.iter().map(|store| store.bytes).sum()),
        site.target.to_string(),
        oldest.map(|at| at.to_string()).unwrap_or_default(),
        oldest.map(|at| print::seconds(lost_from.seconds_since(at).max(0.0))).unwrap_or_default(),
    ]
}

fn show_notes(notes: &[Note]) {
    if notes.is_empty() {
        return;
    }
    print::data("");
    let mut by_code: BTreeMap<(std::cmp::Reverse<Severity>, &str), Vec<&Note>> = BTreeMap::new();
    for note in notes {
        by_code.entry((std::cmp::Reverse(note.severity), &note.code)).or_default().push(note);
    }
    for ((severity, code), notes) in by_code {
        print::data(format!("{} {code} ({})", severity_text(severity.0), notes.len()));
        for note in notes.iter().take(3) {
            print::data(format!("  {}: {}", note.subject, note.text));
        }
        if notes.len() > 3 {
            print::data(format!("  … and {} more", notes.len() - 3));
        }
        print::data(format!("  → {}", notes[0].hint));
    }
}

fn severity_text(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    }
}
