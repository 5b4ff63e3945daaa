//! One run: what its journal says, entry by entry, held against its plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_engine::journal::{RunState, StepPhase};
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::{Epoch, RunId, ShardName, SiteId, StoreId, Timestamp};

use super::Place;

/// How far a step is, as the auditor reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Pending,
    Running,
    Retrying,
    Succeeded,
    Failed,
    Blocked,
}

#[derive(Clone, Debug, Default)]
struct Step {
    phase: Phase,
    epoch: Epoch,
    attempts: u32,
    /// When its last attempt began: steps of one group that began together are one batch.
    at: Option<Timestamp>,
    has_succeeded: bool,
    /// Epochs in which an attempt began.
    begun: BTreeSet<Epoch>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RunAudit {
    pub(super) plan: Arc<Plan>,
    index: BTreeMap<StepKey, usize>,
    steps: Vec<Step>,
    state: RunState,
    sequence: u64,
    epochs: Vec<Epoch>,
    finished: Option<(u64, u64)>,
    abandoned: bool,
    /// The operator gave the plan up before it began.
    pub(super) is_given_up: bool,
    /// The operator is about to give the run up.
    pub(super) is_abandoning: bool,
}

impl RunAudit {
    pub(super) fn new(plan: &Arc<Plan>) -> Self {
        let index = plan.steps.iter().map(|step| step.key.clone()).zip(0..).collect();
        Self {
            index,
            steps: vec![Step::default(); plan.steps.len()],
            state: RunState::new(&plan.steps),
            plan: Arc::clone(plan),
            sequence: 0,
            epochs: Vec::new(),
            finished: None,
            abandoned: false,
            is_given_up: false,
            is_abandoning: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.sequence > 0
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(super) fn is_restored(&self) -> bool {
        self.finished.is_some_and(|(_, failed)| failed == 0)
    }

    /// It restores into shards of its own.
    pub(super) fn is_drill(&self) -> bool {
        self.plan.request.placement.sandbox
    }

    fn home_of(&self, store: &StoreId) -> Option<&ShardName> {
        self.plan.store(store).map(|(_, planned)| &planned.shard)
    }

    /// Its objects must stay.
    pub(super) fn is_needing(&self) -> bool {
        !self.is_given_up && !self.abandoned && !self.is_restored()
    }

    pub(super) fn was_taken(&self, epoch: Epoch) -> bool {
        self.epochs.contains(&epoch)
    }

    fn epoch(&self) -> Epoch {
        self.epochs.last().copied().unwrap_or_default()
    }

    /// What is wrong with an entry that landed.
    pub(super) fn entry(
        &mut self,
        entry: &JournalEntry,
        published: &BTreeMap<Place, RunId>,
        claims: &BTreeMap<Place, RunId>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if entry.sequence != self.sequence + 1 {
            wrong.push(format!("it follows entry {}", self.sequence));
        }
        self.sequence = entry.sequence;
        for record in &entry.records {
            if let Err(what) = self.record(record, &entry.run, published, claims) {
                wrong.push(what);
            }
            if let Err(illegal) = self.state.apply(record) {
                wrong.push(format!("the journal does not fold: {illegal}"));
            }
            wrong.extend(self.disagreement(record));
        }
        if entry.epoch != self.epoch() {
            wrong.push(format!("it is of epoch {}, and {} holds the run", entry.epoch, self.epoch()));
        }
        wrong.extend(self.pool_above_capacity());
        wrong
    }

    fn record(
        &mut self,
        record: &Record,
        run: &RunId,
        published: &BTreeMap<Place, RunId>,
        claims: &BTreeMap<Place, RunId>,
    ) -> Result<(), String> {
        if self.abandoned {
            return Err("something follows the end of an abandoned run".to_owned());
        }
        match record {
            Record::Opened { .. } => Ok(()),
            Record::Taken { epoch, .. } => {
                let next = Epoch(self.epoch().0 + 1);
                self.epochs.push(*epoch);
                self.finished = None;
                (*epoch == next).then_some(()).ok_or_else(|| format!("epoch {epoch} follows {}", next.0 - 1))
            }
            Record::Started { step, attempt, at, .. } => self.started(step, *attempt, *at),
            Record::Succeeded { step, attempt, .. } => self.succeeded(step, *attempt, run, published, claims),
            Record::Failed { step, will_retry, .. } => self.failed(step, *will_retry),
            Record::Blocked { step, by, .. } => self.blocked(step, by),
            Record::Finished { sites_restored, sites_failed, .. } => {
                self.finished = Some((*sites_restored, *sites_failed));
                self.whole(*sites_restored, *sites_failed)
            }
            Record::Abandoned { .. } => {
                self.abandoned = true;
                // The shards of a drill go as a whole.
                match !self.is_drill() && claims.values().any(|holder| holder == run) {
                    true => Err("it was abandoned and holds claims still".to_owned()),
                    false => Ok(()),
                }
            }
        }
    }

    fn find(&self, key: &StepKey) -> Result<usize, String> {
        self.index.get(key).copied().ok_or_else(|| format!("the plan has no step {key}"))
    }

    fn unmet(&self, step: &PlanStep) -> Option<&StepKey> {
        let phase = |edge: &u32| self.steps[*edge as usize].phase;
        let ended = |edge: &u32| matches!(phase(edge), Phase::Succeeded | Phase::Failed | Phase::Blocked);
        let after = step.after.iter().find(|edge| phase(edge) != Phase::Succeeded);
        let ended = step.after_ended.iter().find(|edge| !ended(edge));
        after.or(ended).map(|edge| &self.plan.steps[*edge as usize].key)
    }

    fn started(&mut self, key: &StepKey, attempt: u32, at: Timestamp) -> Result<(), String> {
        let (number, epoch) = (self.find(key)?, self.epoch());
        let known = &self.steps[number];
        let is_inherited = known.epoch < epoch;
        let may = match known.phase {
            Phase::Pending | Phase::Retrying => true,
            Phase::Running | Phase::Failed | Phase::Blocked => is_inherited,
            Phase::Succeeded => is_inherited && !matches!(key, StepKey::Publish(_) | StepKey::Handback(_)),
        };
        let told = known.phase;
        let follows = attempt == known.attempts + 1;
        let unmet = self.unmet(&self.plan.steps[number]).cloned();
        let step = &mut self.steps[number];
        step.phase = Phase::Running;
        (step.epoch, step.attempts, step.at) = (epoch, attempt, Some(at));
        step.begun.insert(epoch);
        if let Some(unmet) = unmet {
            return Err(format!("{key} began before {unmet}"));
        }
        match (may, follows) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("{key} began while it is {told:?}")),
            (_, false) => Err(format!("attempt {attempt} of {key} is not the next one")),
        }
    }

    fn succeeded(
        &mut self,
        key: &StepKey,
        attempt: u32,
        run: &RunId,
        published: &BTreeMap<Place, RunId>,
        claims: &BTreeMap<Place, RunId>,
    ) -> Result<(), String> {
        let (number, epoch) = (self.find(key)?, self.epoch());
        let home = match key {
            StepKey::Publish(store) => self.home_of(store).cloned(),
            _ => None,
        };
        let restored = |store: &StoreId| {
            home.as_ref().is_some_and(|home| published.get(&(home.clone(), store.clone())) == Some(run))
        };
        let step = &mut self.steps[number];
        let runs = step.phase == Phase::Running && step.epoch == epoch;
        let is_found = matches!(key, StepKey::Publish(_))
            && step.epoch < epoch
            && matches!(step.phase, Phase::Running | Phase::Retrying | Phase::Failed);
        let follows = attempt == step.attempts;
        let was = step.phase;
        step.phase = Phase::Succeeded;
        step.has_succeeded = true;
        step.epoch = epoch;
        if !(runs || is_found) || !follows {
            return Err(format!("{key} (attempt {attempt}) succeeded while it is {was:?}"));
        }
        match key {
            StepKey::Publish(store) if !restored(store) => {
                Err(format!("{store} is said to be published, and its shard knows nothing of it"))
            }
            StepKey::Handback(site)
                if claims.iter().any(|((_, store), by)| store.site == *site && by == run) =>
            {
                Err(format!("{site} is said to be given back, and is claimed still"))
            }
            _ => Ok(()),
        }
    }

    fn failed(&mut self, key: &StepKey, will_retry: bool) -> Result<(), String> {
        let (number, epoch) = (self.find(key)?, self.epoch());
        let step = &mut self.steps[number];
        let runs = step.phase == Phase::Running && step.epoch == epoch;
        step.phase = if will_retry { Phase::Retrying } else { Phase::Failed };
        runs.then_some(()).ok_or_else(|| format!("{key} failed and does not run"))
    }

    fn blocked(&mut self, key: &StepKey, by: &StepKey) -> Result<(), String> {
        let (number, cause, epoch) = (self.find(key)?, self.find(by)?, self.epoch());
        let may = match self.steps[number].phase {
            Phase::Pending => true,
            Phase::Succeeded => false,
            _ => self.steps[number].epoch < epoch,
        };
        let is_failed = self.steps[cause].phase == Phase::Failed;
        let step = &mut self.steps[number];
        (step.phase, step.epoch) = (Phase::Blocked, epoch);
        if !may || !is_failed || !self.depends_on(number, cause) {
            return Err(format!("{key} is said to be blocked by {by}, which does not block it"));
        }
        Ok(())
    }

    fn depends_on(&self, step: usize, cause: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut stack = vec![step];
        while let Some(step) = stack.pop() {
            if step == cause && !seen.is_empty() {
                return true;
            }
            if seen.insert(step) {
                stack.extend(self.plan.steps[step].after.iter().map(|&edge| edge as usize));
            }
        }
        false
    }

    fn whole(&self, restored: u64, failed: u64) -> Result<(), String> {
        let open = self
            .plan
            .steps
            .iter()
            .zip(&self.steps)
            .find(|(_, step)| !matches!(step.phase, Phase::Succeeded | Phase::Failed | Phase::Blocked));
        if let Some((step, _)) = open {
            return Err(format!("it is finished, and {} has not ended", step.key));
        }
        let handed_back = self.handed_back().count() as u64;
        let sites: BTreeSet<&SiteId> = self.plan.steps.iter().filter_map(|step| step.key.site()).collect();
        if (restored, failed) != (handed_back, sites.len() as u64 - handed_back) {
            return Err(format!(
                "it says {restored} sites restored and {failed} failed, and {handed_back} are"
            ));
        }
        Ok(())
    }

    /// Sites that were given back.
    pub(super) fn handed_back(&self) -> impl Iterator<Item = &SiteId> {
        self.plan.steps.iter().zip(&self.steps).filter_map(|(planned, step)| match &planned.key {
            StepKey::Handback(site) if step.phase == Phase::Succeeded => Some(site),
            _ => None,
        })
    }

    /// Steps that have not ended, by the auditor's reading.
    pub(super) fn open_steps(&self) -> impl Iterator<Item = String> {
        let open = |step: &Step| !matches!(step.phase, Phase::Succeeded | Phase::Failed | Phase::Blocked);
        let told = move |(planned, step): (&PlanStep, &Step)| {
            open(step).then(|| format!("{} ({:?})", planned.key, step.phase))
        };
        self.plan.steps.iter().zip(&self.steps).filter_map(told)
    }

    /// Where the engine's fold says something else than the auditor of the record's step.
    fn disagreement(&self, record: &Record) -> Option<String> {
        let key = match record {
            Record::Started { step, .. }
            | Record::Succeeded { step, .. }
            | Record::Failed { step, .. }
            | Record::Blocked { step, .. } => step,
            _ => return None,
        };
        let theirs = match self.state.step(key)?.phase {
            StepPhase::Pending => Phase::Pending,
            StepPhase::Running => Phase::Running,
            StepPhase::Retrying => Phase::Retrying,
            StepPhase::Succeeded => Phase::Succeeded,
            StepPhase::Failed => Phase::Failed,
            StepPhase::Blocked => Phase::Blocked,
        };
        let ours = self.steps[*self.index.get(key)?].phase;
        (ours != theirs).then(|| format!("{key} is {ours:?}, and the engine folds it to {theirs:?}"))
    }

    /// A pool that holds more than it has room for, by the journal.
    fn pool_above_capacity(&self) -> Option<String> {
        let running = self.plan.steps.iter().zip(&self.steps);
        let running = running.filter(|(_, step)| step.phase == Phase::Running && step.epoch == self.epoch());
        let mut batches: BTreeSet<(u32, Option<Timestamp>)> = BTreeSet::new();
        let counted = running.filter(|(planned, step)| match planned.group {
            Some(group) => batches.insert((group, step.at)),
            None => true,
        });
        above(&self.plan, counted.map(|(planned, _)| planned))
    }

    /// The same of publishes that are under way, a batch each.
    pub(super) fn above_capacity<'a>(&self, batches: impl Iterator<Item = &'a [StoreId]>) -> Option<String> {
        let first = |stores: &[StoreId]| {
            let number = self.index.get(&StepKey::Publish(stores.first()?.clone()))?;
            self.plan.steps.get(*number)
        };
        above(&self.plan, batches.filter_map(first))
    }

    /// Why a store may not become live now.
    pub(super) fn may_publish(&self, shard: &ShardName, store: &StoreId, epoch: Epoch) -> Option<String> {
        if self.home_of(store) != Some(shard) {
            return Some(format!("its plan has it elsewhere than in shard {shard}"));
        }
        let number = match self.find(&StepKey::Publish(store.clone())) {
            Ok(number) => number,
            Err(wrong) => return Some(wrong),
        };
        if !self.steps[number].begun.contains(&epoch) {
            return Some(format!("no entry says that epoch {epoch} began it"));
        }
        let unmet =
            self.plan.steps[number].after.iter().find(|&&edge| !self.steps[edge as usize].has_succeeded);
        unmet.map(|&edge| format!("before {}", self.plan.steps[edge as usize].key))
    }

    /// Whether claims of a site may be given back: its hand-back began, or the run is being given up.
    pub(super) fn may_release(&self, site: &SiteId) -> bool {
        let handback = self.index.get(&StepKey::Handback(site.clone())).map(|&number| &self.steps[number]);
        let begun = handback.is_some_and(|step| step.attempts > 0);
        begun || self.is_abandoning
    }
}

fn above<'a>(plan: &Plan, steps: impl Iterator<Item = &'a PlanStep>) -> Option<String> {
    let mut held: BTreeMap<&str, u64> = BTreeMap::new();
    for step in steps {
        for (pool, units) in step.demand.iter() {
            *held.entry(pool).or_default() += units;
        }
    }
    let over = held.into_iter().find(|(pool, held)| plan.pools.get(*pool).is_none_or(|room| held > room));
    over.map(|(pool, held)| format!("{held} units of pool `{pool}` are held"))
}
