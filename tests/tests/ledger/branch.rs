//! Whoever moves money: one connection to a shard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use muster_tests::{Rows, connect, rows_of};
use postgres::Client;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::bank::{ACCOUNTS, DIRECTORY, LEDGER, MONEY, check_invariant};
use super::truth::{Event, State};

/// Most accounts of a site.
const ACCOUNTS_MAX: i64 = 10;

/// One site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) shard: usize,
    /// Names the states: never the same twice, also where a restore has turned time back.
    last: AtomicU64,
    /// Read by those who write; written by whoever deletes and restores.
    pub(crate) door: RwLock<()>,
}

impl Site {
    pub(crate) fn new(name: String, shard: usize) -> Self {
        Self { name, shard, last: AtomicU64::new(0), door: RwLock::new(()) }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A connection to a shard.
pub(crate) struct Branch {
    client: Client,
    random: ChaCha8Rng,
}

impl Branch {
    pub(crate) fn new(url: &str, seed: u64) -> Self {
        Self { client: connect(url), random: ChaCha8Rng::seed_from_u64(seed) }
    }

    fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    }

    fn number(&mut self, sql: &str) -> Option<i64> {
        let row = self.client.query_opt(sql, &[]).unwrap_or_else(|error| panic!("{error:?}: {sql}"))?;
        row.get(0)
    }

    /// Makes a site that has all its money on its first account.
    pub(crate) fn open(&mut self, number: usize, site: &Site) -> Event {
        let (name, seq) = (&site.name, site.next());
        self.run(&format!(
            "BEGIN; INSERT INTO site VALUES ('{name}', 'The site {name}', {seq}); INSERT INTO book VALUES ('{name}', {seq});
             INSERT INTO account SELECT '{name}', i, CASE i WHEN 1 THEN {MONEY} ELSE 0 END, NULL
             FROM generate_series(1, {ACCOUNTS}) i"
        ));
        self.commit(number, site)
    }

    /// Deletes a site.
    pub(crate) fn delete(&mut self, number: usize, site: &Site) -> Event {
        let name = &site.name;
        self.run(&format!(
            "BEGIN; DELETE FROM transfer WHERE site = '{name}'; DELETE FROM hold WHERE site = '{name}';
             DELETE FROM account WHERE site = '{name}'; DELETE FROM book WHERE site = '{name}';
             DELETE FROM site WHERE id = '{name}'"
        ));
        let xid = self.xid();
        self.run("COMMIT");
        Event { site: number, xid, directory: Some(State::default()), ledger: Some(State::default()) }
    }

    /// One transaction of a site, if it is there; some are rolled back.
    pub(crate) fn transact(&mut self, number: usize, site: &Site) -> Option<Event> {
        self.run("BEGIN");
        let name = &site.name;
        if self.number(&format!("SELECT seq FROM book WHERE site = '{name}' FOR UPDATE")).is_none() {
            self.run("ROLLBACK");
            return None;
        }
        let seq = site.next();
        for _ in 0..self.random.random_range(1..5) {
            self.act(name, seq);
        }
        self.run(&format!(
            "UPDATE book SET seq = {seq} WHERE site = '{name}'; UPDATE site SET seq = {seq} WHERE id = '{name}'"
        ));
        if self.random.random_bool(0.08) {
            self.run("ROLLBACK");
            return None;
        }
        Some(self.commit(number, site))
    }

    /// Ends a transaction, with what it leaves behind.
    fn commit(&mut self, number: usize, site: &Site) -> Event {
        let (directory, ledger) = (
            rows_of(&mut self.client, &DIRECTORY, &site.name),
            rows_of(&mut self.client, &LEDGER, &site.name),
        );
        let mut whole = directory.clone();
        whole.extend(ledger.clone());
        check_invariant(&site.name, &whole);
        let xid = self.xid();
        self.run("COMMIT");
        Event { site: number, xid, directory: Some(Arc::new(directory)), ledger: Some(Arc::new(ledger)) }
    }

    fn xid(&mut self) -> u32 {
        let xid = self.number("SELECT (txid_current() & 4294967295)::bigint");
        u32::try_from(xid.expect("a number")).expect("32 bits")
    }

    fn act(&mut self, name: &str, seq: u64) {
        match self.random.random_range(0..20) {
            0..9 => self.transfer(name, seq),
            9..11 => self.hold(name),
            11..13 => self.release(name),
            13 | 14 => self.open_account(name),
            15 => self.close_account(name),
            16 => self.renumber(name),
            17 => self.note(name),
            18 => self.changed_mind(name, seq),
            _ => self.tidy(name),
        }
    }

    fn account(&mut self, name: &str) -> i64 {
        let sql =
            format!("SELECT number::bigint FROM account WHERE site = '{name}' ORDER BY random() LIMIT 1");
        self.number(&sql).expect("a site has accounts")
    }

    fn transfer(&mut self, name: &str, seq: u64) {
        let (from, to) = (self.account(name), self.account(name));
        let amount = self.random.random_range(1..500);
        if from == to {
            return;
        }
        self.run(&format!(
            "UPDATE account SET balance = balance - {amount} WHERE site = '{name}' AND number = {from};
             UPDATE account SET balance = balance + {amount} WHERE site = '{name}' AND number = {to};
             WITH made AS (INSERT INTO transfer (site, seq) VALUES ('{name}', {seq}) RETURNING id)
             INSERT INTO leg SELECT id, n, CASE n WHEN {from} THEN -{amount} ELSE {amount} END
             FROM made, unnest(ARRAY[{from}, {to}]) n"
        ));
    }

    /// Money goes from one table to another.
    fn hold(&mut self, name: &str) {
        let (from, amount) = (self.account(name), self.random.random_range(1..300));
        self.run(&format!(
            "UPDATE account SET balance = balance - {amount} WHERE site = '{name}' AND number = {from};
             INSERT INTO hold (site, account, amount) VALUES ('{name}', {from}, {amount})"
        ));
    }

    fn release(&mut self, name: &str) {
        self.run(&format!(
            "WITH released AS (DELETE FROM hold WHERE id = (SELECT max(id) FROM hold WHERE site = '{name}') RETURNING *)
             UPDATE account SET balance = balance + amount::bigint FROM released
             WHERE account.site = released.site AND account.number = released.account"
        ));
    }

    fn open_account(&mut self, name: &str) {
        self.run(&format!(
            "INSERT INTO account SELECT '{name}', max(number) + 1, 0, NULL FROM account WHERE site = '{name}'
             HAVING count(*) < {ACCOUNTS_MAX}"
        ));
    }

    fn close_account(&mut self, name: &str) {
        self.run(&format!(
            "WITH closed AS (DELETE FROM account a WHERE site = '{name}' AND number = (SELECT max(number) FROM account
               WHERE site = '{name}') AND number > {ACCOUNTS} AND NOT EXISTS (SELECT FROM hold h WHERE h.site = a.site
               AND h.account = a.number) RETURNING balance)
             UPDATE account SET balance = balance + (SELECT balance FROM closed)
             WHERE site = '{name}' AND number = 1 AND EXISTS (SELECT FROM closed)"
        ));
    }

    /// The key of an account changes; holds follow.
    fn renumber(&mut self, name: &str) {
        self.run(&format!(
            "UPDATE account SET number = number + 1 WHERE site = '{name}' AND number > {ACCOUNTS}
             AND number = (SELECT max(number) FROM account WHERE site = '{name}')"
        ));
    }

    /// A value so wide that later changes of the row do not repeat it.
    fn note(&mut self, name: &str) {
        let salt: u32 = self.random.random();
        self.run(&format!(
            "UPDATE account SET note = (SELECT string_agg(md5(i::text || '{salt}'), '') FROM generate_series(1, 80) i)
             WHERE site = '{name}' AND number = 1"
        ));
    }

    /// Part of the transaction is rolled back.
    fn changed_mind(&mut self, name: &str, seq: u64) {
        self.run("SAVEPOINT mind");
        self.transfer(name, seq);
        self.run(&format!("DELETE FROM transfer WHERE site = '{name}'"));
        self.run("ROLLBACK TO SAVEPOINT mind");
        self.transfer(name, seq);
        self.run("RELEASE SAVEPOINT mind");
    }

    fn tidy(&mut self, name: &str) {
        self.run(&format!(
            "DELETE FROM transfer WHERE id IN (SELECT id FROM transfer WHERE site = '{name}' ORDER BY id DESC OFFSET 6)"
        ));
    }

    /// The live rows of a site.
    pub(crate) fn live(&mut self, site: &Site) -> Rows {
        self.run("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY");
        let mut rows = rows_of(&mut self.client, &DIRECTORY, &site.name);
        rows.extend(rows_of(&mut self.client, &LEDGER, &site.name));
        self.run("COMMIT");
        rows
    }

    /// The transactions that made the live rows of a site's two stores, which nobody has changed since.
    pub(crate) fn made_by(&mut self, site: &Site) -> [u32; 2] {
        let name = &site.name;
        let mut xid = |sql: String| {
            let row = self.client.query_one(&sql, &[]).unwrap_or_else(|error| panic!("{error:?}: {sql}"));
            row.get::<_, &str>(0).parse().expect("a transaction id")
        };
        [
            xid(format!("SELECT xmin::text FROM site WHERE id = '{name}'")),
            xid(format!("SELECT xmin::text FROM book WHERE site = '{name}'")),
        ]
    }

    /// The time of a commit by the server's own books.
    pub(crate) fn commit_time(&mut self, xid: u32) -> i64 {
        let sql =
            format!("SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint");
        self.number(&sql).expect("track_commit_timestamp is on")
    }
}
