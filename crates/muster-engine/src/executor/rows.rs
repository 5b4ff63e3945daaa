//! What the executor reads of the repository: rows at the recovery points, and the change log.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use muster_repo::log::LogChange;
use muster_repo::{RangeLimits, RangeReader, Repository};
use muster_types::ShardName;
use muster_types::plan::{Plan, StepKey, TableInput};

use super::context::restored;
use super::log::ShardLog;
use crate::driver::LoggedChange;
use crate::journal::{RunState, StepPhase};

/// Everything that the run reads, so that each object is read once.
pub(super) struct RowSource {
    pub(super) reader: RangeReader,
    repository: Repository,
    logs: Mutex<HashMap<ShardName, Arc<ShardLog>>>,
}

impl RowSource {
    /// A source for the stores that are not published yet.
    pub(super) fn new(repository: &Repository, plan: &Plan, state: &RunState) -> Self {
        let mut ranges: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        for (store, planned) in plan.sites.iter().flat_map(restored) {
            let staged = |key| state.step(&key).is_some_and(|step| step.phase == StepPhase::Succeeded);
            if !staged(StepKey::Publish(store.clone())) && !staged(StepKey::Stage(store)) {
                add_inputs(&planned.tables, &mut ranges);
            }
        }
        for (shard, provision) in &plan.provisions {
            let done = state.step(&StepKey::Provision(shard.clone()));
            if done.is_some_and(|step| step.phase != StepPhase::Succeeded) {
                add_inputs(&provision.tables, &mut ranges);
            }
        }
        let object = |(object, ranges)| Some((plan.objects.get(object as usize)?.clone(), ranges));
        let wanted = ranges.into_iter().filter_map(object).collect();
        Self {
            reader: RangeReader::new(Arc::clone(repository.objects()), wanted, RangeLimits::default()),
            repository: repository.clone(),
            logs: Mutex::default(),
        }
    }

    /// A reader for what the steps of restoring have read already.
    pub(super) fn reader_of_its_own(&self) -> RangeReader {
        RangeReader::new(Arc::clone(self.repository.objects()), Vec::new(), RangeLimits::default())
    }

    /// The change log of a shard.
    pub(super) fn log(&self, shard: &ShardName) -> Arc<ShardLog> {
        // The map is whole after a panic: its only change is one insertion.
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let log = || Arc::new(ShardLog::new(&self.repository, shard));
        Arc::clone(logs.entry(shard.clone()).or_insert_with(log))
    }
}

fn add_inputs(tables: &[TableInput], ranges: &mut BTreeMap<u32, Vec<(u64, u64)>>) {
    for TableInput { base, changes, .. } in tables {
        let base = base.iter().map(|base| (base.object, &base.chunks));
        for (object, chunks) in base.chain(changes.iter().map(|changes| (changes.object, &changes.chunks))) {
            ranges.entry(object).or_default().extend(chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)));
        }
    }
}

/// A change of the repository's log, as drivers tell theirs.
pub(super) fn logged(change: LogChange) -> LoggedChange {
    let LogChange { table, columns, site, mark, change } = change;
    LoggedChange { table, columns, site, mark, change }
}
