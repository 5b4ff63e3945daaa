//! Key figures and targets.

use std::collections::BTreeMap;

use maud::{Markup, html};
use muster_types::report::{Distribution, Report, SiteReport};

use crate::figures;

/// Sites listed by name where targets were missed.
const MISSES_SHOWN: usize = 12;

/// The key figures.
pub(crate) fn figures(report: &Report) -> Markup {
    let totals = &report.totals;
    html! {
        section #figures {
            h2 { "Key figures" }
            div.cards {
                (distribution("Recovery time", "from the declaration", &report.rto_declared))
                (distribution("Recovery time", "from each site's outage", &report.rto_outage))
                (distribution("Loss", "worst store of each site", &report.rpo))
                div.card {
                    h3 { "Duration" }
                    p.big { (figures::seconds(totals.seconds)) }
                    p.dim { "first step to last record" }
                    p { (rate(totals.rows, totals.seconds)) " rows/s" }
                }
                div.card {
                    h3 { "Restored" }
                    p.big { (figures::count(totals.rows)) " rows" }
                    p.dim { (figures::plural(totals.stores, "store")) " planned" }
                    p { (figures::bytes(totals.bytes)) " read, compressed" }
                }
                div.card {
                    h3 { "People" }
                    p.big { (figures::plural(totals.customers, "customer")) }
                    p { (figures::plural(totals.users, "user")) }
                    p.dim { (internal(report)) " of the sites are the operator's own" }
                }
            }
        }
    }
}

fn rate(rows: u64, seconds: f64) -> String {
    if seconds > 0.0 { figures::count((rows as f64 / seconds) as u64) } else { figures::NONE.to_owned() }
}

fn internal(report: &Report) -> usize {
    report.sites.iter().filter(|site| site.facts.internal).count()
}

fn distribution(name: &str, from: &str, figure: &Distribution) -> Markup {
    let value =
        |value: f64| if figure.count == 0 { figures::NONE.to_owned() } else { figures::seconds(value) };
    html! {
        div.card {
            h3 { (name) }
            p.dim { (from) }
            dl.percentiles {
                div { dt { "median" } dd { (value(figure.p50)) } }
                div { dt { "95 %" } dd { (value(figure.p95)) } }
                div { dt { "longest" } dd { (value(figure.max)) } }
            }
            @if figure.misses.is_empty() { p.good { "✓ no target missed" } }
            @else {
                p.bad { "✗ " (figures::plural(figure.misses.len() as u64, "target")) " missed" }
                p.small {
                    @for site in figure.misses.iter().take(MISSES_SHOWN) {
                        a href={ "#" (site) } { (site.as_str()) } " "
                    }
                    @if figure.misses.len() > MISSES_SHOWN { "and " (figure.misses.len() - MISSES_SHOWN) " more" }
                }
            }
        }
    }
}

#[derive(Default)]
struct TierFigures {
    sites: u64,
    back: u64,
    rto_target: u64,
    rpo_target: u64,
    rto_most: Option<f64>,
    rpo_most: Option<f64>,
    misses: u64,
}

impl TierFigures {
    fn add(&mut self, site: &SiteReport, missed: bool) {
        let most = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        self.sites += 1;
        self.back += u64::from(site.handed_back_at.is_some());
        self.rto_target = site.rto_target_seconds;
        self.rpo_target = site.rpo_target_seconds;
        self.rto_most = most(self.rto_most, site.rto_declared_seconds);
        self.rpo_most = most(self.rpo_most, site.rpo_seconds);
        self.misses += u64::from(missed);
    }
}

/// Targets and worst values, a tier each.
pub(crate) fn tiers(report: &Report) -> Markup {
    let mut tiers: BTreeMap<(u64, &str), TierFigures> = BTreeMap::new();
    let missed = crate::sites::missed(report);
    for site in &report.sites {
        let tier = site.facts.tier.as_deref().unwrap_or("without a tier");
        tiers.entry((site.rto_target_seconds, tier)).or_default().add(site, missed.contains(&site.site));
    }
    html! {
        @if !tiers.is_empty() {
            div.scroll {
                table {
                    caption { "Targets by tier" }
                    thead {
                        tr {
                            th scope="col" { "tier" }
                            th.n scope="col" { "sites" }
                            th.n scope="col" { "back" }
                            th.n scope="col" { "recovery time target" }
                            th.n scope="col" { "longest" }
                            th.n scope="col" { "loss target" }
                            th.n scope="col" { "largest" }
                            th.n scope="col" { "sites with a miss" }
                        }
                    }
                    tbody {
                        @for ((_, tier), figures) in &tiers { (tier_row(tier, figures)) }
                    }
                }
            }
        }
    }
}

fn tier_row(tier: &str, tier_figures: &TierFigures) -> Markup {
    html! {
        tr {
            th scope="row" { (tier) }
            td.n { (figures::count(tier_figures.sites)) }
            td.n { (figures::count(tier_figures.back)) }
            td.n { (figures::target(tier_figures.rto_target)) }
            td.n { (figures::maybe_seconds(tier_figures.rto_most)) }
            td.n { (figures::target(tier_figures.rpo_target)) }
            td.n { (figures::maybe_seconds(tier_figures.rpo_most)) }
            td.n.bad[tier_figures.misses > 0] { (figures::count(tier_figures.misses)) }
        }
    }
}
