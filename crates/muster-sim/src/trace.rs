//! The event log of a run. Its digest tells whether two runs were the same.

use std::fmt::Write;

/// Lines kept for the report of a failure: the last ones are what led to it.
const LINES_KEPT: usize = 40;

/// What happened, in order.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    events: u64,
    whole: bool,
    lines: std::collections::VecDeque<String>,
}

impl Trace {
    /// An empty log; `whole` keeps every line, otherwise only the last ones.
    pub fn new(whole: bool) -> Self {
        Self { hasher: blake3::Hasher::new(), events: 0, whole, lines: std::collections::VecDeque::new() }
    }

    /// One more line; `at` in microseconds of virtual time.
    pub fn add(&mut self, at_micros: u64, who: &str, what: &str) {
        let mut line = String::with_capacity(what.len() + 32);
        // Writing to a string cannot fail.
        let _ = write!(line, "{:>12}.{:06} {who}: {what}", at_micros / 1_000_000, at_micros % 1_000_000);
        self.hasher.update(line.as_bytes());
        self.events += 1;
        if !self.whole && self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The digest of all lines.
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// The lines kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
