//! What holds, saved plans and open runs need.

use std::collections::{BTreeMap, BTreeSet};

use muster_engine::{JournalError, read_run};
use muster_repo::{Repository, RunObjects, retention};
use muster_types::plan::Plan;
use muster_types::retention::Hold;
use muster_types::{Digest, PlanId, Timestamp};

use super::PruneError;

/// Segments from an hour before a run began stay in the chain: its proofs read the log from there, and clocks differ.
const BEFORE_RUN_MICROS: i64 = 3_600_000_000;

/// What is needed besides promised moments.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) holds: Vec<Hold>,
    /// Keys of objects, with who needs them.
    pub(super) objects: BTreeMap<String, String>,
    /// Digests of topologies that saved plans and open runs were made with.
    pub(super) topologies: BTreeSet<Digest>,
    /// The chain from here on.
    pub(super) chain_since: Option<Timestamp>,
    pub(super) expired_plans: Vec<PlanId>,
}

pub(super) async fn read(repository: &Repository, now: Timestamp) -> Result<Claims, PruneError> {
    let mut claims = Claims { holds: retention::holds(repository).await?, ..Claims::default() };
    for hold in retention::plan_holds(repository).await? {
        if hold.expires_at < now {
            claims.expired_plans.push(hold.plan);
            continue;
        }
        let who = format!("plan {}", hold.plan.as_str().chars().take(12).collect::<String>());
        claims.topologies.extend(hold.topology);
        claims.objects.extend(hold.objects.into_iter().map(|object| (object, who.clone())));
    }
    for run in RunObjects::list(repository).await? {
        let history = match read_run(repository, &run).await {
            // A journal without a plan, or a folder of something else: it holds nothing.
            Err(JournalError::NoRun { .. }) => continue,
            other => other?,
        };
        let state = &history.state;
        let done = state.finished().is_some_and(|(_, failed)| failed == 0) || state.abandoned().is_some();
        // A plan whose run never began is held as a saved one is.
        let begun = state.opened_at();
        if done || (begun.is_none() && history.plan.expires_at < now) {
            continue;
        }
        let since = begun.unwrap_or(history.plan.created_at).plus_micros(-BEFORE_RUN_MICROS);
        claims.chain_since = Some(claims.chain_since.map_or(since, |known| known.min(since)));
        claims.topologies.insert(history.plan.topology);
        claims.objects.extend(objects(&history.plan).map(|key| (key, format!("open run {run}"))));
    }
    Ok(claims)
}

/// Keys of what a plan reads.
fn objects(plan: &Plan) -> impl Iterator<Item = String> + '_ {
    plan.objects.iter().map(|object| object.key.clone())
}
