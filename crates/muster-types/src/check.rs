//! How far the check of a repository has come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Where a check ended, for the next one to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckProgress {
    /// Format version.
    pub format: u32,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The last key that was looked at; none at the end of a round.
    pub reached: Option<String>,
    /// When the round began that is under way or has just ended.
    pub round_began_at: Timestamp,
    /// Whole rounds so far.
    pub rounds: u64,
    /// What was damaged or missing when it was last looked at, by the key that was looked at; so many as are kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub damages: BTreeMap<String, String>,
}
