//! Rounds, medians, tables.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

/// Ticks per second of the times in `/proc/PID/stat`; Linux has fixed it for programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// One timed piece of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// On the clock.
    pub(crate) wall: Duration,
    /// Processor time of the whole process, embedded server included.
    pub(crate) cpu_seconds: f64,
}

/// Measures until [`Self::lap`].
pub(crate) struct Stopwatch {
    began: Instant,
    cpu_seconds: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { cpu_seconds: own_cpu_seconds()?, began: Instant::now() })
    }

    pub(crate) fn lap(&self) -> Result<Lap> {
        let wall = self.began.elapsed();
        Ok(Lap { wall, cpu_seconds: own_cpu_seconds()? - self.cpu_seconds })
    }
}

fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds(std::process::id())
}

/// Processor time of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let stat = stat.with_context(|| format!("failed to read the processor time of process {pid}"))?;
    // The command's name, in parentheses, may hold blanks; user and system time are the 12th and 13th field after it.
    let after = stat.rsplit_once(')').context("no name in a process's stat")?.1;
    let ticks: Vec<u64> =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
}

/// The most resident memory that the process has had, in MiB.
pub(crate) fn peak_mebibytes() -> Result<u64> {
    Ok(status_kibibytes("VmHWM:")? / 1024)
}

/// The resident memory of the process now, in bytes.
pub(crate) fn resident_bytes() -> Result<u64> {
    Ok(status_kibibytes("VmRSS:")? * 1024)
}

fn status_kibibytes(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name} in /proc/self/status"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()?)
}

/// Figures of one side, a round each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[odd / 2],
            even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
        }
    }

    /// These to those, round by round: what slowed a round slowed both.
    pub(crate) fn to(&self, those: &Self) -> Self {
        Self(self.0.iter().zip(&those.0).map(|(this, that)| this / that).collect())
    }

    /// Another figure of each round.
    pub(crate) fn map(&self, figure: impl Fn(f64) -> f64) -> Self {
        Self(self.0.iter().map(|&x| figure(x)).collect())
    }

    /// `median (min–max)`.
    pub(crate) fn show(&self, figure: impl Fn(f64) -> String) -> String {
        let (low, high) =
            self.0.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        format!("{} ({}–{})", figure(self.median()), figure(low), figure(high))
    }
}

/// `0.53`.
pub(crate) fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// `12.3 s`.
pub(crate) fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

/// `123,456`.
pub(crate) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A table whose figures are aligned to the right.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
