//! Sandboxes: places in which a drill makes shards of its own, and removes them.
//!
//! # Invariants
//! - A [`SandboxShard`] is made by [`Topology::sandbox_shard`] and by nothing else, from a `[sandbox.NAME]` section. It has a
//!   name of the drill's own, so that it can be no live shard.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{DriverConfig, KindMode, ShardConfig, Topology};
use crate::drill::{DrillLimits, Made};
use crate::ids::{DrillId, Kind, ShardName};

/// What the names of everything begin with that a drill makes.
pub const MADE_PREFIX: &str = "muster_drill_";

/// Longest part of a shard's name in that of its sandbox: databases have names of 63 bytes at most.
const NAME_BYTES_MAX: usize = 24;

/// A declared sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Where shards are made.
    pub place: SandboxPlace,
    /// Rows of sites of this region may lie there.
    pub region: String,
    /// Text of rows that one drill may put there, in bytes.
    pub bytes_max: u64,
}

/// Where shards are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxPlace {
    /// Files in this folder.
    Sqlite {
        /// The folder.
        dir: PathBuf,
    },
    /// Databases on the server of this connection, which itself is used to make and drop them and for nothing else.
    Postgres {
        /// As a shard's.
        connection: String,
    },
}

impl SandboxPlace {
    /// The driver's name in the topology.
    pub fn driver(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }
}

/// A shard that one drill makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxShard {
    of: ShardName,
    name: ShardName,
    sandbox: String,
    place: SandboxPlace,
}

impl SandboxShard {
    /// The live shard that it stands for.
    pub fn of(&self) -> &ShardName {
        &self.of
    }

    /// Its name, also that of its file or database.
    pub fn name(&self) -> &ShardName {
        &self.name
    }

    /// The declared sandbox.
    pub fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Where it is made.
    pub fn place(&self) -> &SandboxPlace {
        &self.place
    }

    /// As records name it.
    pub fn made(&self) -> Made {
        Made { sandbox: self.sandbox.clone(), name: self.name.to_string() }
    }
}

/// No sandbox for a shard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no sandbox may hold what shard `{shard}` holds; declare [sandbox.NAME] with `driver = \"{driver}\"` and \
     `region = \"{region}\"`"
)]
pub struct NoSandbox {
    /// The shard.
    pub shard: ShardName,
    /// Its driver.
    pub driver: &'static str,
    /// Its region.
    pub region: String,
}

impl Topology {
    /// The shard that the drill `id` makes for `of`, its `number`th: in the first sandbox of that driver and region.
    ///
    /// # Errors
    /// [`NoSandbox`].
    pub fn sandbox_shard(
        &self,
        id: &DrillId,
        number: usize,
        of: &ShardName,
    ) -> Result<SandboxShard, NoSandbox> {
        let config = self.shards.get(of);
        let (driver, region) =
            config.map_or(("", ""), |config| (config.driver.name(), config.region.as_str()));
        let fits = |sandbox: &SandboxConfig| sandbox.place.driver() == driver && sandbox.region == region;
        let none = || NoSandbox {
            shard: of.clone(),
            driver: config.map_or("sqlite", |config| config.driver.name()),
            region: region.to_owned(),
        };
        let (sandbox, found) = self.sandboxes.iter().find(|(_, sandbox)| fits(sandbox)).ok_or_else(none)?;
        let plain =
            |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
        let part: String = of.as_str().chars().map(plain).take(NAME_BYTES_MAX).collect();
        let name = ShardName::new(format!("{MADE_PREFIX}{id}_{number}_{part}")).map_err(|_| none())?;
        Ok(SandboxShard { of: of.clone(), name, sandbox: sandbox.clone(), place: found.place.clone() })
    }

    /// This topology as a drill's planner sees it: with the shards that it makes beside those that they stand for, within
    /// its limits, and without the kinds that commands bring back, since a command would act on the living site.
    pub fn for_drill(&self, shards: &[SandboxShard], limits: &DrillLimits) -> Self {
        let mut topology = self.clone();
        for shard in shards {
            let Some(of) = self.shards.get(&shard.of) else { continue };
            let config = ShardConfig {
                driver: driver(shard),
                stage_bytes_per_second_max: [
                    limits.stage_bytes_per_second_max,
                    of.stage_bytes_per_second_max,
                ]
                .into_iter()
                .flatten()
                .min(),
                ..of.clone()
            };
            topology.shards.insert(shard.name.clone(), config);
        }
        if let Some(slots) = limits.stage_slots {
            topology.limits.stage_slots = slots.min(topology.limits.stage_slots);
        }
        if let Some(requests) = limits.s3_requests {
            topology.limits.s3_requests = requests.min(topology.limits.s3_requests);
        }
        topology.leave_commands_out();
        topology
    }

    /// Kinds that commands bring back.
    pub fn kinds_with_commands(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.iter().filter(|(_, config)| config.mode != KindMode::Restored).map(|(kind, _)| kind)
    }

    /// What came after such a kind comes after what that came after.
    fn leave_commands_out(&mut self) {
        let gone: BTreeMap<Kind, Vec<Kind>> = self
            .kinds_with_commands()
            .map(|kind| (kind.clone(), self.kind_depends(kind).into_iter().cloned().collect()))
            .collect();
        self.kinds.retain(|kind, _| !gone.contains_key(kind));
        for config in self.kinds.values_mut() {
            let through: Vec<Kind> =
                config.after.iter().filter_map(|kind| gone.get(kind)).flatten().cloned().collect();
            config.after.extend(through);
            config.after.retain(|kind| !gone.contains_key(kind));
            config.after.sort();
            config.after.dedup();
        }
    }
}

/// Where the shard is. The connection of a database names it and no server: nobody connects by it.
fn driver(shard: &SandboxShard) -> DriverConfig {
    match &shard.place {
        SandboxPlace::Sqlite { dir } => DriverConfig::Sqlite { path: dir.join(format!("{}.db", shard.name)) },
        SandboxPlace::Postgres { .. } => {
            DriverConfig::Postgres { connection: format!("dbname={}", shard.name) }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use std::path::Path;

    use super::*;

    const TOPOLOGY: &str = r#"
fleet = "f"
[repository]
bucket = "muster"
[directory]
kind = "metadata"
table = "site"
[tiers.standard]
rto_seconds = 1
rpo_seconds = 1
[kinds."product:wiki"]
after = ["search"]
[kinds.search]
after = ["metadata"]
mode = "rebuilt"
command = ["reindex", "{site}"]
[shards.EU-1]
driver = "sqlite"
path = "eu.db"
region = "eu"
kinds = ["metadata", "product:wiki"]
[sandbox.far]
driver = "sqlite"
dir = "far"
region = "us"
[sandbox.near]
driver = "sqlite"
dir = "near"
region = "eu"
bytes_max = 100
[tables.site]
kind = "metadata"
tenant = "id"
[tables.page]
kind = "product:wiki"
tenant = "site"
"#;

    fn topology(text: &str) -> Topology {
        Topology::parse(text, "muster.toml", Path::new("/base")).unwrap()
    }

    #[test]
    fn a_made_shard_is_of_its_own_name_in_its_own_region() {
        let topology = topology(TOPOLOGY);
        let (id, of) = ("0a".parse().unwrap(), "EU-1".parse().unwrap());
        let shard = topology.sandbox_shard(&id, 3, &of).unwrap();
        assert_eq!((shard.name().as_str(), shard.sandbox()), ("muster_drill_0a_3_eu_1", "near"));
        assert_eq!(topology.sandboxes["near"].bytes_max, 100);
        let drill = topology.for_drill(std::slice::from_ref(&shard), &DrillLimits::default());
        let made = &drill.shards[shard.name()];
        assert_eq!(made.driver, DriverConfig::Sqlite { path: "/base/near/muster_drill_0a_3_eu_1.db".into() });
        assert_eq!((&made.region, &made.kinds), (&topology.shards[&of].region, &topology.shards[&of].kinds));
        assert_eq!(drill.digest, topology.digest);
    }

    #[test]
    fn commands_are_left_out_and_what_came_after_them_keeps_its_place() {
        let drill = topology(TOPOLOGY).for_drill(&[], &DrillLimits::default());
        let wiki = &drill.kinds[&"product:wiki".parse().unwrap()];
        assert_eq!(wiki.after, ["metadata".parse().unwrap()]);
        assert!(drill.kinds_with_commands().next().is_none() && drill.kinds.len() == 2);
    }

    #[test]
    fn without_a_sandbox_of_its_driver_and_region_the_section_is_named() {
        let (head, _) = TOPOLOGY.split_once("[sandbox.near]").unwrap();
        let (_, tables) = TOPOLOGY.split_once("[tables.site]").unwrap();
        let topology = topology(&format!("{head}[tables.site]{tables}"));
        let refused =
            topology.sandbox_shard(&"0a".parse().unwrap(), 0, &"EU-1".parse().unwrap()).unwrap_err();
        assert!(
            refused.to_string().contains("[sandbox.NAME] with `driver = \"sqlite\"` and `region = \"eu\"`"),
            "{refused}"
        );
    }

    #[test]
    fn nothing_alive_is_named_like_what_drills_make() {
        let text = TOPOLOGY.replace("eu.db", "muster_drill_eu.db");
        let errors = Topology::parse(&text, "muster.toml", Path::new("/base")).unwrap_err();
        assert!(errors.to_string().contains("named like what drills make"), "{errors}");
    }
}
