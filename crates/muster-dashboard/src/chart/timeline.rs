//! What each site waited for and when it was worked on.

use maud::{Markup, html};
use muster_types::Timestamp;
use muster_types::report::{Report, SiteReport, StepTimes, StoreReport};

use super::axis::{Axis, round};
use crate::figures;

/// Bars that a person can still tell apart.
const BARS_MOST: usize = 120;
/// Of these, so many are the sites that were back last; the others are spread evenly over the rest.
const SLOWEST: usize = 60;

const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 8.0;
const BAR: f64 = 11.0;

/// Phases in the order they are painted.
const PHASES: [&str; 5] = ["queue", "stage", "verify", "publish", "handback"];

/// The section with the bars.
pub(crate) fn timeline(report: &Report) -> Markup {
    let sites = chosen(report);
    let axis = Axis::new(report, LEFT, WIDTH - LEFT - RIGHT);
    let bottom = TOP + sites.len() as f64 * BAR + 4.0;
    html! {
        @if !sites.is_empty() {
            section #timeline {
                h2 { "Timeline" }
                p.legend { @for phase in PHASES { span class={ "key " (phase) } {} (phase) " " } }
                @if sites.len() < report.sites.len() {
                    p.dim {
                        (sites.len()) " of " (figures::plural(report.sites.len() as u64, "site")) " are drawn: those that failed, the "
                        (SLOWEST) " that were back last, and an even sample of the others. All are in the table below."
                    }
                }
                div.scroll {
                    svg viewBox={ "0 0 " (WIDTH) " " (bottom + 26.0) } role="img" aria-labelledby="timeline-title timeline-desc" {
                        title #timeline-title { "Phases of each site's recovery" }
                        desc #timeline-desc { "One bar a site, in the order of hand-back; the table of sites has the figures." }
                        (axis.marks(TOP, bottom))
                        @for (index, site) in sites.iter().enumerate() {
                            (bar(site, report.opened_at, &axis, TOP + index as f64 * BAR))
                        }
                    }
                }
            }
        }
    }
}

/// Sites to draw, by hand-back; those that are not back come first.
fn chosen(report: &Report) -> Vec<&SiteReport> {
    let mut sites: Vec<&SiteReport> = report.sites.iter().collect();
    sites.sort_by_key(|site| (site.handed_back_at.is_some(), site.handed_back_at));
    if sites.len() <= BARS_MOST {
        return sites;
    }
    let failed = sites.iter().filter(|site| site.handed_back_at.is_none()).count().min(BARS_MOST - SLOWEST);
    let (rest, slowest) = sites.split_at(sites.len() - SLOWEST);
    let (failed, rest) = rest.split_at(failed);
    let wanted = BARS_MOST - SLOWEST - failed.len();
    let sample = (0..wanted).filter_map(|index| rest.get(index * rest.len() / wanted.max(1)));
    failed.iter().chain(sample).chain(slowest).copied().collect()
}

fn bar(site: &SiteReport, opened_at: Timestamp, axis: &Axis, y: f64) -> Markup {
    let label: String = site.facts.name.as_deref().unwrap_or(site.site.as_str()).chars().take(24).collect();
    html! {
        g {
            title { (label) ": " (figures::maybe_seconds(site.handed_back_at.map(|at| at.seconds_since(opened_at)))) }
            text.tiny.bad[site.failure.is_some()] x=(LEFT - 6.0) y=(y + 8.5) text-anchor="end" { (label) }
            @for (phase, spans) in PHASES.into_iter().zip(phases(site)) {
                @for (from, to) in spans {
                    @let (x, end) = (round(axis.x(from)), round(axis.x(to)));
                    @let (inset, height) = if phase == "queue" { (4.0, 2.0) } else { (1.0, BAR - 2.5) };
                    rect class=(phase) x=(x) y=(round(y + inset)) width=(round((end - x).max(0.6))) height=(height) {}
                }
            }
        }
    }
}

type Spans = Vec<(Timestamp, Timestamp)>;

/// When any of the site's steps of a phase was under way.
fn phases(site: &SiteReport) -> [Spans; 5] {
    let stores = |step: fn(&StoreReport) -> Option<&StepTimes>| site.stores.iter().filter_map(step);
    let works = |times: &StepTimes| times.ended_at.map(|end| (times.started_at, end));
    let all = || {
        let steps = site.stores.iter().flat_map(|store| [&store.stage, &store.verify, &store.publish]);
        steps.chain([&site.check, &site.handback]).filter_map(Option::as_ref)
    };
    [
        merged(all().map(|times| (times.ready_at, times.started_at)).collect()),
        merged(stores(|store| store.stage.as_ref()).filter_map(works).collect()),
        merged(stores(|store| store.verify.as_ref()).filter_map(works).collect()),
        merged(stores(|store| store.publish.as_ref()).filter_map(works).collect()),
        merged([&site.check, &site.handback].into_iter().flatten().filter_map(works).collect()),
    ]
}

/// Spans that touch or overlap become one.
fn merged(mut spans: Spans) -> Spans {
    spans.sort_unstable();
    let mut merged: Spans = Vec::with_capacity(spans.len());
    for (from, to) in spans {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}
