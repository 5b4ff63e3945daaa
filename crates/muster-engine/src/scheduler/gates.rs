//! Which steps go through which gates, and what their ends say of the side behind.

use std::collections::{BTreeSet, HashMap};

use muster_types::plan::{Plan, Restoration, StepKey};
use muster_types::{Kind, ShardName, SiteId, Timestamp};

use super::Scheduler;
use super::breaker::Gates;
use crate::driver::ErrorClass;

/// The gate of the repository.
const REPOSITORY: u32 = 0;

impl Gates {
    /// Those of a plan's steps: the repository, and each shard.
    pub(super) fn of_plan(plan: &Plan) -> Self {
        let names: BTreeSet<&ShardName> = plan.shards.keys().chain(plan.provisions.keys()).collect();
        let numbers: HashMap<&ShardName, u32> = names.iter().copied().zip(1..).collect();
        let homes = Homes::of(plan, &numbers);
        let of_step = plan.steps.iter().map(|step| {
            let mut gates = match &step.key {
                StepKey::Provision(shard) | StepKey::DigestBefore(shard) | StepKey::DigestAfter(shard) => {
                    numbers.get(shard).copied().into_iter().collect()
                }
                StepKey::Stage(store)
                | StepKey::Verify(store)
                | StepKey::Publish(store)
                | StepKey::KindCheck { store, .. } => homes.of_store(&store.site, &store.kind),
                StepKey::Check(site) | StepKey::References(site) | StepKey::Handback(site) => {
                    homes.of_site(site)
                }
            };
            if reads_repository(&step.key) && !gates.is_empty() {
                gates.insert(REPOSITORY);
            }
            gates.into_iter().collect()
        });
        let of_step = of_step.collect();
        Self { shards: std::iter::once(None).chain(names.into_iter().cloned().map(Some)).collect(), of_step }
    }
}

/// The gate of each restored store's shard.
struct Homes<'a>(HashMap<&'a SiteId, Vec<(&'a Kind, u32)>>);

impl<'a> Homes<'a> {
    fn of(plan: &'a Plan, numbers: &HashMap<&ShardName, u32>) -> Self {
        let sites = plan.sites.iter().map(|site| {
            let restored = site.stores.iter().filter(|store| store.restoration == Restoration::Restored);
            let home = restored.filter_map(|store| Some((&store.kind, *numbers.get(&store.shard)?)));
            (&site.site, home.collect())
        });
        Self(sites.collect())
    }

    fn of_store(&self, site: &SiteId, kind: &Kind) -> BTreeSet<u32> {
        let home = self.0.get(site).into_iter().flatten().find(|(candidate, _)| *candidate == kind);
        home.map(|&(_, gate)| gate).into_iter().collect()
    }

    fn of_site(&self, site: &SiteId) -> BTreeSet<u32> {
        self.0.get(site).into_iter().flatten().map(|&(_, gate)| gate).collect()
    }
}

fn reads_repository(key: &StepKey) -> bool {
    match key {
        StepKey::Provision(_)
        | StepKey::Stage(_)
        | StepKey::Check(_)
        | StepKey::References(_)
        | StepKey::DigestAfter(_) => true,
        StepKey::Verify(_)
        | StepKey::Publish(_)
        | StepKey::KindCheck { .. }
        | StepKey::Handback(_)
        | StepKey::DigestBefore(_) => false,
    }
}

/// A failure that another attempt may mend is the shard's: the others wait for capture or for programs as well.
fn speaks_for_shard(key: &StepKey) -> bool {
    matches!(
        key,
        StepKey::Provision(_)
            | StepKey::Stage(_)
            | StepKey::Verify(_)
            | StepKey::Publish(_)
            | StepKey::DigestBefore(_)
    )
}

impl Scheduler {
    /// Pauses that are over, and gates that let steps through again.
    pub(super) fn open_gates(&mut self, now: Timestamp) {
        self.breakers.wake(now);
        for gate in self.breakers.take_freed() {
            self.ready.opened(gate);
        }
    }

    /// The gate behind which the cause of a failure is, where that is known.
    pub(super) fn blamed(&self, step: u32, class: ErrorClass) -> Option<u32> {
        match class {
            ErrorClass::RepositoryAway => self.breakers.repository(),
            ErrorClass::Unavailable => self.breakers.sole_shard(self.ready.gates(step)),
            ErrorClass::Transient | ErrorClass::Ambiguous if speaks_for_shard(self.graph.key(step)) => {
                self.breakers.sole_shard(self.ready.gates(step))
            }
            _ => None,
        }
    }

    /// What the end of an attempt says of the sides that it went to.
    pub(super) fn judge(&mut self, now: Timestamp, step: u32, failed: Option<ErrorClass>) {
        let blamed = failed.and_then(|class| self.blamed(step, class));
        if let Some(gate) = blamed {
            // A batch is one attempt, however many of its steps failed.
            if self.batches.is_first_blame(self.steps[step as usize].batch) {
                self.breakers.failed(now, gate, step);
            }
        }
        let sole_shard = self.breakers.sole_shard(self.ready.gates(step));
        for &gate in self.ready.gates(step) {
            match failed {
                None => self.breakers.answered(gate),
                _ if blamed == Some(gate) => {}
                Some(ErrorClass::Throttled | ErrorClass::StagingLost) if sole_shard == Some(gate) => {
                    self.breakers.answered(gate);
                }
                // Of several shards, one is not there; which, is not known.
                Some(ErrorClass::Unavailable) if blamed.is_none() && gate != REPOSITORY => {
                    self.breakers.failed_probe(now, gate, step);
                }
                Some(_) => self.breakers.undecided(gate, step),
            }
        }
    }
}
