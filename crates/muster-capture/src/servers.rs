//! What the shards of one server share: its databases and its replication slots.
//!
//! Every slot decodes the log of its whole server, whatever database it is for. So a server has a bound on slots
//! (`slots_max`), over all shards of the topology that are on it.

use std::collections::{BTreeMap, BTreeSet};

use muster_stores::capture::CaptureError;
use muster_stores::postgres::server::{self, Inventory, Server};
use muster_types::topology::{DriverConfig, Family, PLACEHOLDER, Topology};
use muster_types::{ShardName, SiteId};

/// Slots of a server where no shard says otherwise. Each costs some 7 µs of processor time a changed row, whatever its
/// database: with 16, a server that changes 5,000 rows a second spends half a processor on them (`docs/benchmarks.md`).
pub const SLOTS_MAX: u64 = 16;

/// A server of the topology.
struct Shared<'t> {
    server: Server,
    /// With their connections and databases.
    shards: Vec<(&'t ShardName, &'t str, String)>,
    slots_max: u64,
}

/// The servers of the PostgreSQL shards. A connection that cannot be understood is told with its shard.
fn shared(topology: &Topology) -> Vec<Shared<'_>> {
    let mut servers: BTreeMap<Server, Shared<'_>> = BTreeMap::new();
    for (name, config) in &topology.shards {
        let DriverConfig::Postgres { connection } = &config.driver else { continue };
        let Ok((server, database)) = server::place(connection) else { continue };
        let found = servers.entry(server).or_insert_with_key(|server| Shared {
            server: server.clone(),
            shards: Vec::new(),
            slots_max: u64::MAX,
        });
        found.shards.push((name, connection, database));
        found.slots_max = found.slots_max.min(config.slots_max.unwrap_or(u64::MAX));
    }
    let mut servers: Vec<Shared<'_>> = servers.into_values().collect();
    for server in servers.iter_mut().filter(|server| server.slots_max == u64::MAX) {
        server.slots_max = SLOTS_MAX;
    }
    servers
}

impl Shared<'_> {
    /// Asked over the first database that answers; none does where all are gone.
    fn inventory(&self) -> Option<Inventory> {
        self.shards.iter().find_map(|(_, connection, _)| server::inventory(connection).ok())
    }

    /// Why it has too many slots, or would have.
    fn too_many(&self, inventory: Option<&Inventory>) -> Option<CaptureError> {
        let (Self { server, slots_max, .. }, declared) = (self, self.shards.len());
        let there = inventory.map_or(0, |found| found.slots.len());
        let what = if declared as u64 > *slots_max {
            format!("{declared} shards of the topology are on server {server}, with a replication slot each")
        } else if there as u64 > *slots_max {
            format!("server {server} has {there} logical replication slots")
        } else {
            return None;
        };
        Some(CaptureError::new(
            format!(
                "{what}, and `slots_max` permits {slots_max}: each of them decodes everything that is written on the server"
            ),
            "put databases of sites on further servers, or sites into schemas of one database; drop slots that nobody \
             needs (SELECT pg_drop_replication_slot(…)); or, if the server has processors to spare, raise `slots_max` of \
             its shards",
        ))
    }
}

/// Servers with more slots than they may have, or would have with all shards of the topology. With each, its shards. Blocks;
/// reads only.
pub fn check_slots(topology: &Topology) -> Vec<(BTreeSet<ShardName>, CaptureError)> {
    let too_many = |shared: Shared<'_>| {
        let error = shared.too_many(shared.inventory().as_ref())?;
        Some((shared.shards.iter().map(|(name, ..)| (*name).clone()).collect(), error))
    };
    shared(topology).into_iter().filter_map(too_many).collect()
}

/// How the list of a family's sites and its server differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyCoverage {
    /// The section.
    pub family: ShardName,
    /// Databases that are named like the family's and whose sites are not listed.
    pub uncovered: BTreeMap<SiteId, String>,
    /// Databases of listed sites that are not there.
    pub missing: BTreeMap<SiteId, String>,
}

/// Compares each family with its server. One that stands for several servers, or whose connections name no database, cannot
/// be compared. Blocks; reads only.
pub fn check_families(topology: &Topology) -> Vec<FamilyCoverage> {
    if topology.families.is_empty() {
        return Vec::new();
    }
    let servers = shared(topology);
    topology.families.iter().filter_map(|(name, family)| coverage(&servers, name, family)).collect()
}

fn coverage(servers: &[Shared<'_>], name: &ShardName, family: &Family) -> Option<FamilyCoverage> {
    let (server, pattern) = server::place(&family.connection).ok()?;
    let (before, after) = pattern.split_once(PLACEHOLDER)?;
    let shared = servers.iter().find(|shared| shared.server == server)?;
    let inventory = shared.inventory()?;
    let declared: BTreeSet<&str> = shared.shards.iter().map(|(.., database)| database.as_str()).collect();
    let site_of = |database: &str| SiteId::new(database.strip_prefix(before)?.strip_suffix(after)?).ok();
    let others = inventory.databases.iter().filter(|database| !declared.contains(database.as_str()));
    let uncovered = others.filter_map(|database| Some((site_of(database)?, database.clone()))).collect();
    let expected =
        family.shards.keys().map(|site| (site.clone(), format!("{before}{}{after}", site.as_str())));
    let missing = expected.filter(|(_, database)| !inventory.databases.contains(database)).collect();
    Some(FamilyCoverage { family: name.clone(), uncovered, missing })
}
