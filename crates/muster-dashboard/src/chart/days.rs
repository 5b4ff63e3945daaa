//! Of which days moments were proven.

use maud::{Markup, html};
use muster_types::drill_history::DayProven;

use super::axis::round;
use super::dates::Dates;
use crate::figures;

const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 96.0;

/// Bars that a person can still tell apart.
const BARS_MOST: usize = 370;

const DAY_MICROS: i64 = 86_400_000_000;

/// The section with a bar a day.
pub(crate) fn days(days: &[DayProven]) -> Markup {
    let (Some(first), Some(last)) = (days.first(), days.last()) else { return html! {} };
    let dates = Dates::new((first.from, last.from.plus_micros(DAY_MICROS)), LEFT, WIDTH - LEFT - RIGHT);
    let together = days.len().div_ceil(BARS_MOST);
    let bars: Vec<&[DayProven]> = days.chunks(together).collect();
    let moments = |bar: &[DayProven]| bar.iter().map(|day| day.moments).sum::<u64>();
    let most = bars.iter().map(|bar| moments(bar)).max().unwrap_or(0).max(1);
    let width = (WIDTH - LEFT - RIGHT) / bars.len() as f64;
    let none = days.iter().filter(|day| day.moments == 0).count();
    html! {
        section #days {
            h2 { "Moments" }
            p.dim {
                "Moments to which sites were proven, by the day that they lie in. "
                @if none > 0 { "Of " b.fair { (figures::plural(none as u64, "day")) } " none was: a red line below. " }
                @if together > 1 { "A bar is " (figures::plural(together as u64, "day")) "." }
            }
            div.scroll {
                svg viewBox={ "0 0 " (WIDTH) " " (BOTTOM + 28.0) } role="img" aria-labelledby="days-title" {
                    title #days-title { "Proven moments by day" }
                    (dates.marks((TOP, BOTTOM), 10.0))
                    text x=(LEFT - 8.0) y=(TOP + 8.0) text-anchor="end" { (figures::count(most)) }
                    text x=(LEFT - 8.0) y=(BOTTOM + 2.0) text-anchor="end" { "0" }
                    @for (index, bar) in bars.iter().enumerate() {
                        @let (x, count) = (LEFT + index as f64 * width, moments(bar));
                        @let height = (count as f64 / most as f64 * (BOTTOM - TOP)).max(2.0);
                        @if count == 0 {
                            rect.failed x=(round(x)) y=(BOTTOM) width=(round((width - 1.0).max(0.6))) height="3" {
                                title { (day(bar)) ": none" }
                            }
                        } @else {
                            rect.passed x=(round(x)) y=(round(BOTTOM - height)) width=(round((width - 1.0).max(0.6)))
                                height=(round(height)) { title { (day(bar)) ": " (figures::plural(count, "moment")) } }
                        }
                    }
                }
            }
        }
    }
}

fn day(bar: &[DayProven]) -> String {
    bar.first().map(|day| day.from.to_string().chars().take(10).collect()).unwrap_or_default()
}
