//! Muster's plan of a scenario, and its course under the scheduler.

use std::collections::BTreeMap;

use muster_engine::scheduler::{Attempt, Input, RetryPolicy, ScheduleError, Scheduler};
use muster_types::plan::{Demand, PlanStep, StepKey};
use muster_types::{StoreId, Timestamp};

use super::fleet::Site;
use super::scenario::Scenario;
use crate::virtual_run::{Work, virtual_run};

/// The pool of people who validate.
const VALIDATION: &str = "validation";
/// The pool of people who do what re-created identifiers leave to do by hand.
const BY_HAND: &str = "by-hand";
/// The pool of stores staged at once.
const STAGE: &str = "stage";

/// Every step takes what it is estimated to.
struct Estimates<'a>(&'a [PlanStep]);

impl Work for Estimates<'_> {
    fn micros(&self, _now: Timestamp, attempts: &[Attempt]) -> u64 {
        let of = |attempt: &Attempt| self.0.get(attempt.step as usize).map_or(0, |step| step.estimate_micros);
        attempts.iter().map(of).max().unwrap_or(0)
    }
}

/// By index of the site, when it is back; and the number of steps.
///
/// # Errors
/// None for a checked scenario: its pools have room for every step.
pub(super) fn course(
    scenario: &Scenario,
    sites: &[Site],
    recreated_ids: bool,
) -> Result<(Vec<Timestamp>, usize), ScheduleError> {
    let plan = Plan::new(scenario, sites, recreated_ids);
    let incident = &scenario.incident;
    let rto_micros = i64::try_from(incident.rto_seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let deadlines =
        sites.iter().map(|site| (site.id.clone(), site.deleted_at.plus_micros(rto_micros))).collect();
    let begins = i64::try_from(scenario.muster.begins_after_seconds).unwrap_or(i64::MAX);
    let begins = incident.declared_at.plus_micros(begins.saturating_mul(1_000_000));
    let scheduler = Scheduler::new(&plan.steps, &plan.pools, &deadlines, RetryPolicy::default())?;
    let course = virtual_run(scheduler, plan.steps.len(), Input::Begin, begins, &Estimates(&plan.steps));
    let back = |&step: &u32| course.end_of(step as usize).unwrap_or(course.ended_at);
    Ok((plan.handbacks.iter().map(back).collect(), plan.steps.len()))
}

struct Plan<'a> {
    scenario: &'a Scenario,
    recreated_ids: bool,
    steps: Vec<PlanStep>,
    pools: BTreeMap<String, u64>,
    /// By site.
    handbacks: Vec<u32>,
}

impl<'a> Plan<'a> {
    fn new(scenario: &'a Scenario, sites: &[Site], recreated_ids: bool) -> Self {
        let muster = &scenario.muster;
        let mut pools = BTreeMap::from([
            (STAGE.to_owned(), muster.stage_slots_all),
            (VALIDATION.to_owned(), muster.validation.people),
            (BY_HAND.to_owned(), muster.recreated_ids.people),
        ]);
        for store in &scenario.stores {
            for shard in 0..store.shards {
                pools.insert(stage_pool(store, shard), muster.stage_slots);
                pools.insert(publish_pool(store, shard), muster.publish_slots);
            }
        }
        let mut plan = Self { scenario, recreated_ids, steps: Vec::new(), pools, handbacks: Vec::new() };
        sites.iter().for_each(|site| plan.site(site));
        plan
    }

    fn push(&mut self, key: StepKey, after: Vec<u32>, demand: &[&str], micros: u64) -> u32 {
        let demand: Demand = demand.iter().map(|&pool| (pool, 1)).collect();
        let (after_ended, wave, group) = (Vec::new(), 0, None);
        self.steps.push(PlanStep { key, after, after_ended, demand, estimate_micros: micros, wave, group });
        self.steps.len() as u32 - 1
    }

    /// What rows take at a rate, beside what each step costs.
    fn micros(&self, rows: u64, rows_per_second: u64) -> u64 {
        self.scenario.muster.step_milliseconds * 1_000 + (rows as f64 * 1e6 / rows_per_second as f64) as u64
    }

    fn site(&mut self, site: &Site) {
        let muster = &self.scenario.muster;
        let mut published: BTreeMap<&muster_types::Kind, u32> = BTreeMap::new();
        for (store, slice) in self.scenario.stores.iter().zip(&site.stores) {
            let Some((shard, rows)) = *slice else { continue };
            let factor = if self.recreated_ids { muster.recreated_ids.rows_factor } else { 1.0 };
            let rows = (rows as f64 * factor) as u64;
            let id = StoreId { site: site.id.clone(), kind: store.kind.clone() };
            let pools = [stage_pool(store, shard), publish_pool(store, shard)];
            let loading = [STAGE, pools[0].as_str()];
            let stage = self.micros(rows, muster.stage_rows_per_second);
            let stage = self.push(StepKey::Stage(id.clone()), vec![], &loading, stage);
            let verify = self.micros(rows, muster.verify_rows_per_second);
            let verify = self.push(StepKey::Verify(id.clone()), vec![stage], &loading, verify);
            let mut after = vec![verify];
            after.extend(store.after.iter().filter_map(|kind| published.get(kind)));
            let publish = self.micros(rows, muster.publish_rows_per_second);
            let publish = self.push(StepKey::Publish(id), after, &[&pools[1]], publish);
            published.insert(&store.kind, publish);
        }
        let all: Vec<u32> = published.into_values().collect();
        self.close(site, all);
    }

    /// Reading back, what is left to do by hand, validation.
    fn close(&mut self, site: &Site, published: Vec<u32>) {
        let muster = &self.scenario.muster;
        let rows = site.stores.iter().flatten().map(|(_, rows)| rows).sum();
        let check = self.micros(rows, muster.check_rows_per_second);
        let mut last = self.push(StepKey::Check(site.id.clone()), published, &[], check);
        if self.recreated_ids {
            let by_hand = &muster.recreated_ids;
            let minutes = by_hand.minutes_each * by_hand.steps_by_hand as f64;
            #[expect(clippy::expect_used, reason = "a constant of permitted characters")]
            let kind = "app:by-hand".parse().expect("permitted");
            let key = StepKey::Publish(StoreId { site: site.id.clone(), kind });
            last = self.push(key, vec![last], &[BY_HAND], (minutes * 60e6) as u64);
        }
        let validation = (muster.validation.minutes_each * 60e6) as u64;
        let handback = self.push(StepKey::Handback(site.id.clone()), vec![last], &[VALIDATION], validation);
        self.handbacks.push(handback);
    }
}

fn stage_pool(store: &super::scenario::Store, shard: u64) -> String {
    format!("stage:{}-{shard}", store.kind)
}

fn publish_pool(store: &super::scenario::Store, shard: u64) -> String {
    format!("publish:{}-{shard}", store.kind)
}
