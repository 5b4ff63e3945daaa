//! The axis of days that the charts of drills share.

use maud::{Markup, html};
use muster_types::Timestamp;

use super::axis::round;

const DAY_SECONDS: f64 = 86_400.0;

/// Distances between marks that read well, in days.
const STEPS: [f64; 12] = [0.25, 1.0, 2.0, 5.0, 7.0, 14.0, 30.0, 61.0, 91.0, 182.0, 365.0, 1_826.0];

/// Maps moments to horizontal places, over days to years.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dates {
    from: Timestamp,
    seconds: f64,
    left: f64,
    width: f64,
}

impl Dates {
    pub(super) fn new((from, until): (Timestamp, Timestamp), left: f64, width: f64) -> Self {
        // An hour: a single drill has a place, too.
        Self { from, seconds: until.seconds_since(from).max(3_600.0), left, width }
    }

    /// The share of the stretch that has passed at a moment, 0 to 1.
    pub(super) fn share(&self, at: Timestamp) -> f64 {
        (at.seconds_since(self.from) / self.seconds).clamp(0.0, 1.0)
    }

    pub(super) fn x(&self, at: Timestamp) -> f64 {
        self.left + self.share(at) * self.width
    }

    /// Lines from `top` to `bottom` with dates below, about `most` of them.
    pub(super) fn marks(&self, (top, bottom): (f64, f64), most: f64) -> Markup {
        let days = self.seconds / DAY_SECONDS;
        let step = STEPS.into_iter().find(|step| days / step <= most).unwrap_or(days / most);
        let step_micros = (step * DAY_SECONDS * 1e6) as i64;
        // Marks stand at midnights.
        let first = self.from.as_micros().div_euclid(step_micros) + 1;
        let count = (days / step) as i64;
        let marks = (first..=first + count).map(|number| Timestamp::from_micros(number * step_micros));
        html! {
            @for at in marks.filter(|at| at.seconds_since(self.from) <= self.seconds) {
                @let x = round(self.x(at));
                line.grid x1=(x) x2=(x) y1=(top) y2=(bottom) {}
                text x=(x) y=(bottom + 16.0) text-anchor="middle" { (label(at, step)) }
            }
        }
    }
}

fn label(at: Timestamp, step: f64) -> String {
    let text = at.to_string();
    let part = match step {
        s if s < 1.0 => text.get(5..16).map(|part| part.replace('T', " ")),
        s if s < 91.0 => text.get(5..10).map(str::to_owned),
        _ => text.get(..7).map(str::to_owned),
    };
    part.unwrap_or(text)
}
