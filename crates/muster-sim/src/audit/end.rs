//! What must be true at the end of a run.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::{RunId, ShardName, SiteId, StoreId};

use super::run::RunAudit;
use super::{Audit, Truth};
use crate::shard::State;

/// Live rows of a store, by the tables that its truth names.
pub(super) fn live_of(state: &State, store: &StoreId, truth: &BTreeMap<StoreId, Truth>) -> Truth {
    let tables: BTreeSet<&str> =
        truth.get(store).into_iter().flatten().map(|(table, _)| table.as_str()).collect();
    let own = state
        .rows
        .iter()
        .filter(|((table, _), (site, _))| *site == store.site && tables.contains(table.as_str()));
    own.map(|(row, _)| row.clone()).collect()
}

impl Audit {
    /// Holds the shards against the truth: their rows by name.
    pub(crate) fn compare(&mut self, shards: &BTreeMap<ShardName, State>) {
        let mut expected: BTreeSet<(ShardName, String, String)> = self.neighbours.clone();
        for (shard, store) in self.published.keys() {
            let row = |(table, id): &(String, String)| (shard.clone(), table.clone(), id.clone());
            expected.extend(self.truth.get(store).into_iter().flatten().map(row));
        }
        let found: BTreeSet<(ShardName, String, String)> = shards
            .iter()
            .flat_map(|(shard, state)| {
                state.rows.keys().map(|(table, id)| (shard.clone(), table.clone(), id.clone()))
            })
            .collect();
        let differences: Vec<String> = expected
            .symmetric_difference(&found)
            .map(|row| {
                format!("{row:?} {}", if found.contains(row) { "should not be there" } else { "is missing" })
            })
            .collect();
        for difference in differences.into_iter().take(3) {
            self.violation(format!("at the end: {difference}"));
        }
    }

    /// Every site has come back, by one of the runs that could bring it.
    pub(crate) fn conclude(&mut self, refused: &BTreeSet<RunId>) {
        let lives = |run: &RunId| !refused.contains(run) && !self.is_abandoned(run);
        let given_up: BTreeSet<&SiteId> = self
            .published
            .iter()
            .filter(|(_, by)| self.is_abandoned(by))
            .map(|((_, store), _)| &store.site)
            .collect();
        let mut missing = Vec::new();
        for (name, run) in self.runs.iter().filter(|(name, _)| lives(name)) {
            if !run.is_open() {
                missing.push(format!("run {name} was never opened"));
                continue;
            }
            let open: Vec<String> = run.open_steps().take(3).collect();
            if !open.is_empty() {
                missing.push(format!("run {name} ended, and these steps never did: {}", open.join(", ")));
            }
            // A drill brings nothing back but for itself.
            let same = self.runs.values().filter(|other| match run.is_drill() {
                true => other.plan.id == run.plan.id,
                false => !other.is_drill(),
            });
            let back: BTreeSet<&SiteId> = same.flat_map(RunAudit::handed_back).collect();
            let sites = run.plan.sites.iter().map(|site| &site.site);
            let lost = sites.filter(|site| !back.contains(site) && !given_up.contains(site));
            missing
                .extend(lost.map(|site| format!("{site} never came back, though nothing failed any more")));
        }
        for missing in missing {
            self.violation(missing);
        }
    }
}
