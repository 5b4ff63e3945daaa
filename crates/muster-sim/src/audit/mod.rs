//! The auditor: looks at everything that others could see, and at every journal entry as it lands, and knows the truth.
//!
//! It shares no code with the engine but for one comparison: that the engine's own [`RunState`](muster_engine::journal::RunState)
//! takes every record, and agrees with what the auditor makes of it.
//!
//! # Rules
//! | rule | looked at |
//! |---|---|
//! | no publish before what it depends on, nothing visible that was not verified | at each publish, against the journal as it lies in the object store |
//! | no store published twice, none by a fenced epoch or without its claim | at each publish, against epochs and claims as they were raised and given |
//! | what becomes live is the truth, whole | at each publish, row by row |
//! | no effect before its record | at each publish |
//! | pools are never exceeded | at each start in the journal; publishes, as they run |
//! | journals have no gap, no record twice, none of a fenced engine; they fold | at each entry |
//! | a start follows all it depends on; blocked means blocked by a failed step that it depends on | at each entry |
//! | in a shard nobody acts before its epoch is raised there | at each claim and staging |
//! | a site that is half restored stays claimed until its hand-back | at each release |
//! | nothing is removed that an open run or a saved plan needs | at each removal |
//! | one server works on an occurrence of a job; chains have no gap | at each record of a chain |
//! | every step ends, every site comes back once nothing fails any more | at the end |
//! | published stores are the truth, all others untouched, neighbours as they wrote themselves | at the end |

mod end;
mod jobs;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_engine::RunSummary;
use muster_engine::driver::StoreWork;
use muster_types::journal::JournalEntry;
use muster_types::plan::Plan;
use muster_types::{Epoch, RunId, ShardName, StoreId};

use crate::shard::State;
use crate::tamper::is_journal;
use jobs::Jobs;
use run::RunAudit;

/// Violations kept: the first one is what matters.
const KEPT: usize = 20;

/// A store in a shard: a drill has stores of the same names in shards of its own.
pub(crate) type Place = (ShardName, StoreId);

/// Rows of a store: table and id.
pub(crate) type Truth = BTreeSet<(String, String)>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    runs: BTreeMap<RunId, RunAudit>,
    truth: BTreeMap<StoreId, Truth>,
    /// What neighbours wrote, and did not remove: shard, table, id.
    neighbours: BTreeSet<(ShardName, String, String)>,
    epochs: BTreeMap<(ShardName, RunId), Epoch>,
    claims: BTreeMap<Place, RunId>,
    published: BTreeMap<Place, RunId>,
    /// Publishes that a process has under way.
    publishing: BTreeMap<String, Vec<(RunId, Vec<StoreId>)>>,
    jobs: Jobs,
    violations: Vec<String>,
}

impl Audit {
    /// What the victims' stores hold at their recovery points.
    pub(crate) fn know_truth(&mut self, truth: BTreeMap<StoreId, Truth>) {
        self.truth = truth;
    }

    /// A run that may begin, with its true plan.
    pub(crate) fn know_run(&mut self, run: &RunId, plan: &Arc<Plan>) {
        self.runs.insert(run.clone(), RunAudit::new(plan));
    }

    /// The operator gave the plan of a run up: it needs nothing any more.
    pub(crate) fn forget_plan(&mut self, run: &RunId) {
        if let Some(known) = self.runs.get_mut(run) {
            known.is_given_up = true;
        }
    }

    /// The operator is about to give a run up.
    pub(crate) fn abandoning(&mut self, run: &RunId) {
        if let Some(known) = self.runs.get_mut(run) {
            known.is_abandoning = true;
        }
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        if self.violations.len() < KEPT {
            self.violations.push(what.into());
        }
    }

    /// Whether the run's first entry is in its journal.
    pub(crate) fn is_open(&self, run: &RunId) -> bool {
        self.runs.get(run).is_some_and(RunAudit::is_open)
    }

    /// Whether nothing is left to do in a run.
    pub(crate) fn is_restored(&self, run: &RunId) -> bool {
        self.runs.get(run).is_some_and(RunAudit::is_restored)
    }

    pub(crate) fn is_abandoned(&self, run: &RunId) -> bool {
        self.runs.get(run).is_some_and(RunAudit::is_abandoned)
    }

    /// An object was written.
    pub(crate) fn stored(&mut self, who: &str, key: &str, body: &[u8]) {
        if is_journal(key) {
            match serde_json::from_slice::<JournalEntry>(body) {
                Ok(entry) => self.entry(who, &entry),
                Err(error) => self.violation(format!("{who} wrote `{key}`, which is no entry: {error}")),
            }
        } else if key.starts_with("jobs/")
            && let Some(wrong) = self.jobs.stored(key, body)
        {
            self.violation(format!("{who} wrote `{key}`: {wrong}"));
        }
    }

    fn entry(&mut self, who: &str, entry: &JournalEntry) {
        let Some(run) = self.runs.get_mut(&entry.run) else {
            return self
                .violation(format!("{who} wrote into the journal of {}, which nobody began", entry.run));
        };
        let wrong = run.entry(entry, &self.published, &self.claims);
        for wrong in wrong {
            self.violation(format!("run {}, entry {} by {who}: {wrong}", entry.run, entry.sequence));
        }
    }

    /// What an engine said at its end is what its journal says.
    pub(crate) fn told(&mut self, summary: &RunSummary) {
        let Some(run) = self.runs.get(&summary.run) else { return };
        let back = run.handed_back().count() as u64;
        if back < summary.sites_restored {
            let told = summary.sites_restored;
            self.violation(format!("run {} said {told} sites restored, and {back} are", summary.run));
        }
    }

    /// An object was removed.
    pub(crate) fn deleted(&mut self, key: &str) {
        if key.starts_with("runs/") {
            self.violation(format!("`{key}` of a run was removed"));
        }
        let needs =
            |run: &RunAudit| run.is_needing() && run.plan.objects.iter().any(|object| object.key == key);
        let needing = self.runs.iter().find(|(_, run)| needs(run)).map(|(name, _)| name.clone());
        if let Some(run) = needing {
            self.violation(format!("`{key}` was removed, and run {run} or its saved plan needs it"));
        }
    }

    pub(crate) fn neighbour_wrote(&mut self, shard: &ShardName, table: &str, id: &str, is_there: bool) {
        let row = (shard.clone(), table.to_owned(), id.to_owned());
        if is_there {
            self.neighbours.insert(row);
        } else {
            self.neighbours.remove(&row);
        }
    }

    /// An epoch was raised in a shard.
    pub(crate) fn fenced(&mut self, shard: &ShardName, run: &RunId, epoch: Epoch) {
        let was_taken = self.runs.get(run).is_some_and(|known| known.was_taken(epoch));
        if !was_taken {
            self.violation(format!(
                "shard {shard} was fenced to epoch {epoch} of {run}, which no entry took"
            ));
        }
        let held = self.epochs.entry((shard.clone(), run.clone())).or_default();
        if *held > epoch {
            let held = *held;
            return self.violation(format!("shard {shard} went back from epoch {held} of {run} to {epoch}"));
        }
        *held = epoch;
    }

    fn check_epoch(&mut self, shard: &ShardName, (run, epoch): (&RunId, Epoch), what: &str) {
        let held = self.epochs.get(&(shard.clone(), run.clone())).copied().unwrap_or_default();
        if held > epoch {
            self.violation(format!("{what} in shard {shard} by epoch {epoch} of {run}, fenced by {held}"));
        }
        if held < epoch {
            self.violation(format!(
                "{what} in shard {shard} by epoch {epoch} of {run}, which was not raised there"
            ));
        }
    }

    /// Stores were given to a run.
    pub(crate) fn claimed(&mut self, shard: &ShardName, by: (&RunId, Epoch), stores: &[&StoreId]) {
        self.check_epoch(shard, by, "a claim");
        for &store in stores {
            let place = (shard.clone(), store.clone());
            match self.claims.get(&place) {
                Some(holder) if holder != by.0 => {
                    let holder = holder.clone();
                    self.violation(format!("{store} was given to {} while {holder} holds it", by.0));
                }
                _ => {}
            }
            self.claims.insert(place, by.0.clone());
        }
    }

    /// A store was staged.
    pub(crate) fn staged(&mut self, shard: &ShardName, work: &StoreWork) {
        self.check_epoch(shard, (&work.run, work.epoch), &format!("a staging of {}", work.store));
        if self.claims.get(&(shard.clone(), work.store.clone())) != Some(&work.run) {
            self.violation(format!("{} was staged for {}, which does not hold it", work.store, work.run));
        }
    }

    /// Claims were given back.
    pub(crate) fn released(&mut self, shard: &ShardName, (run, epoch): (&RunId, Epoch), stores: &[StoreId]) {
        let held = self.epochs.get(&(shard.clone(), run.clone())).copied().unwrap_or_default();
        if held > epoch {
            self.violation(format!(
                "shard {shard} took {} stores back from epoch {epoch} of {run}, fenced by {held}",
                stores.len()
            ));
        }
        for store in stores {
            let place = (shard.clone(), store.clone());
            if self.claims.get(&place) != Some(run) {
                continue;
            }
            let is_half = self.published.iter().any(|((_, known), by)| known.site == store.site && by == run);
            let may = self.runs.get(run).is_some_and(|known| known.may_release(&store.site));
            if is_half && !may {
                self.violation(format!(
                    "shard {shard} gave {store} back while its site is half restored by {run}"
                ));
            }
            self.claims.remove(&place);
        }
    }

    /// A process sends a publish of these stores.
    pub(crate) fn publish_begins(&mut self, who: &str, run: &RunId, stores: &[StoreId]) {
        let under_way = self.publishing.entry(who.to_owned()).or_default();
        under_way.push((run.clone(), stores.to_vec()));
        let Some(known) = self.runs.get(run) else { return };
        let batches = under_way.iter().filter(|(by, _)| by == run).map(|(_, stores)| stores.as_slice());
        if let Some(wrong) = known.above_capacity(batches) {
            self.violation(format!("{who} publishes: {wrong}"));
        }
    }

    /// It has its answer.
    pub(crate) fn publish_ends(&mut self, who: &str, run: &RunId, stores: &[StoreId]) {
        if let Some(under_way) = self.publishing.get_mut(who)
            && let Some(found) = under_way.iter().position(|(by, of)| by == run && of == stores)
        {
            under_way.remove(found);
        }
    }

    /// A store became live.
    pub(crate) fn published(&mut self, shard: &ShardName, work: &StoreWork, state: &State) {
        let store = &work.store;
        self.check_epoch(shard, (&work.run, work.epoch), &format!("a publish of {store}"));
        let place = (shard.clone(), store.clone());
        if self.claims.get(&place) != Some(&work.run) {
            self.violation(format!("{store} was published by {}, which does not hold it", work.run));
        }
        if let Some(by) = self.published.insert(place, work.run.clone()) {
            self.violation(format!("{store} was published twice, by {by} and by {}", work.run));
        }
        let wrong = self.runs.get(&work.run).map_or_else(
            || Some(format!("{} is no run", work.run)),
            |known| known.may_publish(shard, store, work.epoch),
        );
        if let Some(wrong) = wrong {
            self.violation(format!("{store} was published by {}: {wrong}", work.run));
        }
        let live = end::live_of(state, store, &self.truth);
        if self.truth.get(store) != Some(&live) {
            self.violation(format!("{store} is live with {} rows that are not the truth", live.len()));
        }
    }
}
