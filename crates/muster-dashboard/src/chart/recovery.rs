//! Shares back over time, of several ways to bring them back: a picture of its own.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use super::axis::round;

/// One way.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryCurve {
    /// For people.
    pub name: String,
    /// Seconds since the beginning and the share back, from 0 to 1; ascending.
    pub points: Vec<(f64, f64)>,
}

/// What is known of a real course.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownPoint {
    /// Seconds since the beginning.
    pub seconds: f64,
    /// The share back, from 0 to 1; none where only the moment is known.
    pub share: Option<f64>,
    /// For people; may be empty.
    pub label: String,
}

/// One diagram: curves, and points that are known.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryPanel {
    /// What is back.
    pub title: String,
    /// At most four.
    pub curves: Vec<RecoveryCurve>,
    /// Beside them.
    pub known: Vec<KnownPoint>,
}

const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const HEADER: f64 = 104.0;
const PANEL: f64 = 250.0;
const GAP: f64 = 84.0;

/// Moments that read well on a logarithmic axis: minutes to years.
const MARKS: [(f64, &str); 12] = [
    (600.0, "10 min"),
    (1_800.0, "30 min"),
    (3_600.0, "1 h"),
    (3.0 * 3_600.0, "3 h"),
    (6.0 * 3_600.0, "6 h"),
    (86_400.0, "1 day"),
    (3.0 * 86_400.0, "3 days"),
    (7.0 * 86_400.0, "1 week"),
    (14.0 * 86_400.0, "2 weeks"),
    (61.0 * 86_400.0, "2 months"),
    (365.0 * 86_400.0, "1 year"),
    (1_096.0 * 86_400.0, "3 years"),
];

/// Own colours, so that the file stands alone; `style.css` is the page's.
const STYLE: &str = "svg{--bg:#fff;--ink:#16202c;--dim:#55606e;--line:#d9dee5;--c0:#8b95a3;--c1:#c4561b;--c2:#2f74d0;--c3:#14805a;--known:#16202c;background:var(--bg)}\
@media (prefers-color-scheme:dark){svg{--bg:#11161c;--ink:#e6eaf0;--dim:#a3aebb;--line:#313b47;--c0:#7b8694;--c1:#f0a250;--c2:#5c9bf0;--c3:#45c488;--known:#e6eaf0}}\
text{font:12px system-ui,sans-serif;fill:var(--dim)}.h{font-size:17px;font-weight:600;fill:var(--ink)}.t{font-size:13px;font-weight:600;fill:var(--ink)}\
.g{stroke:var(--line)}.c{fill:none;stroke-width:2.2;stroke-linejoin:round}.k{fill:var(--bg);stroke:var(--known);stroke-width:1.8}.kl{stroke:var(--known);stroke-dasharray:3 3}\
.target{stroke:var(--dim);stroke-dasharray:6 4}.kt{fill:var(--ink)}";

/// A logarithmic axis of time.
struct LogAxis {
    first: f64,
    decades: f64,
}

impl LogAxis {
    fn of(panels: &[RecoveryPanel]) -> Self {
        let points = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
        let known = panels.iter().flat_map(|panel| &panel.known).map(|known| known.seconds);
        let last = points().map(|point| point.0).chain(known).fold(3_600.0, f64::max) * 1.15;
        let first = points().map(|point| point.0).fold(3_600.0, f64::min).max(60.0) * 0.8;
        Self { first, decades: (last / first).log10() }
    }

    fn x(&self, seconds: f64) -> f64 {
        let share = (seconds.max(self.first) / self.first).log10() / self.decades;
        round(LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT))
    }

    fn marks(&self) -> impl Iterator<Item = (f64, &'static str)> {
        let last = self.first * 10f64.powf(self.decades);
        MARKS.into_iter().filter(move |(seconds, _)| (self.first..=last).contains(seconds))
    }
}

/// The picture as an SVG file. `target_seconds`: by when a site should be back.
pub fn recovery_svg(title: &str, panels: &[RecoveryPanel], target_seconds: f64) -> String {
    let axis = LogAxis::of(panels);
    let height = HEADER + panels.len() as f64 * (PANEL + GAP) - GAP + 44.0;
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-labelledby="title" {
            title id="title" { (title) }
            style { (PreEscaped(STYLE)) }
            text.h x="16" y="28" { (title) }
            @if let Some(panel) = panels.first() { (legend(&panel.curves)) }
            @for (nth, panel) in panels.iter().enumerate() {
                (panel_of(panel, &axis, HEADER + nth as f64 * (PANEL + GAP), target_seconds))
            }
        }
    };
    picture.into_string()
}

fn legend(curves: &[RecoveryCurve]) -> Markup {
    let column = (WIDTH - 32.0) / 5.0;
    html! {
        @for (nth, curve) in curves.iter().enumerate() {
            @let x = 16.0 + nth as f64 * column;
            line.c style={ "stroke:var(--c" (nth) ")" } x1=(x) x2=(x + 18.0) y1="50" y2="50" {}
            @for (line, words) in halves(&curve.name).into_iter().enumerate() {
                text x=(x + 24.0) y=(54.0 + line as f64 * 14.0) { (words) }
            }
        }
        @let x = 16.0 + 4.0 * column;
        circle.k cx=(x + 9.0) cy="50" r="4" {}
        text x=(x + 24.0) y="54" { "the real course" }
    }
}

/// A name at its comma.
fn halves(name: &str) -> Vec<&str> {
    match name.split_once(", ") {
        Some((first, second)) => vec![first, second],
        None => vec![name],
    }
}

fn panel_of(panel: &RecoveryPanel, axis: &LogAxis, top: f64, target_seconds: f64) -> Markup {
    let bottom = top + PANEL;
    let y = |share: f64| round(bottom - share.clamp(0.0, 1.0) * PANEL);
    let target = axis.x(target_seconds);
    html! {
        text.t x=(LEFT) y=(top - 8.0) { (panel.title) }
        @for (seconds, label) in axis.marks() {
            line.g x1=(axis.x(seconds)) x2=(axis.x(seconds)) y1=(top) y2=(bottom) {}
            text x=(axis.x(seconds)) y=(bottom + 17.0) text-anchor="middle" { (label) }
        }
        @for quarter in 0..=4 {
            @let share = f64::from(quarter) / 4.0;
            line.g x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y(share)) y2=(y(share)) {}
            text x=(LEFT - 8.0) y=(y(share) + 4.0) text-anchor="end" { (quarter * 25) " %" }
        }
        line.target x1=(target) x2=(target) y1=(top) y2=(bottom) {}
        text x=(target) y=(bottom + 32.0) text-anchor="middle" { "target" }
        @for (nth, curve) in panel.curves.iter().enumerate() {
            path.c style={ "stroke:var(--c" (nth) ")" } d=(path(curve, axis, y)) {}
        }
        @for known in &panel.known {
            (known_point(known, axis, (top, bottom), y))
        }
    }
}

fn known_point(
    known: &KnownPoint,
    axis: &LogAxis,
    (top, bottom): (f64, f64),
    y: impl Fn(f64) -> f64,
) -> Markup {
    let x = axis.x(known.seconds);
    html! {
        @match known.share {
            Some(share) => {
                circle.k cx=(x) cy=(y(share)) r="4" { title { (known.label) } }
            }
            None => {
                line.kl x1=(x) x2=(x) y1=(top) y2=(bottom) {}
            }
        }
        @if !known.label.is_empty() {
            @let place = known.share.map_or(bottom - 8.0, |share| y(share) - 9.0);
            text.kt x=(x - 6.0) y=(place) text-anchor="end" { (known.label) }
        }
    }
}

/// Steps: a site is back or it is not. Points at one place are drawn once.
fn path(curve: &RecoveryCurve, axis: &LogAxis, y: impl Fn(f64) -> f64) -> String {
    let mut path = format!("M{LEFT} {}", y(0.0));
    let mut points = curve.points.iter().peekable();
    while let Some(&(seconds, share)) = points.next() {
        let x = axis.x(seconds);
        if points.peek().is_some_and(|next| axis.x(next.0) == x) {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = write!(path, " H{x} V{}", y(share));
    }
    path
}
