//! What the repository promises to keep, and what is on its way out of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Incarnation, PlanId, ShardName, SiteId};
use crate::time::Timestamp;

/// Microseconds of a second.
const SECOND_MICROS: i64 = 1_000_000;
/// Hours of a day, whatever its length.
const DAY_HOURS: u64 = 24;

/// Any moment of the last days, then a snapshot a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Any moment so many days back can be restored.
    pub every_moment_days: u64,
    /// Of each day so many days back, the first snapshot can be restored, at its own position.
    pub daily_days: u64,
    /// Objects are removed so many hours after they were condemned, at the earliest: longer than anyone works with a
    /// catalog, a snapshot or a compaction under way.
    pub grace_hours: u64,
    /// What counts as a day; hours are a twenty-fourth of it. Shorter ones let months of upkeep be rehearsed in minutes.
    pub day_seconds: u64,
}

impl Retention {
    /// The length of a real day.
    pub const DAY_SECONDS: u64 = 86_400;

    /// The first moment of which every later one is promised.
    pub fn every_moment_since(&self, now: Timestamp) -> Timestamp {
        self.back(now, self.every_moment_days.saturating_mul(DAY_HOURS))
    }

    /// Daily snapshots from here on are promised.
    pub fn daily_since(&self, now: Timestamp) -> Timestamp {
        self.back(now, self.daily_days.saturating_mul(DAY_HOURS))
    }

    /// What was condemned by then may be removed.
    pub fn condemned_by(&self, now: Timestamp) -> Timestamp {
        self.back(now, self.grace_hours)
    }

    /// The number of the day (UTC) that a time lies in.
    pub fn day(&self, at: Timestamp) -> i64 {
        at.as_micros().div_euclid(micros(self.day_seconds).max(SECOND_MICROS))
    }

    fn back(&self, now: Timestamp, hours: u64) -> Timestamp {
        now.plus_micros(micros(hours.saturating_mul(self.day_seconds) / DAY_HOURS).saturating_neg())
    }
}

fn micros(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND_MICROS)
}

/// An operator's word that something stays, whatever the retention says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Format version.
    pub format: u32,
    /// Its name.
    pub name: String,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// Why, for those who ask.
    pub reason: String,
    /// The shard; every one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardName>,
    /// The site: shards that hold nothing of it are left out. Shards keep what they hold of all sites together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteId>,
    /// The first moment; everything before is held, too, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The last moment; everything behind is held, too, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

/// A saved plan's word that its objects stay until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanHold {
    /// Format version.
    pub format: u32,
    /// The plan.
    pub plan: PlanId,
    /// What it answers, in words.
    pub title: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it holds.
    pub expires_at: Timestamp,
    /// The sites that it restores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<BTreeSet<SiteId>>,
    /// Digest of the topology that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Digest>,
    /// Keys of the objects.
    pub objects: Vec<String>,
}

/// Objects that nothing needs, to be removed after a grace unless something needs them by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Format version.
    pub format: u32,
    /// Its name.
    pub name: String,
    /// When.
    pub condemned_at: Timestamp,
    /// Logs whose older part is among them: nothing before the first segment named here counts as missing.
    pub floors: Vec<Floor>,
    /// Keys.
    pub objects: Vec<String>,
}

/// Where the rest of a log begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The shard.
    pub shard: ShardName,
    /// The history.
    pub incarnation: Incarnation,
    /// The first segment that stays.
    pub first: u64,
}

/// The note that a list's objects are being removed, or were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// Format version.
    pub format: u32,
    /// When it was begun.
    pub begun_at: Timestamp,
}
