//! The page of the history of drills.

use std::fmt::Display;

use maud::{Markup, html};
use muster_types::Timestamp;
use muster_types::drill::Verdict;
use muster_types::drill_history::{ClassHistory, Coverage, DrillHistory, PastDrill, Trend};

use crate::chart::{self, Figure, Unit};
use crate::document::document;
use crate::figures;

/// Failed drills that stand open; earlier ones are folded.
const FAILED_OPEN_MOST: usize = 20;

/// Failed drills on the page: a page of years stays one that a browser opens at once.
const FAILED_MOST: usize = 500;

/// The page.
pub(crate) fn page(history: &DrillHistory) -> Markup {
    let body = html! {
        (header(history))
        main {
            (alarms(history))
            (coverage(history))
            (classes(history))
            @if !history.drills.is_empty() { (chart::calendar(history)) }
            (chart::days(&history.days))
            (trends(history))
            (failed(history))
        }
        footer {
            "Times are UTC. Recovery time is the 95th percentile over the sites of a drill, recovery point the worst of \
             them. Medians are of the drills of the same name before the last one, twenty at most. Drills that were \
             stopped say nothing of a restore, and count for nothing here but in the picture of drills."
        }
    };
    document(&format!("{} · drills", verdict(history)), &body)
}

/// What the charts span: all drills, and the stretch that counts.
pub(crate) fn stretch(history: &DrillHistory) -> (Timestamp, Timestamp) {
    let first = history.drills.first().map_or(history.since, |drill| drill.began_at);
    (first.min(history.since), history.until)
}

fn verdict(history: &DrillHistory) -> String {
    match (history.alarms.len(), history.drills.len()) {
        (0, 0) => "Nothing was rehearsed yet".to_owned(),
        (0, _) => "No alarm".to_owned(),
        (alarms, _) => figures::plural(alarms as u64, "alarm"),
    }
}

fn header(history: &DrillHistory) -> Markup {
    let (tone, standing) = match (history.alarms.is_empty(), history.drills.is_empty()) {
        (false, _) => ("bad", "someone should look"),
        (true, true) => ("fair", "run a drill: muster drill run"),
        (true, false) => ("good", "rehearsed"),
    };
    let recent = || history.drills.iter().filter(|drill| drill.began_at >= history.since);
    let of = |verdict| recent().filter(|drill| drill.verdict == verdict).count() as u64;
    html! {
        header class=(tone) {
            p.kicker { "Muster history of drills" }
            h1 { (verdict(history)) }
            p.standing { span.pill { (standing) } " " (figures::target(span(history))) " that count as proof" }
            dl {
                div { dt { "from" } dd { (figures::full(history.since)) } }
                div { dt { "until" } dd { (figures::full(history.until)) } }
                div { dt { "passed" } dd { (figures::count(of(Verdict::Passed))) } }
                div { dt { "failed" } dd { (figures::count(of(Verdict::Failed))) } }
                div { dt { "stopped" } dd { (figures::count(of(Verdict::Stopped))) } }
                div { dt { "all ever" } dd { (figures::count(history.drills.len() as u64)) } }
            }
        }
    }
}

/// Whole days of the stretch, in seconds.
fn span(history: &DrillHistory) -> u64 {
    let days = (history.until.seconds_since(history.since) / 86_400.0).round().max(0.0);
    days as u64 * 86_400
}

fn alarms(history: &DrillHistory) -> Markup {
    html! {
        @if !history.alarms.is_empty() {
            section #alarms {
                h2 { "Alarms" }
                div.notes { ul { @for alarm in &history.alarms { li.bad { (alarm) } } } }
            }
        }
    }
}

fn coverage(history: &DrillHistory) -> Markup {
    let proven = history.days.iter().filter(|day| day.moments > 0).count() as u64;
    let days: Coverage<&str> = Coverage { all: history.days.len() as u64, proven, never: Vec::new() };
    html! {
        section #coverage {
            h2 { "Proven" }
            div.cards {
                (covered("Sites", &history.sites))
                (covered("Shards", &history.shards))
                (covered("Kinds", &history.kinds))
                (covered("Days with a moment", &days))
            }
        }
    }
}

fn covered<T: Display>(name: &str, coverage: &Coverage<T>) -> Markup {
    let share = (coverage.all > 0).then(|| coverage.proven as f64 * 100.0 / coverage.all as f64);
    let never = coverage.never.len() as u64;
    html! {
        div.card {
            h3 { (name) }
            p.big { @match share { Some(share) => { (format!("{share:.0} %")) } None => { (figures::NONE) } } }
            div.meter { div style={ "width:" (format!("{:.1}", share.unwrap_or(0.0))) "%" } {} }
            p.dim { (figures::count(coverage.proven)) " of " (figures::count(coverage.all)) }
            @if never > 0 {
                details.small {
                    summary { span.fair { (figures::count(never)) " never, in any drill" } }
                    p.names { @for one in &coverage.never { code { (one) } " " } }
                }
            } @else if coverage.all > 0 && coverage.proven == coverage.all { p.small.good { "✓ all" } }
        }
    }
}

fn classes(history: &DrillHistory) -> Markup {
    html! {
        section #classes {
            h2 { "Classes" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th scope="col" { "what is rehearsed" }
                            th scope="col" { "last proven" }
                            th scope="col" { "ago" }
                            th scope="col" { "last failed" }
                            th.n scope="col" { "drills in the stretch" }
                        }
                    }
                    tbody { @for class in &history.classes { (class_row(class, history)) } }
                }
            }
        }
    }
}

fn class_row(class: &ClassHistory, history: &DrillHistory) -> Markup {
    let time = |at: Option<Timestamp>| at.map_or_else(|| figures::NONE.to_owned(), figures::full);
    let ago = class.proven_at.map(|at| history.until.seconds_since(at).max(0.0));
    let failed_last = class.failed_at > class.proven_at;
    html! {
        tr {
            th scope="row" { (class.class.name()) }
            td { @if class.proven_at.is_none() { span.fair { "never" } } @else { (time(class.proven_at)) } }
            td { (figures::maybe_seconds(ago)) }
            td.bad[failed_last] { (time(class.failed_at)) }
            td.n { (figures::count(class.drills)) }
        }
    }
}

fn trends(history: &DrillHistory) -> Markup {
    html! {
        @for trend in &history.trends {
            section.trend {
                h2 { "Trend of " (trend.name) }
                div.cards { (figures_of(trend, history)) }
            }
        }
    }
}

fn figures_of(trend: &Trend, history: &DrillHistory) -> Markup {
    let points = |value: fn(&PastDrill) -> Option<f64>| {
        let own = history.drills.iter().filter(|drill| drill.name == trend.name);
        let judged = own.filter(|drill| drill.verdict != Verdict::Stopped);
        judged
            .filter_map(|drill| Some((drill.began_at, value(drill)?, drill.verdict == Verdict::Failed)))
            .collect::<Vec<_>>()
    };
    let limit = |median: Option<f64>| median.map(|median| median * history.factor);
    let all = [
        Figure {
            name: "Recovery time",
            points: points(|drill| drill.rto_seconds),
            median: trend.rto_median_seconds,
            limit: limit(trend.rto_median_seconds),
            unit: Unit::Seconds,
        },
        Figure {
            name: "Recovery point",
            points: points(|drill| drill.rpo_seconds),
            median: trend.rpo_median_seconds,
            limit: limit(trend.rpo_median_seconds),
            unit: Unit::Seconds,
        },
        Figure {
            name: "Rows a second",
            points: points(|drill| drill.rows_per_second),
            median: trend.rows_per_second_median,
            limit: None,
            unit: Unit::Rows,
        },
    ];
    let first = all.iter().filter_map(|figure| figure.points.first()).map(|(at, ..)| *at).min();
    let own = (first.unwrap_or(history.since), history.until);
    html! { @for figure in &all { (chart::trend(figure, own)) } }
}

fn failed(history: &DrillHistory) -> Markup {
    let failed: Vec<&PastDrill> =
        history.drills.iter().rev().filter(|drill| drill.verdict == Verdict::Failed).collect();
    let (open, folded) = failed.split_at(failed.len().min(FAILED_OPEN_MOST));
    let folded = &folded[..folded.len().min(FAILED_MOST - FAILED_OPEN_MOST)];
    let left_out = failed.len() - open.len() - folded.len();
    html! {
        @if !failed.is_empty() {
            section #failed {
                h2 { "Failed: " (figures::plural(failed.len() as u64, "drill")) }
                div.scroll { (failed_table(open)) }
                @if !folded.is_empty() {
                    details.notes {
                        summary { (figures::plural(folded.len() as u64, "earlier one")) }
                        (failed_table(folded))
                    }
                }
                @if left_out > 0 {
                    p.dim { (figures::count(left_out as u64)) " still earlier ones are left out; muster drill history --json has them." }
                }
            }
        }
    }
}

fn failed_table(drills: &[&PastDrill]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "began" }
                    th scope="col" { "drill" }
                    th scope="col" { "class" }
                    th.n scope="col" { "sites" }
                    th scope="col" { "why" }
                }
            }
            tbody {
                @for drill in drills {
                    tr {
                        td.time { (figures::full(drill.began_at)) }
                        th scope="row" { (drill.name) " " code { (drill.id) } }
                        td { (drill.class.name()) }
                        td.n { (figures::count(drill.sites)) }
                        td.bad {
                            (drill.errors.first().map_or("no reason was recorded", String::as_str))
                            @if drill.errors.len() > 1 { " " span.dim { "and " (drill.errors.len() - 1) " more" } }
                        }
                    }
                }
            }
        }
    }
}
