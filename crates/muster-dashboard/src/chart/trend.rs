//! How one figure of the drills of one name went.

use maud::{Markup, html};
use muster_types::Timestamp;

use super::axis::{self, round};
use super::dates::Dates;
use crate::figures;

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 164.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 142.0;

/// Places beside each other: where more drills meet at one, a line shows their spread and a dot their median.
const PLACES: usize = 100;

/// A figure and its drills.
pub(crate) struct Figure<'a> {
    /// What it is called.
    pub(crate) name: &'a str,
    /// When, how much, and whether that drill failed.
    pub(crate) points: Vec<(Timestamp, f64, bool)>,
    /// The trailing median.
    pub(crate) median: Option<f64>,
    /// Above it, the figure is an alarm; none where more is better.
    pub(crate) limit: Option<f64>,
    /// What it is counted in.
    pub(crate) unit: Unit,
}

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Rows,
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Seconds => figures::seconds(value),
            Self::Rows => figures::count(value as u64),
        }
    }

    /// The distance of marks, of which two reach `top`.
    fn step(self, top: f64) -> f64 {
        let half = top / 2.0;
        let seconds = axis::STEPS.into_iter().find(|step| *step >= half);
        if let (Self::Seconds, Some(step)) = (self, seconds) {
            return step;
        }
        let decade = 10f64.powf(half.log10().floor());
        [1.0, 2.0, 2.5, 5.0]
            .into_iter()
            .map(|part| part * decade)
            .find(|step| *step >= half)
            .unwrap_or(decade * 10.0)
    }

    /// A mark's text.
    fn mark(self, value: f64) -> String {
        match self {
            Self::Seconds => axis::label(value),
            Self::Rows => figures::count(value as u64),
        }
    }
}

/// Drills at one place.
struct Place {
    least: f64,
    median: f64,
    most: f64,
    failed: bool,
}

/// One card with its chart, over the stretch.
pub(crate) fn trend(figure: &Figure<'_>, stretch: (Timestamp, Timestamp)) -> Markup {
    let dates = Dates::new(stretch, LEFT, WIDTH - LEFT - RIGHT);
    let highest = figure.points.iter().map(|(_, value, _)| *value).fold(0.0, f64::max);
    // A limit far above everything would flatten the rest.
    let limit = figure.limit.filter(|limit| *limit <= highest.max(1e-9) * 4.0);
    let reached = highest.max(limit.unwrap_or(0.0)).max(1e-3) * 1.04;
    let (step, top) = (figure.unit.step(reached), reached.max(figure.unit.step(reached) * 2.0));
    let late = |value: f64| limit.is_some_and(|limit| value > limit);
    let y = |value: f64| round(BOTTOM - value.clamp(0.0, top) / top * (BOTTOM - TOP));
    let last = figure.points.last();
    html! {
        div.card {
            h3 { (figure.name) }
            p.big {
                @match last {
                    Some((_, value, _)) => { span.bad[figure.limit.is_some_and(|limit| *value > limit)] { (figure.unit.text(*value)) } }
                    None => { (figures::NONE) }
                }
                @if let Some(median) = figure.median { " " span.dim.small { "median " (figure.unit.text(median)) } }
            }
            svg.small viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ (figure.name) " over time" } {
                (dates.marks((TOP, BOTTOM), 4.0))
                @for number in 0..=2 {
                    @let value = step * f64::from(number);
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y(value)) y2=(y(value)) {}
                    text x=(LEFT - 6.0) y=(y(value) + 4.0) text-anchor="end" { (figure.unit.mark(value)) }
                }
                @if let Some(median) = figure.median {
                    line.median x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y(median)) y2=(y(median)) { title { "trailing median" } }
                }
                @if let Some(limit) = limit {
                    line.limit x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y(limit)) y2=(y(limit)) { title { "above it, an alarm" } }
                }
                @for (index, place) in places(&figure.points, &dates) {
                    @let x = round(LEFT + (index as f64 + 0.5) / PLACES as f64 * (WIDTH - LEFT - RIGHT));
                    @let tone = if place.failed { "failed" } else { "passed" };
                    @if place.most > place.least {
                        line class={ "spread " (tone) } x1=(x) x2=(x) y1=(y(place.most)) y2=(y(place.least)) {}
                    }
                    circle class=(tone) cx=(x) cy=(y(place.median)) r="2.6" {}
                    @if late(place.most) { circle.failed cx=(x) cy=(y(place.most)) r="3.2" {} }
                }
            }
        }
    }
}

fn places(points: &[(Timestamp, f64, bool)], dates: &Dates) -> Vec<(usize, Place)> {
    let mut by_place: Vec<Vec<(f64, bool)>> = vec![Vec::new(); PLACES];
    for (at, value, failed) in points {
        let index = (dates.share(*at) * PLACES as f64) as usize;
        by_place[index.min(PLACES - 1)].push((*value, *failed));
    }
    let place = |(index, mut values): (usize, Vec<(f64, bool)>)| {
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let place = Place {
            least: values.first()?.0,
            median: values.get(values.len() / 2)?.0,
            most: values.last()?.0,
            failed: values.iter().any(|(_, failed)| *failed),
        };
        Some((index, place))
    };
    by_place.into_iter().enumerate().filter_map(place).collect()
}
