//! Incidents: when it was declared, the sites with their own target times, why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, Kind, ShardName, SiteId};
use crate::position::Position;
use crate::time::Timestamp;

/// The incident file that `detect` writes, people edit and `plan` takes (TOML).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// Format version.
    pub format: u32,
    /// In words.
    pub title: String,
    /// When it was declared; recovery times count from here.
    pub declared_at: Timestamp,
    /// Where the list of ids came from, e.g. `detect 07:30..08:10` or a file's name and digest.
    pub id_source: String,
    /// The sites.
    pub sites: Vec<IncidentSite>,
}

/// One site to bring back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncidentSite {
    /// The site.
    pub site: SiteId,
    /// The moment to return to: each store's last recovery point at or before it.
    pub target: Timestamp,
    /// When the site stopped working; its own recovery time counts from here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outage_at: Option<Timestamp>,
    /// Stores whose target is a position instead: the state before it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub before: BTreeMap<Kind, BeforePosition>,
    /// What was seen, in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// "Before position P of this history".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeforePosition {
    /// The shard.
    pub shard: ShardName,
    /// Its history.
    pub incarnation: Incarnation,
    /// The first change that is not wanted.
    pub position: Position,
}
