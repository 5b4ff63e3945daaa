//! The time axis that both charts share.

use maud::{Markup, html};
use muster_types::Timestamp;
use muster_types::report::Report;

/// Distances between marks that read well, in seconds.
pub(super) const STEPS: [f64; 22] = [
    0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0,
    7_200.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0,
];
/// Marks wanted at most.
const MARKS_MOST: f64 = 10.0;

/// Maps times of a run to horizontal places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    start: Timestamp,
    seconds: f64,
    left: f64,
    width: f64,
}

impl Axis {
    /// From the run's opening to its last record.
    pub(super) fn new(report: &Report, left: f64, width: f64) -> Self {
        let seconds = report.last_at.seconds_since(report.opened_at).max(0.001);
        Self { start: report.opened_at, seconds, left, width }
    }

    /// The place of a time; what lies outside is put on the edge.
    pub(super) fn x(&self, time: Timestamp) -> f64 {
        self.place(time.seconds_since(self.start))
    }

    fn place(&self, seconds: f64) -> f64 {
        self.left + (seconds / self.seconds).clamp(0.0, 1.0) * self.width
    }

    /// Lines from `top` to `bottom` with labels below.
    pub(super) fn marks(&self, top: f64, bottom: f64) -> Markup {
        let step = STEPS.into_iter().find(|step| self.seconds / step <= MARKS_MOST).unwrap_or(self.seconds);
        let count = (self.seconds / step).floor() as usize;
        html! {
            @for index in 0..=count {
                @let seconds = index as f64 * step;
                @let x = round(self.place(seconds));
                line.grid x1=(x) x2=(x) y1=(top) y2=(bottom) {}
                text x=(x) y=(bottom + 16.0) text-anchor="middle" { (label(seconds)) }
            }
        }
    }
}

/// A mark's text.
pub(super) fn label(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{} s", round(s)),
        s if s < 7_200.0 => format!("{} min", round(s / 60.0)),
        s if s < 172_800.0 => format!("{} h", round(s / 3_600.0)),
        s => format!("{} d", round(s / 86_400.0)),
    }
}

/// To a tenth: enough for a place on the screen.
pub(super) fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
