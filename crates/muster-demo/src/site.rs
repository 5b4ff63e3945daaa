//! The sites of the fleet: names, tiers, customers, products and sizes.
//!
//! Sizes are log-normal, as those of real tenants are: most are small, a few are larger than a thousand of those.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kind::Kind;
use crate::words;

/// Regions of the fleet and the share of sites in the first.
pub const REGIONS: [&str; 2] = ["eu-central", "us-east"];
const FIRST_REGION_SHARE: f64 = 0.55;

/// Spread of the logarithm of sizes: the largest of 2,000 sites then has about a hundred times the median's rows.
const SIGMA: f64 = 1.5;
/// No site has more than this many times the mean number of rows, so that one site cannot be most of the fleet.
const CAP: f64 = 60.0;

/// A site.
#[derive(Clone, Debug)]
pub struct Site {
    /// The bare id, as the tables hold it.
    pub id: String,
    /// Unique display name.
    pub name: String,
    /// Index into [`REGIONS`].
    pub region: usize,
    /// `enterprise`, `standard` or `free`.
    pub tier: &'static str,
    /// The customer behind it.
    pub customer: String,
    /// One of the operator's own.
    pub internal: bool,
    /// Hardly used any more.
    pub inactive: bool,
    /// Users.
    pub users: usize,
    /// Kinds it has, in the order of [`Kind::ALL`].
    pub kinds: Vec<Kind>,
    /// Rows aimed at, over all kinds.
    pub rows: usize,
}

/// Makes `count` sites with about `rows` rows each on average.
pub(crate) fn sites(count: usize, rows: usize, seed: u64) -> Vec<Site> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut customer = words::company(&mut rng);
    let mut left = 0;
    (0..count)
        .map(|index| {
            if left == 0 {
                customer = words::company(&mut rng);
                // Customers with several sites are what makes "883 sites, 775 customers".
                left = if rng.random_bool(0.15) { rng.random_range(2..=5) } else { 1 };
            }
            left -= 1;
            site(&mut rng, index, rows, &customer)
        })
        .collect()
}

fn site(rng: &mut ChaCha8Rng, index: usize, rows_mean: usize, customer: &str) -> Site {
    let internal = rng.random_bool(0.11);
    let inactive = rng.random_bool(if internal { 0.5 } else { 0.25 });
    let (u, v): (f64, f64) = (rng.random_range(1e-9..1.0), rng.random());
    let normal = (-2.0 * u.ln()).sqrt() * (TAU * v).cos();
    let factor = (SIGMA * normal - SIGMA * SIGMA / 2.0).exp().min(CAP) * if inactive { 0.4 } else { 1.2 };
    let rows = ((rows_mean as f64 * factor) as usize).max(40);
    let tier = match factor {
        _ if internal => "standard",
        f if f > 1.5 => "enterprise",
        f if f > 0.3 => "standard",
        _ => "free",
    };
    let id = format!("s-{index:05}");
    Site {
        name: format!("{}-{index}", customer.to_lowercase().replace(' ', "-")),
        id,
        region: usize::from(!rng.random_bool(FIRST_REGION_SHARE)),
        tier,
        customer: if internal { "The operator itself".to_owned() } else { customer.to_owned() },
        internal,
        inactive,
        users: (rows / 12).clamp(2, 2_000),
        kinds: kinds(rng),
        rows,
    }
}

fn kinds(rng: &mut ChaCha8Rng) -> Vec<Kind> {
    let jira = rng.random_bool(0.8);
    let wiki = rng.random_bool(0.65) || !jira;
    let mut has = |kind: Kind| match kind {
        Kind::Metadata | Kind::Identity | Kind::Licence => true,
        Kind::JiraSoftware => jira,
        Kind::Confluence => wiki,
        Kind::ServiceManagement => rng.random_bool(0.3),
        Kind::Opsgenie => rng.random_bool(0.2),
        Kind::Statuspage => rng.random_bool(0.15),
        Kind::Automation => jira && rng.random_bool(0.35),
        Kind::Timesheets => jira && rng.random_bool(0.2),
        Kind::Diagrams => wiki && rng.random_bool(0.3),
    };
    Kind::ALL.into_iter().filter(|kind| has(*kind)).collect()
}
