//! The table of sites with a fold-out table of stores each.

use std::collections::BTreeSet;

use maud::{Markup, html};
use muster_types::SiteId;
use muster_types::report::{KindCheckReport, ReferencesReport, Report, SiteReport, StoreReport};

use crate::figures::{self, Clock};

/// Columns of the table of sites.
const COLUMNS: [(&str, bool); 11] = [
    ("site", false),
    ("customer", false),
    ("region", false),
    ("tier", false),
    ("users", true),
    ("outage", false),
    ("back", false),
    ("recovery time", true),
    ("from outage", true),
    ("loss", true),
    ("rows", true),
];

/// Sites that missed any target.
pub(crate) fn missed(report: &Report) -> BTreeSet<&SiteId> {
    [&report.rto_declared, &report.rto_outage, &report.rpo]
        .into_iter()
        .flat_map(|figure| &figure.misses)
        .collect()
}

/// The section: failures first, then misses, then all others in the order of the plan.
pub(crate) fn section(report: &Report, clock: &Clock) -> Markup {
    let missed = missed(report);
    let mut sites: Vec<&SiteReport> = report.sites.iter().collect();
    sites.sort_by_key(|site| (site.failure.is_none(), !missed.contains(&site.site)));
    html! {
        section #sites {
            h2 { "Sites" }
            @if sites.is_empty() { p.dim { "The plan has no sites." } }
            @else {
                p.controls {
                    label { "Find " input #find type="search" placeholder="name, id, customer, region, tier"; }
                    label { input #troubled type="checkbox"; " only failures and misses" }
                    span #shown.dim aria-live="polite" {}
                }
                div.scroll {
                    table #site-table {
                        thead { tr { @for (name, number) in COLUMNS { th.n[number] scope="col" { (name) } } } }
                        @for site in sites { (site_rows(site, missed.contains(&site.site), clock)) }
                    }
                }
            }
        }
    }
}

fn site_rows(site: &SiteReport, missed: bool, clock: &Clock) -> Markup {
    let facts = &site.facts;
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| figures::NONE.to_owned());
    let late = |seconds: Option<f64>, target: u64| seconds.is_some_and(|seconds| seconds > target as f64);
    let (rto, rpo) = (site.rto_target_seconds, site.rpo_target_seconds);
    let troubled = missed || site.failure.is_some();
    html! {
        tbody id=(site.site) data-t[troubled] {
            tr {
                th scope="row" {
                    @if let Some(name) = &facts.name { (name) " " }
                    span.dim { (site.site) }
                    @if facts.internal { " " span.pill.plain { "own" } }
                }
                td { (text(&facts.customer)) }
                td { (text(&facts.region)) }
                td { (text(&facts.tier)) }
                td.n { (figures::count(facts.users)) }
                td { (clock.maybe(site.outage_at)) }
                td { @if site.failure.is_some() { span.bad { "✗ failed" } } @else { (clock.maybe(site.handed_back_at)) } }
                td.n.bad[late(site.rto_declared_seconds, rto)] data-v=(sortable(site.rto_declared_seconds)) {
                    (figures::maybe_seconds(site.rto_declared_seconds))
                }
                td.n.bad[late(site.rto_outage_seconds, rto)] data-v=(sortable(site.rto_outage_seconds)) {
                    (figures::maybe_seconds(site.rto_outage_seconds))
                }
                td.n.bad[late(site.rpo_seconds, rpo)] data-v=(sortable(site.rpo_seconds)) {
                    (figures::maybe_seconds(site.rpo_seconds))
                }
                td.n { (figures::count(site.stores.iter().map(|store| store.rows).sum())) }
            }
            tr.d { td colspan=(COLUMNS.len()) { (details(site, clock)) } }
        }
    }
}

fn sortable(value: Option<f64>) -> String {
    value.map_or_else(|| "-1".to_owned(), |value| format!("{value:.3}"))
}

fn details(site: &SiteReport, clock: &Clock) -> Markup {
    let kinds: Vec<&str> = site.stores.iter().map(|store| store.kind.as_str()).collect();
    html! {
        details {
            summary { (figures::plural(site.stores.len() as u64, "store")) span.dim { ": " (kinds.join(", ")) } }
            @if let Some(failure) = &site.failure {
                p.bad { "Failed at " code { (failure.step) } ": " (failure.error) }
            }
            p.small {
                "target " (clock.time(site.target))
                " · recovery time target " (figures::target(site.rto_target_seconds))
                " · loss target " (figures::target(site.rpo_target_seconds))
                " · check " (figures::step(site.check.as_ref()))
                @if let Some(references) = &site.references {
                    " · references " (figures::step(references.times.as_ref()))
                }
                " · hand-back " (figures::step(site.handback.as_ref()))
            }
            @if let Some(references) = &site.references { (counts(references)) }
            @if !site.kind_checks.is_empty() { (kind_checks(&site.kind_checks)) }
            @if !site.stores.is_empty() { (stores(site, clock)) }
        }
    }
}

/// What references across stores lead to.
fn counts(references: &ReferencesReport) -> Markup {
    html! {
        @for count in &references.counts {
            p.small {
                code { (count.reference) } ": "
                @if let Some(why) = &count.unchecked {
                    span.bad { "not counted: " (why) }
                } @else {
                    (figures::plural(count.rows, "row"))
                    @if count.orphans_before > 0 {
                        ", of which " (figures::count(count.orphans_before)) " led nowhere before, too"
                    }
                }
            }
        }
    }
}

/// The operator's checks.
fn kind_checks(checks: &[KindCheckReport]) -> Markup {
    html! {
        @for check in checks {
            p.small {
                "check " code { (check.check) } " of " (check.kind) " "
                @match check.passed {
                    Some(true) => { "passed" }
                    Some(false) => { span.bad { "✗ failed" } }
                    None => { span.dim { "not run" } }
                }
                " " (figures::step(check.times.as_ref()))
                @if !check.output.is_empty() { ": " (check.output) }
            }
        }
    }
}

fn stores(site: &SiteReport, clock: &Clock) -> Markup {
    html! {
        table.stores {
            thead {
                tr {
                    th scope="col" { "store" }
                    th scope="col" { "shard" }
                    th scope="col" { "reached" }
                    th.n scope="col" { "loss" }
                    th.n scope="col" { "rows" }
                    th.n scope="col" { "read" }
                    th.n scope="col" { "queue" }
                    th.n scope="col" { "stage" }
                    th.n scope="col" { "verify" }
                    th.n scope="col" { "publish" }
                    th.n scope="col" { "blocked" }
                    th scope="col" { "digests" }
                }
            }
            tbody { @for store in &site.stores { (store_row(store, clock)) } }
        }
    }
}

fn store_row(store: &StoreReport, clock: &Clock) -> Markup {
    let blocked = store.blocked_micros.map(|micros| micros as f64 / 1e6);
    html! {
        tr {
            th scope="row" { (store.kind) }
            td { (store.shard) }
            td { (clock.time(store.reached.at)) " " span.dim { "at " (store.reached.position) "; " (store.reached_because) } }
            td.n { (figures::seconds(store.rpo_seconds)) }
            td.n { (figures::count(store.rows)) }
            td.n { (figures::bytes(store.bytes)) }
            td.n { (figures::queue(store.stage.as_ref())) }
            td.n { (figures::step(store.stage.as_ref())) }
            td.n { (figures::step(store.verify.as_ref())) }
            td.n { (figures::step(store.publish.as_ref())) }
            td.n { (figures::maybe_seconds(blocked)) }
            td.dig {
                @for (table, found) in &store.tables {
                    (table) " " (figures::count(found.rows)) " " code { (found.digest.short()) } br;
                }
            }
        }
    }
}
