//! What a plan was asked for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{SiteId, StoreId};
use crate::incident::Incident;

/// How much of the neighbours is proven untouched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofLevel {
    /// Every row change that carries the run's marks is read back and compared with what was staged.
    #[default]
    Marked,
    /// Also: each touched shard's other rows are digested before and after, and the difference explained by the log.
    Full,
}

/// The request: an incident and the operator's choices. Part of the plan, so that the plan says what it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRequest {
    /// Sites and targets.
    pub incident: Incident,
    /// Proof of the neighbours.
    pub proof: ProofLevel,
    /// Sites whose live rows may be replaced.
    pub overwrite: BTreeSet<SiteId>,
    /// Stores whose publish may block writers longer than the shard's bound.
    pub accept_block: BTreeSet<StoreId>,
    /// Gaps that the operator accepts, by shard and reason text as the note printed it.
    pub accept_gap: BTreeSet<String>,
}
