//! What was true of every site at every commit: the states that the writers saw, in the order and with the times that the
//! server's own log gives their transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_services::Postgres;
use muster_tests::{Rows, TransactionEnd, position, transaction_ends};
use muster_types::{Position, Timestamp};

/// The rows of one store; empty while it is deleted.
pub(crate) type State = Arc<Rows>;

/// A transaction that changed a site.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) site: usize,
    pub(crate) xid: u32,
    /// What it left in the store of kind `metadata`, if it wrote there.
    pub(crate) directory: Option<State>,
    /// What it left in the store of kind `product:ledger`, if it wrote there.
    pub(crate) ledger: Option<State>,
}

/// An event in its place.
#[derive(Clone, Debug)]
struct Placed {
    position: Position,
    event: Event,
}

/// Everything that happened to the bank.
pub(crate) struct Truth {
    /// The shard of each site.
    shards: Vec<usize>,
    /// Of all shards and of everyone else, in the order of the log.
    ends: Vec<TransactionEnd>,
    /// By site, in the order of the log.
    sites: Vec<Vec<Placed>>,
    /// By shard: commits of its sites, in the order of the log.
    commits: Vec<Vec<TransactionEnd>>,
    from: Position,
}

/// Both stores of a site at a moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SiteState {
    pub(crate) directory: State,
    pub(crate) ledger: State,
}

impl SiteState {
    /// Both stores are there.
    pub(crate) fn is_whole(&self) -> bool {
        !self.directory.is_empty() && !self.ledger.is_empty()
    }

    pub(crate) fn rows(&self) -> Rows {
        let mut rows = (*self.directory).clone();
        rows.extend((*self.ledger).clone());
        rows
    }
}

impl Truth {
    /// The truth about sites of these shards, from now on.
    pub(crate) fn new(cluster: &Postgres, shards: Vec<usize>) -> Self {
        let from = position(&cluster.psql("postgres", "SELECT pg_current_wal_insert_lsn()").unwrap());
        let sites = vec![Vec::new(); shards.len()];
        let commits = vec![Vec::new(); shards.iter().max().map_or(0, |last| last + 1)];
        Self { shards, ends: Vec::new(), sites, commits, from }
    }

    /// Puts transactions that have committed in their place.
    pub(crate) fn settle(&mut self, cluster: &Postgres, told: Vec<Event>) {
        let new = transaction_ends(cluster, self.from);
        self.ends.extend(new.into_iter().filter(|end| end.position > self.from));
        self.from = self.ends.last().map_or(self.from, |end| end.position);
        let commits = self.ends.iter().filter(|end| end.committed);
        let by_xid: BTreeMap<u32, &TransactionEnd> = commits
            .flat_map(|end| end.subtransactions.iter().chain([&end.xid]).map(move |xid| (*xid, end)))
            .collect();
        for mut event in told {
            let end = by_xid.get(&event.xid).unwrap_or_else(|| panic!("no commit of {}", event.xid));
            self.commits[self.shards[event.site]].push((*end).clone());
            event.xid = end.xid;
            self.sites[event.site].push(Placed { position: end.position, event });
        }
        for placed in &mut self.sites {
            placed.sort_by_key(|placed| placed.position);
        }
        for commits in &mut self.commits {
            commits.sort_by_key(|end| end.position);
            commits.dedup();
        }
    }

    /// Both stores of a site at a moment: what the last commit left in the longest prefix of the shard's log without a
    /// commit time behind it. None in the microseconds in which a commit of someone else, which may or may not be in
    /// Muster's log of this shard, decides how long that is.
    pub(crate) fn at(&self, site: usize, at: Timestamp) -> Option<SiteState> {
        let last = |ends: &[TransactionEnd]| {
            ends.iter()
                .filter(|end| end.committed)
                .take_while(|end| end.at <= at)
                .last()
                .map(|end| end.position)
        };
        let longest = self.upto(site, last(&self.commits[self.shards[site]]));
        let shortest = self.upto(site, last(&self.ends));
        let same = Arc::ptr_eq(&longest.directory, &shortest.directory)
            && Arc::ptr_eq(&longest.ledger, &shortest.ledger);
        same.then_some(longest)
    }

    /// Both stores after everything up to a place in the log.
    fn upto(&self, site: usize, upto: Option<Position>) -> SiteState {
        let events = self.sites[site].iter().take_while(|placed| Some(placed.position) <= upto);
        let mut state = self.nothing(site);
        for Placed { event, .. } in events {
            state.directory = event.directory.clone().unwrap_or(state.directory);
            state.ledger = event.ledger.clone().unwrap_or(state.ledger);
        }
        state
    }

    /// Before its first event a site is what that one left: nobody asks for earlier times.
    fn nothing(&self, site: usize) -> SiteState {
        let first = &self.sites[site].first().expect("a site was opened").event;
        let state = |state: &Option<State>| state.clone().expect("it was opened whole");
        SiteState { directory: state(&first.directory), ledger: state(&first.ledger) }
    }

    /// Both stores now.
    pub(crate) fn now(&self, site: usize) -> SiteState {
        self.upto(site, Some(Position(u64::MAX)))
    }

    /// The times of a site's commits.
    pub(crate) fn times(&self, site: usize) -> Vec<Timestamp> {
        let commits = &self.commits[self.shards[site]];
        let time = |placed: &Placed| {
            let found = commits.binary_search_by_key(&placed.position, |end| end.position);
            commits[found.expect("a commit of its shard")].at
        };
        self.sites[site].iter().map(time).collect()
    }

    /// Every commit that was told, with its site.
    pub(crate) fn commits(&self) -> impl Iterator<Item = (usize, u32, Timestamp)> {
        self.sites.iter().enumerate().flat_map(|(site, placed)| {
            placed.iter().zip(self.times(site)).map(move |(placed, at)| (site, placed.event.xid, at))
        })
    }
}
