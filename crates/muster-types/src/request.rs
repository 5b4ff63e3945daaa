//! What a plan was asked for.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Kind, ShardName, SiteId, StoreId};
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
    /// What is planned elsewhere than where it was, or not at all.
    #[serde(default, skip_serializing_if = "Placement::is_plain")]
    pub placement: Placement,
}

/// Which stores of the sites are planned, and into which shards. By default all of them, each into the shard that holds the
/// site now, or that held it last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Stores that would go to the shard on the left go to the one on the right. The left one is not looked at: it may be
    /// gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub to_shard: BTreeMap<ShardName, ShardName>,
    /// The shards on the right are a drill's own: nothing captures them, so that checks read their rows whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
    /// A shard of another region than the site's may hold it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_region: bool,
    /// Only stores that these shards held are planned; all where there is none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub only_shards: BTreeSet<ShardName>,
    /// Only stores of these kinds are planned; all where there is none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub only_kinds: BTreeSet<Kind>,
}

impl Placement {
    /// Everything goes where it belongs.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// A store of `kind` that `shard` held is planned.
    pub fn wants(&self, shard: &ShardName, kind: &Kind) -> bool {
        (self.only_shards.is_empty() || self.only_shards.contains(shard))
            && (self.only_kinds.is_empty() || self.only_kinds.contains(kind))
    }

    /// Where a store goes that would go to `shard`.
    pub fn target<'a>(&'a self, shard: &'a ShardName) -> &'a ShardName {
        self.to_shard.get(shard).unwrap_or(shard)
    }
}
