//! An incident of a given shape, run through four strategies.
//!
//! - [`Scenario`]: the file, checked.
//! - [`simulate`]: what each [`Strategy`] makes of it.
//!
//! Both strategies of Muster are runs of the real scheduler under virtual time over the steps that its planner makes of a
//! site (stage, verify, publish, check, hand-back). Both by hand are arithmetic: batches of so many hours.
//!
//! # Errors
//! [`ScenarioError`] names the key of the file.

mod automatic;
mod by_hand;
mod fleet;
mod scenario;

use muster_engine::scheduler::ScheduleError;
use muster_types::Timestamp;
use serde::Serialize;

pub use scenario::{
    Batches, ByHand, Incident, Known, Muster, People, RecreatedIds, SITES_MAX, Scenario, ScenarioError,
    Sizes, Store, Way,
};

/// A way to bring the sites back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One site after another by hand.
    Sequential,
    /// By hand in batches, each of which waits for the one before.
    Batches,
    /// Muster's plan, with new identifiers that must be mapped.
    RecreatedIds,
    /// Muster's plan, with the identifiers kept.
    KeptIds,
}

impl Strategy {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "by hand, one site after another",
            Self::Batches => "by hand, in batches with a barrier",
            Self::RecreatedIds => "Muster, re-created ids",
            Self::KeptIds => "Muster, kept ids",
        }
    }
}

/// What came of a strategy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The strategy.
    pub strategy: Strategy,
    /// Steps that the scheduler took, of Muster's plans.
    pub steps: Option<u64>,
    /// From the first deletion to the last site back.
    pub makespan_seconds: f64,
    /// Recovery time of sites, each from its own deletion: mean.
    pub rto_mean_seconds: f64,
    /// The same: 95th percentile.
    pub rto_p95_seconds: f64,
    /// Sites later than their target.
    pub misses: u64,
    /// Sites and users back over time, a point at each moment at which some are.
    pub curve: Vec<Point>,
}

/// How many are back at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the first deletion.
    pub seconds: f64,
    /// Share of the sites, from 0 to 1.
    pub sites_share: f64,
    /// Share of the users, from 0 to 1.
    pub users_share: f64,
}

/// All strategies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// What was simulated.
    pub title: String,
    /// The seed of the sizes.
    pub seed: u64,
    /// Sites.
    pub sites: u64,
    /// The target of each site, in seconds from its own deletion.
    pub rto_seconds: u64,
    /// In the order of [`Strategy`].
    pub outcomes: Vec<Outcome>,
}

/// Runs `scenario` through all strategies; `seed` takes the place of its own.
///
/// # Errors
/// None for a scenario that was parsed.
pub fn simulate(scenario: &Scenario, seed: Option<u64>) -> Result<Simulated, ScheduleError> {
    let seed = seed.unwrap_or(scenario.seed);
    let sites = fleet::draw(scenario, seed);
    let (recreated, recreated_steps) = automatic::course(scenario, &sites, true)?;
    let (kept, kept_steps) = automatic::course(scenario, &sites, false)?;
    let outcomes = vec![
        outcome(scenario, &sites, Strategy::Sequential, &by_hand::sequential(scenario, &sites), None),
        outcome(scenario, &sites, Strategy::Batches, &by_hand::batches(scenario, &sites), None),
        outcome(scenario, &sites, Strategy::RecreatedIds, &recreated, Some(recreated_steps)),
        outcome(scenario, &sites, Strategy::KeptIds, &kept, Some(kept_steps)),
    ];
    Ok(Simulated {
        title: scenario.title.clone(),
        seed,
        sites: sites.len() as u64,
        rto_seconds: scenario.incident.rto_seconds,
        outcomes,
    })
}

fn outcome(
    scenario: &Scenario,
    sites: &[fleet::Site],
    strategy: Strategy,
    back: &[Timestamp],
    steps: Option<usize>,
) -> Outcome {
    let began = scenario.incident.deletion_began_at;
    let mut rto: Vec<f64> =
        sites.iter().zip(back).map(|(site, back)| back.seconds_since(site.deleted_at)).collect();
    rto.sort_by(f64::total_cmp);
    let p95 = (rto.len() * 95).div_ceil(100).max(1) - 1;
    let curve = curve(sites, back, began);
    Outcome {
        strategy,
        steps: steps.map(|steps| steps as u64),
        makespan_seconds: curve.last().map_or(0.0, |point| point.seconds),
        rto_mean_seconds: rto.iter().sum::<f64>() / rto.len().max(1) as f64,
        rto_p95_seconds: rto.get(p95).copied().unwrap_or_default(),
        misses: rto.iter().filter(|&&rto| rto > scenario.incident.rto_seconds as f64).count() as u64,
        curve,
    }
}

fn curve(sites: &[fleet::Site], back: &[Timestamp], began: Timestamp) -> Vec<Point> {
    let all: f64 = sites.iter().map(|site| site.users).sum();
    let mut ends: Vec<(Timestamp, f64)> =
        back.iter().copied().zip(sites.iter().map(|site| site.users)).collect();
    ends.sort_by_key(|&(at, _)| at);
    let (mut count, mut users) = (0, 0.0);
    let mut points: Vec<Point> = Vec::new();
    for group in ends.chunk_by(|a, b| a.0 == b.0) {
        count += group.len();
        users += group.iter().map(|(_, users)| users).sum::<f64>();
        points.push(Point {
            seconds: group[0].0.seconds_since(began),
            sites_share: count as f64 / sites.len() as f64,
            users_share: (users / all).min(1.0),
        });
    }
    points
}
