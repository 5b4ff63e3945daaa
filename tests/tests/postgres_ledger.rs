//! A bank on several PostgreSQL shards: money moves between the accounts of a site, and the sum of a site is the same in
//! every committed state. Beside writers that never stop, sites are deleted and brought back to random times: each is
//! equal, whole, to what was true at that commit.
//!
//! `MUSTER_SEED=N` chooses the times and transactions, `MUSTER_CASES=N` how many restores there are. What several writers
//! do at the same moment is not the seed's to say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed test may say so by a panic"
)]

mod ledger;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledger::bank::{SCHEMA, check_invariant};
use ledger::branch::{Branch, Site};
use ledger::responder::Responder;
use ledger::truth::{Event, SiteState, Truth};
use muster_services::Postgres;
use muster_tests::{Rows, cases, differences, now, seed, until};
use muster_types::Timestamp;
use muster_types::catalog::Catalog;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const SHARDS: usize = 3;
const SITES: usize = 78;
const WRITERS: u64 = 4;

/// Sites brought back at once; the others go on being written.
const SITES_A_ROUND: usize = 52;

/// By default.
const RESTORES: u64 = 208;

/// Between two transactions of a writer, so that capture, not the test, is what is busy.
const PAUSE_MILLISECONDS_MAX: u64 = 120;

/// Transactions between two rounds, at least.
const TRANSACTIONS_A_ROUND: usize = 250;

/// Times that are only looked at, over the whole history, when all is over.
const LOOKS: usize = 60;

/// The bank.
struct Bank {
    cluster: Postgres,
    urls: Vec<String>,
    sites: Vec<Site>,
    /// Transactions that have committed and are not in their place yet.
    told: Mutex<Vec<Event>>,
}

impl Bank {
    fn new() -> Self {
        let cluster = Postgres::own(&[("wal_keep_size", "8GB"), ("max_wal_size", "2GB")]).unwrap();
        let database = |_| {
            let database = cluster.create_database("bank").unwrap();
            cluster.psql(&database, SCHEMA).unwrap();
            cluster.url(&database)
        };
        let urls = (0..SHARDS).map(database).collect();
        let sites = (0..SITES).map(|number| Site::new(format!("s{number:02}"), number % SHARDS)).collect();
        Self { cluster, urls, sites, told: Mutex::new(Vec::new()) }
    }

    /// Makes all sites; the truth begins here.
    fn open(&self) -> Truth {
        let mut truth = Truth::new(&self.cluster, self.sites.iter().map(|site| site.shard).collect());
        let mut branches = self.branches(0);
        for (number, site) in self.sites.iter().enumerate() {
            self.tell(branches[site.shard].open(number, site));
        }
        truth.settle(&self.cluster, self.take_told());
        truth
    }

    fn branches(&self, seed: u64) -> Vec<Branch> {
        let branch = |(number, url): (usize, &String)| Branch::new(url, seed * SHARDS as u64 + number as u64);
        self.urls.iter().enumerate().map(branch).collect()
    }

    fn tell(&self, event: Event) {
        self.told.lock().unwrap().push(event);
    }

    fn take_told(&self) -> Vec<Event> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    fn name(&self, number: usize) -> String {
        self.sites[number].name.clone()
    }
}

/// Moves money, wherever the door is open, until told to stop.
fn write(bank: &Bank, seed: u64, stop: &AtomicBool) {
    let mut branches = bank.branches(seed);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let number = random.random_range(0..SITES);
        let site = &bank.sites[number];
        if let Ok(_open) = site.door.try_read()
            && let Some(event) = branches[site.shard].transact(number, site)
        {
            bank.tell(event);
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..PAUSE_MILLISECONDS_MAX)));
    }
}

/// Tells the writers to stop when it is dropped, also by a failure.
struct Writers<'a>(&'a AtomicBool);

impl Drop for Writers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Someone who deletes sites, looks at them as they were, and brings them back.
struct Incident<'b> {
    bank: &'b Bank,
    truth: Truth,
    responder: Responder,
    branches: Vec<Branch>,
    random: ChaCha8Rng,
    /// Nothing is known before.
    began: Timestamp,
    seed: u64,
    /// Moments in which a commit of someone else decides.
    undecided: u32,
}

impl Incident<'_> {
    /// A random moment, half of them next to a commit of the site, at which the truth is `wanted`.
    fn moment(
        &mut self,
        site: usize,
        last: Timestamp,
        wanted: impl Fn(&SiteState) -> bool,
    ) -> (Timestamp, SiteState) {
        let times = self.truth.times(site);
        for _ in 0..1000 {
            let at = if self.random.random_bool(0.5) {
                times.choose(&mut self.random).unwrap().plus_micros(self.random.random_range(-1..=1))
            } else {
                Timestamp::from_micros(self.random.random_range(self.began.as_micros()..last.as_micros()))
            };
            if at <= self.began || at >= last {
                continue;
            }
            match self.truth.at(site, at) {
                Some(state) if wanted(&state) => return (at, state),
                Some(_) => {}
                None => self.undecided += 1,
            }
        }
        panic!("no such moment of site {site} between {} and {last}", self.began)
    }

    /// Fails unless `found` is the truth.
    fn same(&self, what: &str, site: usize, at: Timestamp, found: &Rows, truth: &SiteState) {
        let difference = differences(found, &truth.rows());
        let name = &self.bank.sites[site].name;
        assert!(difference.is_empty(), "seed {}: {what} {name} at {at}:\n{difference}", self.seed);
        if truth.is_whole() {
            check_invariant(name, found);
        }
    }

    /// Deletes so many sites and brings each back to a moment of its own.
    fn round(&mut self, round: u64, count: usize) {
        let mut numbers: Vec<usize> = (0..SITES).collect();
        numbers.shuffle(&mut self.random);
        numbers.truncate(count);
        let _closed: Vec<_> =
            numbers.iter().map(|number| self.bank.sites[*number].door.write().unwrap()).collect();
        self.truth.settle(&self.bank.cluster, self.bank.take_told());
        let last = clock();
        let targets: BTreeMap<usize, (Timestamp, SiteState)> =
            numbers.iter().map(|number| (*number, self.moment(*number, last, SiteState::is_whole))).collect();
        for number in &numbers {
            let site = &self.bank.sites[*number];
            self.bank.tell(self.branches[site.shard].delete(*number, site));
        }
        self.responder.wait();

        // First by looking only, then for good.
        let catalog = self.responder.catalog(numbers.iter().map(|number| self.bank.name(*number)));
        self.look(
            &catalog,
            "looking at",
            targets.iter().map(|(number, (at, truth))| (*number, *at, truth.clone())),
        );
        let named = targets.iter().map(|(number, (at, _))| (self.bank.name(*number), *at)).collect();
        self.responder.restore(&format!("round-{round}"), &named);
        for (number, (at, truth)) in targets {
            let site = &self.bank.sites[number];
            let branch = &mut self.branches[site.shard];
            let (found, [directory, ledger]) = (branch.live(site), branch.made_by(site));
            self.same("restored", number, at, &found, &truth);
            let SiteState { directory: directory_rows, ledger: ledger_rows } = truth;
            let made = |xid, directory, ledger| Event { site: number, xid, directory, ledger };
            self.bank.tell(made(directory, Some(directory_rows), None));
            self.bank.tell(made(ledger, None, Some(ledger_rows)));
        }
    }

    /// When nobody writes any more: the live rows are the truth, and so is every moment of the whole history.
    fn at_the_end(&mut self) {
        self.truth.settle(&self.bank.cluster, self.bank.take_told());
        self.responder.wait();
        let last = clock();
        for (number, site) in self.bank.sites.iter().enumerate() {
            let (found, truth) = (self.branches[site.shard].live(site), self.truth.now(number));
            self.same("live", number, last, &found, &truth);
        }
        for (site, xid, at) in self.truth.commits().step_by(7) {
            let branch = &mut self.branches[self.bank.sites[site].shard];
            assert_eq!(branch.commit_time(xid), at.as_micros(), "two words of the server on commit {xid}");
        }
        let catalog = self.responder.catalog(self.bank.sites.iter().map(|site| site.name.clone()));
        let looks: Vec<_> = (0..LOOKS)
            .map(|_| {
                let number = self.random.random_range(0..SITES);
                let (at, truth) = self.moment(number, last, |_| true);
                (number, at, truth)
            })
            .collect();
        self.look(&catalog, "looking back at", looks.into_iter());
    }

    /// Reads sites from the repository alone.
    fn look(
        &mut self,
        catalog: &Catalog,
        what: &str,
        wanted: impl Iterator<Item = (usize, Timestamp, SiteState)>,
    ) {
        let wanted: Vec<_> = wanted.collect();
        let named: Vec<_> = wanted.iter().map(|(number, at, _)| (self.bank.name(*number), *at)).collect();
        let found = self.responder.look(catalog, &named);
        for ((number, at, truth), found) in wanted.iter().zip(&found) {
            self.same(what, *number, *at, found, truth);
        }
    }
}

fn clock() -> Timestamp {
    now().parse().unwrap()
}

#[test]
fn sites_come_back_as_they_were_at_their_commit() {
    let (seed, restores) = (seed(1), cases(RESTORES));
    let bank = Bank::new();
    let truth = bank.open();
    let mut responder = Responder::new(&bank.urls);
    responder.folder.muster(&["capture", "init"]).ok();
    responder.folder.muster(&["capture", "--once"]).ok();
    let began = clock();
    responder.folder.follow();
    let (branches, random) = (bank.branches(1), ChaCha8Rng::seed_from_u64(seed));
    let mut incident =
        Incident { bank: &bank, truth, responder, branches, random, began, seed, undecided: 0 };

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let until_stopped = Writers(&stop);
        let (bank, stop) = (&bank, &stop);
        let writers: Vec<_> = (1..=WRITERS)
            .map(|number| scope.spawn(move || write(bank, seed.wrapping_mul(1000) + 1 + number, stop)))
            .collect();
        let (mut restored, mut round) = (0, 0);
        while restored < restores {
            until("money to move", || {
                assert!(!writers.iter().any(|writer| writer.is_finished()), "a writer failed");
                bank.told.lock().unwrap().len() >= TRANSACTIONS_A_ROUND
            });
            let count = (restores - restored).min(SITES_A_ROUND as u64);
            round += 1;
            incident.round(round, count as usize);
            restored += count;
            println!("{restored} sites restored");
        }
        drop(until_stopped);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer failed"));
    });
    incident.at_the_end();
    let (commits, undecided) = (incident.truth.commits().count(), incident.undecided);
    println!(
        "{commits} commits, {restores} sites restored, {LOOKS} looked back at, {undecided} moments undecided"
    );
}
