//! The page of a report as a whole.

use maud::{Markup, PreEscaped, html};
use muster_types::plan::{Note, Severity};
use muster_types::report::{Report, RunStatus};

use crate::document::document;
use crate::figures::{self, Clock};
use crate::{chart, proof, sites, summary};

const SCRIPT: &str = include_str!("script.js");

/// More notes of one sort than this are folded.
const NOTES_OPEN_MOST: usize = 5;

/// The page.
pub(crate) fn page(report: &Report) -> Markup {
    let clock = Clock::on(report.opened_at);
    let title = format!("{} · {}", verdict(report), report.title);
    let body = html! {
        (header(report))
        main {
            (failures(report))
            (summary::figures(report))
            (summary::tiers(report))
            (chart::curve(report))
            (chart::timeline(report))
            (proof::section(&report.proof))
            (notes(&report.notes))
            (sites::section(report, &clock))
        }
        footer {
            "Times are UTC. Recovery time counts from the declaration of the incident, and from the site's own \
             outage; loss is outage (or target) minus the recovery point, a site has the worst of its stores."
        }
        script { (PreEscaped(SCRIPT)) }
    };
    document(&title, &body)
}

fn verdict(report: &Report) -> String {
    let (back, all) = (report.totals.sites_restored, report.totals.sites);
    format!("{} of {} restored", figures::count(back), figures::plural(all, "site"))
}

/// The colour of the verdict and what it says beside the numbers.
fn standing(report: &Report) -> (&'static str, &'static str) {
    let proof_failed = proof::failed(&report.proof);
    match report.status {
        RunStatus::Restored if proof_failed => ("bad", "restored, but the proof of the neighbours failed"),
        RunStatus::Restored => ("good", "restored"),
        RunStatus::Open => ("fair", "still running"),
        RunStatus::RestoredInPart => ("bad", "restored in part"),
        RunStatus::Abandoned => ("bad", "abandoned by the operator"),
    }
}

fn header(report: &Report) -> Markup {
    let (tone, standing) = standing(report);
    html! {
        header class=(tone) {
            p.kicker { "Muster recovery report" }
            h1 { (verdict(report)) }
            p.standing { span.pill { (standing) } " " (report.title) }
            dl {
                div { dt { "declared" } dd { (figures::full(report.declared_at)) } }
                div { dt { "run opened" } dd { (figures::full(report.opened_at)) } }
                div { dt { "last record" } dd { (figures::full(report.last_at)) } }
                div { dt { "run" } dd { code { (report.run) } } }
                div { dt { "plan" } dd { code title=(report.plan) { (short(&report.plan.to_string())) } } }
                @if report.epochs.len() > 1 {
                    div { dt { "engines" } dd { (report.epochs.len()) " (taken over " (report.epochs.len() - 1) "×)" } }
                }
            }
        }
    }
}

/// Enough of a long name to tell it from others.
fn short(text: &str) -> String {
    text.chars().take(16).collect()
}

fn failures(report: &Report) -> Markup {
    let failed: Vec<_> =
        report.sites.iter().filter_map(|site| site.failure.as_ref().map(|why| (site, why))).collect();
    html! {
        @if !failed.is_empty() {
            section #failures {
                h2 { "Not back: " (figures::plural(failed.len() as u64, "site")) }
                div.scroll {
                    table {
                        thead { tr { th scope="col" { "site" } th scope="col" { "step" } th scope="col" { "why" } } }
                        tbody {
                            @for (site, failure) in failed {
                                tr {
                                    th scope="row" { a href={ "#" (site.site) } { (site.site) } }
                                    td { code { (failure.step) } }
                                    td.bad { (failure.error) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn notes(notes: &[Note]) -> Markup {
    let mut sorted: Vec<&Note> = notes.iter().collect();
    sorted.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)));
    html! {
        @if !sorted.is_empty() {
            section #notes {
                h2 { "Notes of the plan" }
                @for group in sorted.chunk_by(|a, b| (a.severity, &a.code) == (b.severity, &b.code)) {
                    (note_group(group))
                }
            }
        }
    }
}

fn note_group(group: &[&Note]) -> Markup {
    let Some(first) = group.first() else { return html! {} };
    let (name, tone) = match first.severity {
        Severity::Fatal => ("fatal", "bad"),
        Severity::Error => ("error", "bad"),
        Severity::Warning => ("warning", "fair"),
        Severity::Info => ("info", "plain"),
    };
    html! {
        details.notes open[group.len() <= NOTES_OPEN_MOST] {
            summary { span class={ "pill " (tone) } { (name) } " " code { (first.code) } " " (group.len()) "×" }
            ul {
                @for note in group {
                    li { b { (note.subject) } ": " (note.text) @if !note.hint.is_empty() { span.dim { " — " (note.hint) } } }
                }
            }
        }
    }
}
