//! The scenario file.

use std::collections::BTreeSet;

use muster_types::{Kind, Timestamp};
use serde::{Deserialize, Serialize};

/// Most sites of a scenario: beyond it, a virtual run of all their steps takes minutes.
pub const SITES_MAX: u64 = 200_000;

/// A scenario that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// No scenario at all.
    #[error("it is not a scenario: {0}")]
    Malformed(String),
    /// A figure that makes no sense.
    #[error("`{key}` is {value}: {wanted}")]
    Figure {
        /// Where it stands.
        key: String,
        /// What stands there.
        value: String,
        /// What may.
        wanted: String,
    },
}

/// See `config/atlassian-2022.toml`, which explains each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the scenario file that is shipped explains each key")]
pub struct Scenario {
    pub format: u32,
    pub title: String,
    pub seed: u64,
    pub incident: Incident,
    pub sizes: Sizes,
    pub stores: Vec<Store>,
    pub by_hand: ByHand,
    pub batches: Batches,
    pub muster: Muster,
    #[serde(default)]
    pub known: Vec<Known>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Incident {
    pub sites: u64,
    pub deletion_began_at: Timestamp,
    pub deletion_ended_at: Timestamp,
    pub declared_at: Timestamp,
    pub rto_seconds: u64,
}

/// How sites differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Sizes {
    pub tail: f64,
    pub rows_min: u64,
    pub rows_max: u64,
    pub users_min: u64,
}

/// A kind of store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Store {
    pub kind: Kind,
    pub rows_share: f64,
    pub sites_share: f64,
    pub shards: u64,
    #[serde(default)]
    pub after: Vec<Kind>,
}

/// Both ways by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct ByHand {
    pub first: Way,
    pub second: Way,
}

/// One way by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Way {
    pub steps: u64,
    pub batch_hours: f64,
    pub batch_sites: u64,
    pub fixed_share: f64,
    pub begins_at: Timestamp,
    pub crews: u64,
}

/// How the sites were parted between both ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Batches {
    pub first_way_sites: u64,
}

/// Muster's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Muster {
    pub begins_after_seconds: u64,
    pub stage_slots: u64,
    pub publish_slots: u64,
    pub stage_slots_all: u64,
    pub step_milliseconds: u64,
    pub stage_rows_per_second: u64,
    pub verify_rows_per_second: u64,
    pub publish_rows_per_second: u64,
    pub check_rows_per_second: u64,
    pub validation: People,
    pub recreated_ids: RecreatedIds,
}

/// Work of people on each site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct People {
    pub people: u64,
    pub minutes_each: f64,
}

/// What re-created identifiers cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct RecreatedIds {
    pub rows_factor: f64,
    pub steps_by_hand: u64,
    pub minutes_each: f64,
    pub people: u64,
}

/// A known point of the real course.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Scenario")]
pub struct Known {
    pub at: Timestamp,
    #[serde(default)]
    pub users_share: Option<f64>,
    #[serde(default)]
    pub label: Option<String>,
}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] naming the key.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::Malformed(error.to_string()))?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        if self.format != 1 {
            return Err(wrong("format", self.format, "this version of muster reads format 1"));
        }
        self.check_incident()?;
        self.check_sizes()?;
        self.check_stores()?;
        check_way("by_hand.first", &self.by_hand.first)?;
        check_way("by_hand.second", &self.by_hand.second)?;
        if self.batches.first_way_sites > self.incident.sites {
            let wanted = "it must not be above incident.sites";
            return Err(wrong("batches.first_way_sites", self.batches.first_way_sites, wanted));
        }
        self.check_muster()?;
        for known in &self.known {
            if let Some(share) = known.users_share {
                is_share("known.users_share", share)?;
            }
        }
        Ok(())
    }

    fn check_incident(&self) -> Result<(), ScenarioError> {
        let incident = &self.incident;
        if incident.sites == 0 || incident.sites > SITES_MAX {
            let wanted = format!("it must be from 1 to {SITES_MAX}");
            return Err(wrong("incident.sites", incident.sites, &wanted));
        }
        if incident.deletion_ended_at < incident.deletion_began_at {
            let wanted = "it must not be before incident.deletion_began_at";
            return Err(wrong("incident.deletion_ended_at", incident.deletion_ended_at, wanted));
        }
        if incident.declared_at < incident.deletion_began_at {
            let wanted = "it must not be before incident.deletion_began_at";
            return Err(wrong("incident.declared_at", incident.declared_at, wanted));
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ScenarioError> {
        let sizes = &self.sizes;
        if !(sizes.tail.is_finite() && sizes.tail > 0.0) {
            return Err(wrong("sizes.tail", sizes.tail, "it must be above 0"));
        }
        at_least_one("sizes.rows_min", sizes.rows_min)?;
        if sizes.rows_max < sizes.rows_min {
            return Err(wrong("sizes.rows_max", sizes.rows_max, "it must not be below sizes.rows_min"));
        }
        at_least_one("sizes.users_min", sizes.users_min)
    }

    fn check_stores(&self) -> Result<(), ScenarioError> {
        let mut known: BTreeSet<&Kind> = BTreeSet::new();
        for store in &self.stores {
            let key = |name: &str| format!("stores.{name} of {}", store.kind);
            is_share(&key("rows_share"), store.rows_share)?;
            is_share(&key("sites_share"), store.sites_share)?;
            at_least_one(&key("shards"), store.shards)?;
            if let Some(unknown) = store.after.iter().find(|after| !known.contains(after)) {
                return Err(wrong(&key("after"), unknown, "it must be a kind that stands before this one"));
            }
            if !known.insert(&store.kind) {
                return Err(wrong("stores.kind", &store.kind, "it stands there twice"));
            }
        }
        let rows: f64 = self.stores.iter().map(|store| store.rows_share).sum();
        if (rows - 1.0).abs() > 1e-6 {
            return Err(wrong(
                "stores.rows_share",
                format!("{rows:.4} in all"),
                "the shares must add up to 1",
            ));
        }
        if !self.stores.iter().any(|store| store.sites_share == 1.0) {
            return Err(wrong(
                "stores",
                self.stores.len(),
                "one kind must be of every site: sites_share = 1.0",
            ));
        }
        Ok(())
    }

    fn check_muster(&self) -> Result<(), ScenarioError> {
        let muster = &self.muster;
        let figures = [
            ("stage_slots", muster.stage_slots),
            ("publish_slots", muster.publish_slots),
            ("stage_slots_all", muster.stage_slots_all),
            ("stage_rows_per_second", muster.stage_rows_per_second),
            ("verify_rows_per_second", muster.verify_rows_per_second),
            ("publish_rows_per_second", muster.publish_rows_per_second),
            ("check_rows_per_second", muster.check_rows_per_second),
            ("validation.people", muster.validation.people),
            ("recreated_ids.people", muster.recreated_ids.people),
        ];
        for (key, value) in figures {
            at_least_one(&format!("muster.{key}"), value)?;
        }
        is_duration("muster.validation.minutes_each", muster.validation.minutes_each)?;
        is_duration("muster.recreated_ids.minutes_each", muster.recreated_ids.minutes_each)?;
        let factor = muster.recreated_ids.rows_factor;
        if !(factor.is_finite() && factor >= 1.0) {
            return Err(wrong("muster.recreated_ids.rows_factor", factor, "it must be 1 or more"));
        }
        Ok(())
    }
}

fn check_way(name: &str, way: &Way) -> Result<(), ScenarioError> {
    let key = |key: &str| format!("{name}.{key}");
    at_least_one(&key("steps"), way.steps)?;
    at_least_one(&key("batch_sites"), way.batch_sites)?;
    at_least_one(&key("crews"), way.crews)?;
    is_duration(&key("batch_hours"), way.batch_hours)?;
    is_share(&key("fixed_share"), way.fixed_share)
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over figures")]
fn wrong(key: &str, value: impl ToString, wanted: &str) -> ScenarioError {
    ScenarioError::Figure { key: key.to_owned(), value: value.to_string(), wanted: wanted.to_owned() }
}

fn at_least_one(key: &str, value: u64) -> Result<(), ScenarioError> {
    if value == 0 { Err(wrong(key, value, "it must be 1 or more")) } else { Ok(()) }
}

fn is_share(key: &str, value: f64) -> Result<(), ScenarioError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(wrong(key, value, "it must be from 0 to 1")) }
}

/// A year is more than anything here takes.
fn is_duration(key: &str, value: f64) -> Result<(), ScenarioError> {
    const MOST: f64 = 1_000_000.0;
    let fits = (0.0..=MOST).contains(&value);
    if fits {
        Ok(())
    } else {
        Err(wrong(key, value, "it must be from 0 to 1,000,000: a duration is not negative"))
    }
}
