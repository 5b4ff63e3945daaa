//! One fleet with incident after incident: no site is a victim twice, and every judgement is of all that happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_demo::{DeletionLog, Reached};
use muster_types::StoreId;
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::StepKey;

use crate::incident::Incident;
use crate::world::World;

/// Incidents in one world.
#[derive(Debug)]
pub struct Series {
    /// The world.
    pub world: World,
    coming: Vec<usize>,
    log: DeletionLog,
    reached: Reached,
}

impl Series {
    /// So many victims are to come, all in all.
    pub fn of(world: World, victims: usize) -> Self {
        let coming = world.fleet.pick_victims(victims);
        assert_eq!(coming.len(), victims, "the fleet is too small");
        Self { world, coming, log: DeletionLog::default(), reached: Reached::new() }
    }

    /// Deletes the next victims.
    pub fn delete(&mut self, victims: usize, pace: Duration) -> Incident {
        let victims: Vec<usize> = self.coming.drain(..victims).collect();
        let incident = Incident::delete_these(&self.world, &victims, pace);
        self.log.sites.extend(incident.log.sites.iter().cloned());
        incident
    }

    /// The stores of an incident's victims.
    pub fn stores(&self, incident: &Incident) -> usize {
        incident.log.sites.iter().map(|site| self.world.fleet.sites[site.index].kinds.len()).sum()
    }

    /// Everything that was ever deleted is as it was, restored by one of `runs` or in an earlier round; each store was
    /// published once; no neighbour differs; nothing is claimed any more. Writers must have stopped.
    #[track_caller]
    pub fn is_undone(&mut self, runs: &[&str]) {
        for run in runs {
            for site in self.world.report(run).sites.into_iter().filter(|site| site.handed_back_at.is_some())
            {
                for store in site.stores {
                    let place = (site.site.as_str().to_owned(), store.kind.to_string());
                    self.reached.insert(place, store.reached.at.as_micros());
                }
            }
        }
        let interval = self.world.poll_micros_max();
        let verdict = self.world.fleet.judge(&self.log, &self.reached, interval).expect("a judgement");
        assert!(verdict.holds(), "seed {}, {runs:?}:\n{verdict}", self.world.seed);
        assert_eq!(verdict.victims, self.log.sites.len());
        self.every_store_was_published_once(runs);
        assert_eq!(self.world.claims(), 0, "claims after {runs:?}");
    }

    #[track_caller]
    fn every_store_was_published_once(&self, runs: &[&str]) {
        let mut published: BTreeMap<StoreId, BTreeSet<&str>> = BTreeMap::new();
        for run in runs {
            for record in self.journal(run).into_iter().flat_map(|entry| entry.records) {
                let Record::Succeeded { step: StepKey::Publish(store), .. } = record else { continue };
                let first = published.entry(store.clone()).or_default().insert(run);
                assert!(first, "{store} was published twice by run {run}");
            }
        }
        assert!(!published.is_empty(), "no store was published by {runs:?}");
        for (store, by) in published {
            assert_eq!(by.len(), 1, "{store} was published by {by:?}");
        }
    }

    /// The journal of a run, whose entries are numbered from 1 without a gap.
    #[track_caller]
    pub fn journal(&self, run: &str) -> Vec<JournalEntry> {
        let documents = self.world.documents(&format!("runs/{run}/journal"));
        let entries: Vec<JournalEntry> =
            documents.iter().map(|bytes| serde_json::from_slice(bytes).expect("an entry")).collect();
        assert!(entries.iter().map(|entry| entry.sequence).eq(1..=entries.len() as u64), "run {run}");
        entries
    }
}
