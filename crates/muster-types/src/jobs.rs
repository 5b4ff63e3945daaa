//! Scheduled jobs: each has a chain of create-if-absent records, in which servers agree on what is run and what came of it.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Occurrences that were not run, since one before still ran or no server was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The first of them.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// How many; at least so many where it is 100,000.
    pub count: u64,
}

/// One record of a job's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Format version.
    pub format: u32,
    /// Number in the chain, from 1.
    pub sequence: u64,
    /// The server that wrote it.
    pub server: String,
    /// When, by that server's clock.
    pub at: Timestamp,
    /// Everything due up to here is settled, but for what is at work.
    pub settled: Timestamp,
    /// What was decided.
    pub decision: JobDecision,
}

/// What a record decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum JobDecision {
    /// The job is known from here on: earlier occurrences are nobody's.
    Begun,
    /// The record's server is at work on an occurrence.
    Claimed {
        /// Which.
        occurrence: Timestamp,
        /// How often it was begun, this one included.
        attempt: u32,
        /// Those before it that nobody ran.
        missed: Option<Missed>,
    },
    /// The record's server stopped before the work had come to its end: whoever comes next begins it anew.
    Released {
        /// Which.
        occurrence: Timestamp,
        /// Which attempt.
        attempt: u32,
    },
    /// The occurrence has come to its end.
    Done {
        /// Which.
        occurrence: Timestamp,
        /// Which attempt.
        attempt: u32,
        /// How.
        outcome: JobOutcome,
    },
}

/// How an occurrence ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum JobOutcome {
    /// As it should.
    Succeeded {
        /// What it says of itself.
        summary: String,
    },
    /// It did not.
    Failed {
        /// Why.
        reason: String,
    },
    /// Every server that was at work on it died.
    Lost,
}
