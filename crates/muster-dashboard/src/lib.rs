//! Pages over reports and the history of drills.
//!
//! [`report_page`] turns a [`Report`] into one self-contained HTML file, [`drill_page`] a [`DrillHistory`]: no external
//! assets, readable on paper, in light and dark, with and without scripts. [`recovery_svg`] draws several ways to bring sites
//! back beside each other.
//!
//! # Invariants
//! - Every text of the report is escaped; nothing of it becomes markup, script or address.
//! - Every site of a report is on its page; where a chart shows fewer, it says so.
//! - What failed comes first.
//!
//! # Not here
//! Assembling the report (`muster-engine`) and its other forms (`muster-cli`).

mod chart;
mod document;
mod drills;
mod figures;
mod page;
mod proof;
mod sites;
mod summary;

pub use chart::{KnownPoint, RecoveryCurve, RecoveryPanel, recovery_svg};
use muster_types::drill_history::DrillHistory;
use muster_types::report::Report;

/// The page of a report.
pub fn report_page(report: &Report) -> String {
    page::page(report).into_string()
}

/// The page of a history of drills.
pub fn drill_page(history: &DrillHistory) -> String {
    drills::page(history).into_string()
}
