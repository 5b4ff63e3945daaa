//! Several sessions with transactions open at the same time, driven by one thread so that a seed gives the same work.

use muster_tests::connect;
use postgres::Client;
use postgres::error::SqlState;

use super::statements::Generator;

/// Sessions with transactions open at the same time.
const SESSIONS: usize = 4;

struct Session {
    client: Client,
    /// Statements left in the open transaction.
    left: Option<u32>,
    savepoints: u32,
}

/// Steps of calm or of storm.
const WEATHER_STEPS: u32 = 80;

/// Everybody who writes.
pub(crate) struct Work {
    sessions: Vec<Session>,
    pub(crate) committed: u64,
}

impl Work {
    pub(crate) fn new(url: &str) -> Self {
        let session = |_| {
            let mut client = connect(url);
            // Whoever holds the lock is driven by this very thread.
            client.batch_execute("SET lock_timeout = '15ms'").unwrap();
            Session { client, left: None, savepoints: 0 }
        };
        Self { sessions: (0..SESSIONS).map(session).collect(), committed: 0 }
    }

    /// Does so many things, and ends all transactions.
    pub(crate) fn run(&mut self, generator: &mut Generator, steps: u32) {
        for step in 0..steps {
            if step % WEATHER_STEPS == 0 {
                generator.wild = generator.chance(20);
            }
            let number = generator.below(SESSIONS as u32) as usize;
            match self.sessions[number].left {
                None if generator.wild && generator.chance(8) => self.reshape(generator, number),
                None if generator.chance(40) => {
                    let sql = generator.write();
                    self.committed += u64::from(self.attempt(number, &sql));
                }
                None => self.begin(generator, number),
                Some(0) => self.end(generator, number),
                Some(left) => {
                    self.sessions[number].left = Some(left - 1);
                    self.statement(generator, number);
                }
            }
        }
        (0..SESSIONS).for_each(|number| self.commit(number));
    }

    fn begin(&mut self, generator: &mut Generator, number: usize) {
        self.attempt(number, "BEGIN");
        self.sessions[number].left = Some(1 + generator.below(6));
    }

    fn statement(&mut self, generator: &mut Generator, number: usize) {
        if generator.chance(12) {
            self.sessions[number].savepoints += 1;
            self.attempt(number, &format!("SAVEPOINT s{}", self.sessions[number].savepoints));
        }
        // Whole tables are rarely free, since the other sessions hold locks.
        let sql = if generator.wild && generator.chance(4) { generator.reshape() } else { generator.write() };
        let done = self.attempt(number, &sql);
        let savepoints = self.sessions[number].savepoints;
        if savepoints > 0 && (!done || generator.chance(15)) {
            self.attempt(number, &format!("ROLLBACK TO SAVEPOINT s{savepoints}"));
            self.sessions[number].savepoints = savepoints - 1;
        } else if !done {
            self.roll_back(number);
        }
    }

    fn end(&mut self, generator: &mut Generator, number: usize) {
        if generator.chance(12) { self.roll_back(number) } else { self.commit(number) }
    }

    fn roll_back(&mut self, number: usize) {
        self.attempt(number, "ROLLBACK");
        (self.sessions[number].left, self.sessions[number].savepoints) = (None, 0);
    }

    fn commit(&mut self, number: usize) {
        if self.sessions[number].left.is_some() {
            // A constraint that was deferred makes it a roll-back.
            self.committed += u64::from(self.attempt(number, "COMMIT"));
            (self.sessions[number].left, self.sessions[number].savepoints) = (None, 0);
        }
    }

    fn reshape(&mut self, generator: &mut Generator, number: usize) {
        if generator.chance(85) {
            (0..SESSIONS).for_each(|number| self.commit(number));
        }
        let mut sql = generator.reshape();
        if generator.chance(40) {
            sql = format!("{sql}; {}", generator.write());
        }
        self.committed += u64::from(self.attempt(number, &sql));
    }

    /// Runs what may fail for the application's own reasons; whether it did not.
    fn attempt(&mut self, number: usize, sql: &str) -> bool {
        println!("/* {number} */ {sql};");
        let Err(error) = self.sessions[number].client.batch_execute(sql) else { return true };
        println!(
            "--   {}",
            error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
        );
        let expected = [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::UNDEFINED_TABLE,
            SqlState::OBJECT_IN_USE,
            SqlState::CARDINALITY_VIOLATION,
            SqlState::IN_FAILED_SQL_TRANSACTION,
        ];
        let code = error.code().unwrap_or_else(|| panic!("{error}: {sql}"));
        // Class 23: a constraint.
        assert!(expected.contains(code) || code.code().starts_with("23"), "{error:?}: {sql}");
        false
    }
}
