//! Which sites and which moment a drill takes: what is asked of the repository for [`muster_plan::drill`].

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::drill::{Candidate, choose, covered, moment};
use muster_plan::planner::select_placed;
use muster_repo::Repository;
use muster_types::catalog::Catalog;
use muster_types::drill::{DrillClass, DrillRecord, DrillSpec, Stratum, Verdict};
use muster_types::incident::{Incident, IncidentSite};
use muster_types::request::Placement;
use muster_types::topology::Topology;
use muster_types::{ShardName, SiteId, Timestamp, format};

use crate::error::DrillError;

/// Sites that are looked at beyond those asked for, where the first ones had no rows at the moment.
const LOOKS_MAX: usize = 1000;

/// What is rehearsed.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Sites and their targets; a second state is restored over the first in a drill of corruption.
    pub rounds: Vec<Incident>,
    /// Which of the sites' stores.
    pub placement: Placement,
}

/// What a choice is made of.
#[derive(Clone, Copy)]
pub struct Chooser<'a> {
    /// The drill file.
    pub spec: &'a DrillSpec,
    /// The incident that it replays.
    pub incident: Option<&'a Incident>,
    /// The topology.
    pub topology: &'a Topology,
    /// What the repository holds of every site.
    pub catalog: &'a Catalog,
    /// Earlier drills.
    pub history: &'a [DrillRecord],
    /// The seed.
    pub seed: u64,
    /// Now.
    pub now: Timestamp,
}

/// Fills in the facts of the sites that strata ask for, as they were at `at`.
///
/// # Errors
/// What the repository answers.
pub async fn read_facts(
    repository: &Repository,
    topology: &Topology,
    catalog: &mut Catalog,
    spec: &DrillSpec,
    at: Timestamp,
) -> Result<(), DrillError> {
    let needed = [Stratum::Tier, Stratum::Products].iter().any(|stratum| spec.strata.contains(stratum));
    if needed && spec.class != DrillClass::LostShard && spec.incident.is_none() {
        let all: Vec<IncidentSite> = catalog.sites.keys().map(|site| asked(site.clone(), at)).collect();
        muster_inspect::read_facts(repository, topology, catalog, &all).await?;
    }
    Ok(())
}

fn asked(site: SiteId, target: Timestamp) -> IncidentSite {
    IncidentSite { site, target, outage_at: None, before: BTreeMap::new(), note: None }
}

impl Chooser<'_> {
    /// The moment.
    ///
    /// # Errors
    /// [`DrillError::Input`] where the drill file names one that is not promised, or none can be restored.
    pub fn moment(&self) -> Result<Timestamp, DrillError> {
        let back = |seconds: u64| {
            self.now.plus_micros(-i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX))
        };
        let (from, to) = (back(self.spec.window_seconds), back(self.spec.settle_seconds));
        if let Some(at) = self.spec.at {
            if at < from || at > self.now {
                return Err(DrillError::Input(format!(
                    "the moment {at} is outside of the promised window, {from} to {}; correct `at` or `window_seconds`",
                    self.now
                )));
            }
            return Ok(at);
        }
        let shards: BTreeSet<ShardName> = match &self.spec.shard {
            Some(shard) => [shard.clone()].into(),
            None => {
                let known = |shard: &&ShardName| self.catalog.shards.contains_key(*shard);
                self.topology.shards.keys().filter(known).cloned().collect()
            }
        };
        let none = || {
            DrillError::Input(format!(
                "the repository covers no moment of the promised window, {from} to {to}; run `muster capture`, or lower \
                 `settle_seconds`"
            ))
        };
        let (first, last) = covered(self.catalog, &shards).ok_or_else(none)?;
        moment(from.max(first), to.min(last), self.seed).ok_or_else(none)
    }

    /// Sites, moments and stores.
    ///
    /// # Errors
    /// [`DrillError::Input`] where no site matches.
    pub fn choose(&self, at: Timestamp) -> Result<Choice, DrillError> {
        if let Some(incident) = self.incident {
            let incident = Incident { declared_at: self.now, ..incident.clone() };
            return Ok(Choice { rounds: vec![incident], placement: Placement::default() });
        }
        let mut placement = Placement::default();
        if self.spec.class == DrillClass::LostShard {
            let shard = self.lost_shard()?;
            let held =
                |site: &&SiteId| self.catalog.sites[*site].traces.iter().any(|trace| trace.shard == shard);
            let sites: Vec<SiteId> = self.catalog.sites.keys().filter(held).cloned().collect();
            placement.only_shards.insert(shard);
            let sites = self.present(sites, usize::MAX, at, &placement)?;
            return Ok(Choice { rounds: vec![self.incident_of(sites, at)], placement });
        }
        let drilled = self.drilled();
        let lives = |shard: &ShardName| match &self.spec.shard {
            Some(wanted) => wanted == shard,
            None => self.topology.shards.contains_key(shard),
        };
        let candidates: Vec<Candidate> = self
            .catalog
            .sites
            .iter()
            .filter(|(_, history)| history.traces.iter().any(|trace| lives(&trace.shard)))
            .map(|(site, history)| Candidate::of(site, history, drilled.get(site).copied()))
            .collect();
        let count = usize::try_from(self.spec.sites).unwrap_or(usize::MAX);
        let in_turn = choose(&candidates, count.saturating_add(LOOKS_MAX), &self.spec.strata, self.seed);
        let sites = self.present(in_turn, count, at, &placement)?;
        if self.spec.class == DrillClass::OneStore {
            let of = asked(sites[0].clone(), at);
            let stores = select_placed(self.topology, self.catalog, &[of], &placement)?;
            let number = usize::try_from(self.seed % stores.len().max(1) as u64).unwrap_or(0);
            placement.only_kinds.extend(stores.get(number).map(|store| store.store.kind.clone()));
        }
        let mut rounds = vec![self.incident_of(sites.clone(), at)];
        if self.spec.class == DrillClass::Corruption {
            // What is wrong is the newest state that is durable; what is right came before it.
            let shards = candidates.iter().flat_map(|candidate| candidate.shards.iter().cloned()).collect();
            let (_, last) = covered(self.catalog, &shards).unwrap_or((at, at));
            rounds.insert(0, self.incident_of(sites, last.max(at)));
        }
        Ok(Choice { rounds, placement })
    }

    /// The first `count` of `sites` that have rows at the moment.
    fn present(
        &self,
        sites: Vec<SiteId>,
        count: usize,
        at: Timestamp,
        placement: &Placement,
    ) -> Result<Vec<SiteId>, DrillError> {
        let mut present = Vec::new();
        for site in sites {
            if present.len() == count {
                break;
            }
            let stores = select_placed(self.topology, self.catalog, &[asked(site.clone(), at)], placement)?;
            if stores.iter().any(|store| store.rows > 0) {
                present.push(site);
            }
        }
        if present.is_empty() {
            let of =
                self.spec.shard.as_ref().map_or_else(String::new, |shard| format!(" of shard `{shard}`"));
            return Err(DrillError::Input(format!(
                "no site{of} has rows at {at}; `muster sites` lists the sites that the repository knows"
            )));
        }
        Ok(present)
    }

    fn lost_shard(&self) -> Result<ShardName, DrillError> {
        if let Some(shard) = &self.spec.shard {
            return match self.topology.shards.contains_key(shard) {
                true => Ok(shard.clone()),
                false => Err(DrillError::Input(format!("the topology declares no shard `{shard}`"))),
            };
        }
        let lost = |record: &&DrillRecord| {
            record.class == DrillClass::LostShard && record.verdict != Verdict::Stopped
        };
        let mut last: BTreeMap<&ShardName, Timestamp> = BTreeMap::new();
        for record in self.history.iter().filter(lost) {
            for store in record.sites.iter().flat_map(|site| &site.stores) {
                let at = last.entry(&store.shard).or_insert(record.began_at);
                *at = record.began_at.max(*at);
            }
        }
        let known = self.topology.shards.keys().filter(|shard| self.catalog.shards.contains_key(*shard));
        let longest_ago = known.min_by_key(|shard| (last.get(shard).copied(), (*shard).clone()));
        longest_ago.cloned().ok_or_else(|| {
            DrillError::Input(
                "the repository holds no shard of the topology yet; run `muster capture`".to_owned(),
            )
        })
    }

    /// When each site was drilled last.
    fn drilled(&self) -> BTreeMap<SiteId, Timestamp> {
        let mut last = BTreeMap::new();
        for record in self.history.iter().filter(|record| record.verdict != Verdict::Stopped) {
            for site in &record.sites {
                let at = last.entry(site.site.clone()).or_insert(record.began_at);
                *at = record.began_at.max(*at);
            }
        }
        last
    }

    fn incident_of(&self, sites: Vec<SiteId>, at: Timestamp) -> Incident {
        Incident {
            format: format::FORMAT,
            title: format!(
                "drill {}: {} of {} sites to {at}",
                self.spec.name,
                self.spec.class.name(),
                sites.len()
            ),
            declared_at: self.now,
            id_source: format!("drawn with seed {}", self.seed),
            sites: sites.into_iter().map(|site| asked(site, at)).collect(),
        }
    }
}
