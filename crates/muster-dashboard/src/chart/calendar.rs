//! When drills ran, a row a class, and how they ended.

use maud::{Markup, html};
use muster_types::drill::{DrillClass, Verdict};
use muster_types::drill_history::{DrillHistory, PastDrill};

use super::axis::round;
use super::dates::Dates;
use crate::figures;

const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 6.0;
const ROW: f64 = 26.0;

/// Columns that a person can still tell apart: drills of one column are one mark, of the colour of the worst.
const COLUMNS: usize = 196;

/// What the drills of one class in one column came to.
#[derive(Clone, Copy, Default)]
struct Cell {
    drills: u64,
    failed: u64,
    stopped: u64,
}

impl Cell {
    fn add(&mut self, drill: &PastDrill) {
        self.drills += 1;
        self.failed += u64::from(drill.verdict == Verdict::Failed);
        self.stopped += u64::from(drill.verdict == Verdict::Stopped);
    }

    fn tone(&self) -> &'static str {
        match self {
            Self { failed: 1.., .. } => "failed",
            // Something passed beside what was stopped.
            Self { stopped, drills, .. } if stopped < drills => "passed",
            _ => "stopped",
        }
    }

    fn says(&self) -> String {
        let drills = figures::plural(self.drills, "drill");
        match (self.failed, self.stopped) {
            (0, 0) => format!("{drills}, passed"),
            (failed, stopped) => format!("{drills}: {failed} failed, {stopped} stopped"),
        }
    }
}

/// The section with the rows.
pub(crate) fn calendar(history: &DrillHistory) -> Markup {
    let dates = Dates::new(crate::drills::stretch(history), LEFT, WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * DrillClass::ALL.len() as f64;
    let column = (WIDTH - LEFT - RIGHT) / COLUMNS as f64;
    html! {
        section #calendar {
            h2 { "Drills" }
            p.legend {
                @for tone in ["passed", "failed", "stopped"] { span class={ "key " (tone) } {} (tone) " " }
                span.dim { " · a mark is all drills of its place, in the colour of the worst" }
            }
            div.scroll {
                svg viewBox={ "0 0 " (WIDTH) " " (bottom + 26.0) } role="img" aria-labelledby="calendar-title calendar-desc" {
                    title #calendar-title { "When drills of each class ran" }
                    desc #calendar-desc { "One row a class; the table of classes has the last of each." }
                    (dates.marks((TOP, bottom), 10.0))
                    @for (number, class) in (0u32..).zip(DrillClass::ALL) {
                        @let y = TOP + ROW * f64::from(number);
                        text x=(LEFT - 8.0) y=(y + 17.0) text-anchor="end" { (class.name()) }
                        line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y + ROW) y2=(y + ROW) {}
                        @for (index, cell) in cells(history, class, &dates) {
                            rect class=(cell.tone()) x=(round(LEFT + index as f64 * column)) y=(y + 5.0)
                                width=(round(column - 0.8)) height=(ROW - 9.0) rx="1" { title { (cell.says()) } }
                        }
                    }
                }
            }
        }
    }
}

fn cells(history: &DrillHistory, class: DrillClass, dates: &Dates) -> Vec<(usize, Cell)> {
    let mut cells = [Cell::default(); COLUMNS];
    for drill in history.drills.iter().filter(|drill| drill.class == class) {
        let index = (dates.share(drill.began_at) * COLUMNS as f64) as usize;
        cells[index.min(COLUMNS - 1)].add(drill);
    }
    cells.into_iter().enumerate().filter(|(_, cell)| cell.drills > 0).collect()
}
