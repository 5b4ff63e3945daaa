//! The report of a run, from its plan and its journal. Pure.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::format::FORMAT;
use muster_types::journal::{AppliedMigration, Outcome, Record};
use muster_types::plan::{Note, Plan, Restoration, Severity, SitePlan, StepKey, StorePlan};
use muster_types::report::{
    Distribution, Failure, KindCheckReport, ProofReport, ReferencesReport, Report, ShardProof, SiteReport,
    StepTimes, StoreReport, Totals,
};
use muster_types::{Kind, RunId, SiteId, StoreId, Timestamp};

use crate::journal::{IllegalTransition, RunState, StepPhase, StepState};
use crate::status::run_status;

/// Assembles the report of `run`.
///
/// # Errors
/// Records that contradict each other or the plan.
pub fn report<'a>(
    run: &RunId,
    plan: &Plan,
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<Report, IllegalTransition> {
    let mut state = RunState::new(&plan.steps);
    records.into_iter().try_for_each(|record| state.apply(record))?;
    Ok(of_state(run, plan, &state))
}

/// The report of a state that was replayed already.
pub fn of_state(run: &RunId, plan: &Plan, state: &RunState) -> Report {
    let declared_at = plan.request.incident.declared_at;
    let opened_at = state.opened_at().unwrap_or(plan.created_at);
    let last_at = state.last_at().unwrap_or(opened_at);
    let sites: Vec<SiteReport> = plan.sites.iter().map(|site| site_report(plan, state, site)).collect();
    let over = |value: fn(&SiteReport) -> Option<f64>, target: fn(&SiteReport) -> u64| {
        distribution(sites.iter().map(|site| (&site.site, value(site), target(site) as f64)))
    };
    Report {
        format: FORMAT,
        run: run.clone(),
        plan: plan.id.clone(),
        title: plan.request.incident.title.clone(),
        declared_at,
        opened_at,
        last_at,
        status: run_status(state),
        epochs: state.takings().to_vec(),
        totals: totals(plan, state, &sites, last_at),
        rto_declared: over(|site| site.rto_declared_seconds, |site| site.rto_target_seconds),
        rto_outage: over(|site| site.rto_outage_seconds, |site| site.rto_target_seconds),
        rpo: over(|site| site.rpo_seconds, |site| site.rpo_target_seconds),
        proof: proof(plan, state),
        notes: plan
            .notes
            .iter()
            .cloned()
            .chain(migrations(plan, state))
            .chain(sites.iter().flat_map(uncounted))
            .collect(),
        // It rests on other runs, too: whoever can read them fills it in.
        forecast: None,
        sites,
    }
}

/// What declared migrations did, by store.
fn migrations<'p>(plan: &'p Plan, state: &'p RunState) -> impl Iterator<Item = Note> + use<'p> {
    let stores = plan.sites.iter().flat_map(|site| {
        let restored = site.stores.iter().filter(|store| store.restoration == Restoration::Restored);
        restored.map(|store| StoreId { site: site.site.clone(), kind: store.kind.clone() })
    });
    stores.flat_map(move |store| {
        let verified = state.step(&StepKey::Verify(store.clone())).and_then(|step| step.outcome.as_ref());
        let migrated = match verified {
            Some(Outcome::Verified { migrated: Some(migrated), .. }) => migrated.applied.as_slice(),
            _ => &[],
        };
        let note = |applied: &AppliedMigration| Note {
            severity: Severity::Info,
            code: "migrated".to_owned(),
            subject: store.to_string(),
            text: format!(
                "migration `{}` was applied to table `{}`: {} rows before, {} after",
                applied.name, applied.table, applied.rows_before, applied.rows_after
            ),
            hint: "its statements stand in the topology".to_owned(),
        };
        migrated.iter().map(note).collect::<Vec<_>>()
    })
}

/// Percentiles by nearest rank: the smallest value that at least so many percent of the sites do not exceed.
fn distribution<'a>(values: impl Iterator<Item = (&'a SiteId, Option<f64>, f64)>) -> Distribution {
    let known: Vec<(&SiteId, f64, f64)> =
        values.filter_map(|(site, value, target)| Some((site, value?, target))).collect();
    let mut sorted: Vec<f64> = known.iter().map(|&(_, value, _)| value).collect();
    sorted.sort_by(f64::total_cmp);
    let percentile = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    };
    Distribution {
        count: sorted.len() as u64,
        p50: percentile(50),
        p95: percentile(95),
        max: percentile(100),
        misses: known
            .iter()
            .filter(|(_, value, target)| value > target)
            .map(|&(site, ..)| site.clone())
            .collect(),
    }
}

fn site_report(plan: &Plan, state: &RunState, site: &SitePlan) -> SiteReport {
    let stores: Vec<StoreReport> = site.stores.iter().map(|store| store_report(state, site, store)).collect();
    let handback = state.step(&StepKey::Handback(site.site.clone()));
    let handed_back_at =
        handback.filter(|step| step.phase == StepPhase::Succeeded).and_then(|step| step.ended_at);
    let since = |start: Timestamp| handed_back_at.map(|at| at.seconds_since(start));
    let data = stores.iter().zip(&site.stores).filter(|(_, planned)| has_data(planned));
    SiteReport {
        site: site.site.clone(),
        facts: site.facts.clone(),
        target: site.target,
        outage_at: site.outage_at,
        handed_back_at,
        rto_declared_seconds: since(plan.request.incident.declared_at),
        rto_outage_seconds: site.outage_at.and_then(since),
        rto_target_seconds: site.rto_seconds,
        rpo_seconds: data.map(|(store, _)| store.rpo_seconds).max_by(f64::total_cmp),
        rpo_target_seconds: site.rpo_seconds,
        failure: failure(plan, state, site),
        check: times(state, StepKey::Check(site.site.clone())),
        references: references(state, site),
        kind_checks: kind_checks(plan, state, site),
        handback: times(state, StepKey::Handback(site.site.clone())),
        stores,
    }
}

fn references(state: &RunState, site: &SitePlan) -> Option<ReferencesReport> {
    let key = StepKey::References(site.site.clone());
    let step = state.step(&key)?;
    let counts = match &step.outcome {
        Some(Outcome::ReferencesCounted { counts }) => counts.clone(),
        _ => Vec::new(),
    };
    let error = step.error.clone().filter(|_| step.phase == StepPhase::Failed);
    Some(ReferencesReport { counts, error, times: times(state, key) })
}

fn kind_checks(plan: &Plan, state: &RunState, site: &SitePlan) -> Vec<KindCheckReport> {
    let of_store = |store: &StorePlan| {
        let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
        let checks = plan.kind_checks.get(&store.kind).into_iter().flatten();
        checks
            .filter_map(|check| {
                let key = StepKey::KindCheck { store: id.clone(), check: check.name.clone() };
                let step = state.step(&key)?;
                let (passed, output) = match (step.phase, &step.outcome, &step.error) {
                    (StepPhase::Succeeded, Some(Outcome::KindChecked { output }), _) => {
                        (Some(true), output.clone())
                    }
                    (StepPhase::Failed, _, Some(error)) => (Some(false), error.clone()),
                    _ => (None, String::new()),
                };
                let (kind, check) = (store.kind.clone(), check.name.clone());
                Some(KindCheckReport { kind, check, passed, output, times: times(state, key) })
            })
            .collect::<Vec<_>>()
    };
    site.stores.iter().flat_map(of_store).collect()
}

/// References that were met and could not be counted.
fn uncounted(site: &SiteReport) -> impl Iterator<Item = Note> + '_ {
    let counts = site.references.iter().flat_map(|references| &references.counts);
    counts.filter_map(|count| {
        let why = count.unchecked.as_ref()?;
        Some(Note {
            severity: Severity::Warning,
            code: "reference-unchecked".to_owned(),
            subject: site.site.to_string(),
            text: format!("rows that refer by {} are not counted: {why}", count.reference),
            hint: "look at such rows by hand, and correct [[references]]".to_owned(),
        })
    })
}

fn has_data(store: &StorePlan) -> bool {
    store.restoration == muster_types::plan::Restoration::Restored
}

/// The failure that keeps a site from being back: of its own steps, or the one that blocks them.
fn failure(plan: &Plan, state: &RunState, site: &SitePlan) -> Option<Failure> {
    let stores =
        site.stores.iter().map(|store| StoreId { site: site.site.clone(), kind: store.kind.clone() });
    let of_store = |store: StoreId| {
        [StepKey::Stage(store.clone()), StepKey::Verify(store.clone()), StepKey::Publish(store)]
    };
    let own = [StepKey::Check(site.site.clone()), StepKey::References(site.site.clone())];
    let store = |kind: &Kind| StoreId { site: site.site.clone(), kind: kind.clone() };
    let kind_checks = site.stores.iter().flat_map(|planned| {
        let checks = plan.kind_checks.get(&planned.kind).into_iter().flatten();
        checks.map(|check| StepKey::KindCheck { store: store(&planned.kind), check: check.name.clone() })
    });
    let handback = [StepKey::Handback(site.site.clone())];
    let steps: Vec<StepKey> =
        stores.flat_map(of_store).chain(own).chain(kind_checks).chain(handback).collect();
    let failed = |key: &StepKey| {
        let step = state.step(key)?;
        let error = step.error.clone().filter(|_| step.phase == StepPhase::Failed)?;
        Some(Failure { step: key.clone(), error })
    };
    let blocking = |key: &StepKey| failed(state.step(key)?.blocked_by.as_ref()?);
    steps.iter().find_map(failed).or_else(|| steps.iter().find_map(blocking))
}

fn store_report(state: &RunState, site: &SitePlan, store: &StorePlan) -> StoreReport {
    let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
    let stage = state.step(&StepKey::Stage(id.clone())).and_then(|step| step.outcome.as_ref());
    let (bytes, tables) = match stage {
        Some(Outcome::Staged { bytes, tables, .. }) => (*bytes, tables.clone()),
        _ => (0, BTreeMap::new()),
    };
    let published = match state.step(&StepKey::Publish(id.clone())).and_then(|step| step.outcome.as_ref()) {
        Some(Outcome::Published(published)) => Some(published),
        _ => None,
    };
    let lost_from = site.outage_at.unwrap_or(site.target);
    StoreReport {
        kind: store.kind.clone(),
        shard: store.shard.clone(),
        reached: store.reached,
        reached_because: store.reached_because.clone(),
        // A recovery point behind the outage (a site that was hit in one store only) loses nothing.
        rpo_seconds: lost_from.seconds_since(store.reached.at).max(0.0),
        rows: published.map_or(0, |published| published.rows),
        bytes,
        tables,
        blocked_micros: published.map(|published| published.blocked_micros),
        stage: times(state, StepKey::Stage(id.clone())),
        verify: times(state, StepKey::Verify(id.clone())),
        publish: times(state, StepKey::Publish(id)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "every caller makes the key for this call")]
fn times(state: &RunState, key: StepKey) -> Option<StepTimes> {
    let step = state.step(&key)?;
    Some(StepTimes {
        ready_at: step.ready_at?,
        started_at: step.started_at?,
        ended_at: step.ended_at,
        attempts: step.attempts,
    })
}

fn totals(plan: &Plan, state: &RunState, sites: &[SiteReport], last_at: Timestamp) -> Totals {
    let customers: BTreeSet<&str> =
        plan.sites.iter().map(|site| site.facts.customer.as_deref().unwrap_or(site.site.as_str())).collect();
    let stores = || sites.iter().flat_map(|site| &site.stores);
    let first = state.steps().iter().filter_map(|step| step.started_at).min();
    Totals {
        sites: sites.len() as u64,
        sites_restored: sites.iter().filter(|site| site.handed_back_at.is_some()).count() as u64,
        customers: customers.len() as u64,
        users: plan.sites.iter().map(|site| site.facts.users).sum(),
        stores: stores().count() as u64,
        rows: stores().map(|store| store.rows).sum(),
        bytes: stores().map(|store| store.bytes).sum(),
        seconds: first.map_or(0.0, |first| last_at.seconds_since(first)),
    }
}

fn proof(plan: &Plan, state: &RunState) -> ProofReport {
    let mut proof = ProofReport {
        level: plan.request.proof,
        marked_changes: 0,
        sites_proven: 0,
        shards: BTreeMap::new(),
    };
    for (step, known) in plan.steps.iter().zip(state.steps()) {
        match (&step.key, &known.outcome) {
            (StepKey::Check(_), Some(Outcome::Checked { changes, .. })) => {
                proof.sites_proven += 1;
                proof.marked_changes += changes;
            }
            (StepKey::DigestAfter(shard), outcome) => {
                proof.shards.insert(shard.clone(), shard_proof(state, outcome.as_ref(), known));
            }
            _ => {}
        }
    }
    proof
}

fn shard_proof(state: &RunState, outcome: Option<&Outcome>, known: &StepState) -> ShardProof {
    match outcome {
        Some(Outcome::DigestedAfter { digest, changes }) => {
            ShardProof { rows: digest.rows, changes: *changes, holds: true, error: None }
        }
        _ => {
            let cause = known.blocked_by.as_ref().and_then(|by| state.step(by)?.error.clone());
            let error = known.error.clone().filter(|_| known.phase == StepPhase::Failed).or(cause);
            ShardProof { rows: 0, changes: 0, holds: false, error }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occur_and_misses_are_named() {
        let sites: Vec<SiteId> = (1..=40).map(|number| SiteId::new(format!("s{number}")).unwrap()).collect();
        let values = sites.iter().zip(1..).map(|(site, value)| (site, Some(f64::from(value)), 38.0));
        let figures = distribution(values);
        assert_eq!((figures.count, figures.p50, figures.p95, figures.max), (40, 20.0, 38.0, 40.0));
        assert_eq!(figures.misses, [sites[38].clone(), sites[39].clone()]);
        assert_eq!(distribution(sites.iter().map(|site| (site, None, 1.0))), Distribution::default());
        let one = distribution(std::iter::once((&sites[0], Some(7.0), 7.0)));
        assert_eq!((one.p50, one.p95, one.max, one.misses.len()), (7.0, 7.0, 7.0, 0));
    }
}
