//! Sites back over time.

use std::fmt::Write as _;

use maud::{Markup, html};
use muster_types::Timestamp;
use muster_types::report::Report;

use super::axis::{Axis, round};
use crate::figures;

const WIDTH: f64 = 1_100.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 228.0;

/// The section with the curve.
pub(crate) fn curve(report: &Report) -> Markup {
    let mut times: Vec<Timestamp> = report.sites.iter().filter_map(|site| site.handed_back_at).collect();
    times.sort_unstable();
    let all = report.sites.len().max(1);
    let axis = Axis::new(report, LEFT, WIDTH - LEFT - RIGHT);
    let y = |back: usize| round(BOTTOM - back as f64 / all as f64 * (BOTTOM - TOP));
    let line = line(&times, &axis, report, y);
    html! {
        @if !report.sites.is_empty() {
            section #curve {
                h2 { "Sites back over time" }
                div.scroll {
                    svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby="curve-title curve-desc" {
                        title #curve-title { "Sites handed back over the time of the run" }
                        desc #curve-desc { (description(report, &times)) }
                        (axis.marks(TOP, BOTTOM))
                        @for quarter in 0..=4 {
                            @let back = all * quarter / 4;
                            line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y(back)) y2=(y(back)) {}
                            text x=(LEFT - 8.0) y=(y(back) + 4.0) text-anchor="end" { (back) }
                        }
                        path.area d={ (line) " L" (round(axis.x(report.last_at))) " " (BOTTOM) " L" (LEFT) " " (BOTTOM) " Z" } {}
                        path.line d=(line) {}
                    }
                }
            }
        }
    }
}

/// Steps: a site is back or it is not.
fn line(times: &[Timestamp], axis: &Axis, report: &Report, y: impl Fn(usize) -> f64) -> String {
    let mut path = format!("M{LEFT} {}", y(0));
    let mut last_x = LEFT;
    for (index, time) in times.iter().enumerate() {
        let x = round(axis.x(*time));
        // Writing to a String cannot fail.
        if x > last_x {
            let _ = write!(path, " H{x}");
            last_x = x;
        }
        // Only the last of those at one place is drawn.
        let next = times.get(index + 1).map(|next| round(axis.x(*next)));
        if next != Some(x) {
            let _ = write!(path, " V{}", y(index + 1));
        }
    }
    let _ = write!(path, " H{}", round(axis.x(report.last_at)));
    path
}

fn description(report: &Report, times: &[Timestamp]) -> String {
    let at = |share: f64| {
        let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times
            .get(index)
            .map_or(figures::NONE.to_owned(), |time| figures::seconds(time.seconds_since(report.opened_at)))
    };
    format!(
        "{} of {} sites are back; half of these after {}, the last after {}.",
        times.len(),
        report.sites.len(),
        at(0.5),
        at(1.0)
    )
}
