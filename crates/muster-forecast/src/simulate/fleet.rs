//! The sites of a scenario, drawn from its seed.

use muster_types::{SiteId, Timestamp};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::scenario::Scenario;

/// A site.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Site {
    pub(super) id: SiteId,
    pub(super) deleted_at: Timestamp,
    pub(super) users: f64,
    /// By kind of the scenario: shard and rows, where the site has it.
    pub(super) stores: Vec<Option<(u64, u64)>>,
}

/// All of them, in the order in which they were deleted.
pub(super) fn draw(scenario: &Scenario, seed: u64) -> Vec<Site> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let incident = &scenario.incident;
    let span = incident.deletion_ended_at.as_micros() - incident.deletion_began_at.as_micros();
    let last = i64::try_from(incident.sites).unwrap_or(i64::MAX).max(2) - 1;
    let site = |number: u64| {
        let uniform: f64 = random.random_range(f64::EPSILON..1.0);
        let size = uniform.powf(-1.0 / scenario.sizes.tail);
        let most = scenario.sizes.rows_max as f64 / scenario.sizes.rows_min as f64;
        let size = size.min(most);
        let nth = i64::try_from(number).unwrap_or(i64::MAX);
        Site {
            id: site_id(number),
            deleted_at: incident.deletion_began_at.plus_micros(span / last * nth),
            users: size * scenario.sizes.users_min as f64,
            stores: stores(scenario, &mut random, size * scenario.sizes.rows_min as f64),
        }
    };
    (0..incident.sites).map(site).collect()
}

#[expect(clippy::expect_used, reason = "a letter and digits are permitted characters")]
fn site_id(number: u64) -> SiteId {
    SiteId::new(format!("s{number:06}")).expect("permitted")
}

fn stores(scenario: &Scenario, random: &mut ChaCha8Rng, rows: f64) -> Vec<Option<(u64, u64)>> {
    let store = |store: &super::scenario::Store| {
        let has = random.random_range(0.0..1.0) < store.sites_share;
        let shard = random.random_range(0..store.shards);
        has.then_some((shard, (rows * store.rows_share) as u64))
    };
    scenario.stores.iter().map(store).collect()
}
