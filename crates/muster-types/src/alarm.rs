//! Alarms: what is wrong, when it was raised and cleared, and what a webhook is told.
//!
//! Edges lie in a chain of create-if-absent records, in which the servers of a repository agree on each: who wins a slot
//! tells it to the webhooks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlarmName {
    /// More sites are lost than the topology allows.
    SitesLost,
    /// A stretch of a shard's history is missing.
    CaptureGap,
    /// The last recovery point of a shard is older than the topology allows.
    CaptureLag,
    /// Sites of a run failed.
    SiteFailed,
    /// The last drill of a name failed.
    DrillFailed,
    /// The last drill of a name took longer than those before it, by more than the topology allows.
    DrillSlower,
    /// `repo check` found objects that are damaged or missing.
    DamageFound,
    /// A job did not come to its end in time.
    JobOverdue,
}

impl AlarmName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SitesLost,
        Self::CaptureGap,
        Self::CaptureLag,
        Self::SiteFailed,
        Self::DrillFailed,
        Self::DrillSlower,
        Self::DamageFound,
        Self::JobOverdue,
    ];

    /// As topologies, metrics and payloads write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SitesLost => "sites-lost",
            Self::CaptureGap => "capture-gap",
            Self::CaptureLag => "capture-lag",
            Self::SiteFailed => "site-failed",
            Self::DrillFailed => "drill-failed",
            Self::DrillSlower => "drill-slower",
            Self::DamageFound => "damage-found",
            Self::JobOverdue => "job-overdue",
        }
    }
}

impl fmt::Display for AlarmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AlarmName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no alarm"))
    }
}

/// Something that is wrong, for as long as it is. There is one of a name and subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What sort.
    pub name: AlarmName,
    /// Of what: a shard, a run, a drill, a job, or the fleet.
    pub subject: String,
    /// Since when, as far as is known.
    pub since: Timestamp,
    /// In words.
    pub text: String,
    /// What to do about it.
    pub way_out: String,
}

impl Condition {
    /// What tells it from others.
    pub fn key(&self) -> (AlarmName, &str) {
        (self.name, &self.subject)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}; {}", self.name, self.subject, self.text, self.way_out)
    }
}

/// Which way an alarm went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was not there before.
    Raised,
    /// It is not there any more.
    Cleared,
}

impl Change {
    /// As payloads and metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
        }
    }
}

/// One alarm that went one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Which way.
    pub change: Change,
    /// Which; of one that was cleared, as it was when it was raised.
    pub alarm: Condition,
}

/// One record of the chain of alarms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmRecord {
    /// Format version.
    pub format: u32,
    /// Number in the chain, from 1.
    pub sequence: u64,
    /// The server that wrote it, which tells the webhooks.
    pub server: String,
    /// When, by that server's clock.
    pub at: Timestamp,
    /// What changed.
    pub edges: Vec<Edge>,
    /// What stands from here on: the last record says everything that the next one needs.
    pub standing: Vec<Condition>,
}

/// The body that a webhook is sent, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmPayload {
    /// Format version.
    pub format: u32,
    /// Of this edge, and no other of any server: `REPOSITORY-SEQUENCE-NUMBER`.
    pub id: String,
    /// The repository's id.
    pub repository: String,
    /// The fleet's name in the topology.
    pub fleet: String,
    /// When it was raised or cleared.
    pub at: Timestamp,
    /// The server that tells it.
    pub server: String,
    /// Which way.
    pub change: Change,
    /// What is wrong, or was.
    pub alarm: Condition,
}
