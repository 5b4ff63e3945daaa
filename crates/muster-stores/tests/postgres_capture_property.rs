//! Random schemas of the demo's kind, random transactions of many sessions, polls at random moments: at every commit the
//! strict replay of what capture delivered equals what plain joins read from the database right after it.
//!
//! `MUSTER_SEED=N` runs that seed alone, `MUSTER_CASES=N` more or fewer of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets an error fails"
)]

mod postgres_capture_support;

use muster_services::Postgres;
use postgres::Client;
use postgres_capture_support::{Own, Shard, session};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const SITES: [&str; 5] = ["'a'", "'b'", "'c'", "'dd'", "'not an id'"];

struct Generator {
    random: ChaCha8Rng,
    columns_added: u32,
    /// Sessions with a transaction open.
    open: [bool; 3],
}

impl Generator {
    fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap()) as usize]
    }

    fn key(&mut self) -> u32 {
        self.below(8)
    }

    fn value(&mut self) -> String {
        match self.below(6) {
            0 => "NULL".to_owned(),
            1 => "repeat('large', 4000)".to_owned(),
            2 => "E'tab\\tline\\n\\\\'".to_owned(),
            _ => format!("'v{}'", self.below(9)),
        }
    }

    /// Tenant table, child, grandchild, another tenant table with the site in the key, reference table.
    fn schema(&mut self) -> String {
        let deferred = |generator: &mut Self| generator.one_of(&["", "DEFERRABLE INITIALLY DEFERRED"]);
        let identity = |generator: &mut Self, table: &str, columns: &str| match generator.below(2) {
            0 => format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"),
            _ => format!(
                "CREATE UNIQUE INDEX {table}_identity ON {table} ({columns});
                 ALTER TABLE {table} REPLICA IDENTITY USING INDEX {table}_identity;"
            ),
        };
        let on_delete = self.one_of(&["CASCADE", "CASCADE", "SET NULL"]);
        // A column of the identity's index cannot be NULL.
        let (null, child) = match on_delete {
            "SET NULL" => ("", "ALTER TABLE c REPLICA IDENTITY FULL;".to_owned()),
            _ => ("NOT NULL", identity(self, "c", "id, up")),
        };
        format!(
            "CREATE TABLE p (id int PRIMARY KEY, site text NOT NULL, w text, big text);
             CREATE TABLE c (id int PRIMARY KEY, up int {null} REFERENCES p ON DELETE {on_delete} ON UPDATE CASCADE {},
               w text, big text);
             CREATE TABLE g (up int REFERENCES c ON DELETE CASCADE ON UPDATE CASCADE {}, n int, w text, big text,
               PRIMARY KEY (up, n));
             CREATE TABLE t (site text, id int, w text, big text, PRIMARY KEY (site, id));
             CREATE TABLE r (id int PRIMARY KEY, w text, big text);
             ALTER TABLE p ALTER big SET STORAGE EXTERNAL; ALTER TABLE c ALTER big SET STORAGE EXTERNAL;
             {} {child}",
            deferred(self),
            deferred(self),
            identity(self, "p", "id, site"),
        )
    }

    fn insert(&mut self) -> String {
        let (id, other, site) = (self.key(), self.key(), self.one_of(&SITES));
        let (w, big) = (self.value(), self.value());
        let upsert = self.one_of(&["DO NOTHING", "DO UPDATE SET w = EXCLUDED.w", "DO UPDATE SET big = 'x'"]);
        let to = |key: &str| match upsert {
            "DO NOTHING" => "ON CONFLICT DO NOTHING".to_owned(),
            action => format!("ON CONFLICT ({key}) {action}"),
        };
        match self.below(5) {
            0 => format!("INSERT INTO p VALUES ({id}, {site}, {w}, {big}) {}", to("id")),
            1 => format!("INSERT INTO c VALUES ({id}, {other}, {w}, {big}) {}", to("id")),
            2 => format!("INSERT INTO g VALUES ({id}, {other}, {w}, {big}) {}", to("up, n")),
            3 => format!("INSERT INTO t VALUES ({site}, {id}, {w}, {big}) {}", to("site, id")),
            _ => format!("INSERT INTO r VALUES ({id}, {w}, {big}) {}", to("id")),
        }
        .replace("INSERT INTO p VALUES", "INSERT INTO p (id, site, w, big) VALUES")
        .replace("INSERT INTO c VALUES", "INSERT INTO c (id, up, w, big) VALUES")
        .replace("INSERT INTO g VALUES", "INSERT INTO g (up, n, w, big) VALUES")
        .replace("INSERT INTO t VALUES", "INSERT INTO t (site, id, w, big) VALUES")
        .replace("INSERT INTO r VALUES", "INSERT INTO r (id, w, big) VALUES")
    }

    fn update(&mut self) -> String {
        let (id, other, site, w) = (self.key(), self.key(), self.one_of(&SITES), self.value());
        match self.below(12) {
            0 => format!("UPDATE p SET id = {other} WHERE id = {id}"),
            1 if self.chance(30) => format!("UPDATE p SET site = {site} WHERE id = {id}"),
            2 => format!("UPDATE c SET id = {other} WHERE id = {id}"),
            3 => format!("UPDATE c SET up = {other} WHERE id = {id}"),
            4 => format!("UPDATE g SET up = {other} WHERE up = {id}"),
            5 => format!("UPDATE t SET site = {site} WHERE id = {id}"),
            6 => format!("UPDATE t SET id = {other}, w = {w} WHERE id = {id}"),
            7 => format!("UPDATE p SET big = {w} WHERE id < {id}"),
            _ => format!("UPDATE {} SET w = {w}", self.one_of(&["p", "c", "g", "t", "r"])),
        }
    }

    fn write(&mut self) -> String {
        let id = self.key();
        match self.below(20) {
            0..10 => self.insert(),
            10..16 => self.update(),
            16 if self.chance(15) && self.open == [false; 3] => self
                .one_of(&["TRUNCATE g", "TRUNCATE c CASCADE", "TRUNCATE p CASCADE", "TRUNCATE t, r"])
                .to_owned(),
            17 => format!("DELETE FROM {} WHERE id = {id}", self.one_of(&["t", "r"])),
            18 => format!("DELETE FROM {} WHERE id = {id}", self.one_of(&["p", "c"])),
            _ => format!("DELETE FROM g WHERE up = {id}"),
        }
    }

    /// Something done to a whole table. Columns that the statements above name stay.
    fn reshape(&mut self) -> String {
        let table = self.one_of(&["p", "c", "g", "t", "r"]);
        self.columns_added += 1;
        let (new, old) = (self.columns_added, 1 + self.below(self.columns_added));
        match self.below(16) {
            0 | 1 => format!("ALTER TABLE {table} ADD COLUMN x{new} text DEFAULT 'd'"),
            2 => format!("ALTER TABLE {table} ALTER w TYPE text USING upper(w)"),
            3 => "VACUUM FULL t".to_owned(),
            4 => format!("CREATE INDEX ON {table} (w)"),
            5 => format!("ALTER TABLE {table} ADD CHECK (true)"),
            6 => format!("ALTER TABLE {table} DROP COLUMN IF EXISTS x{old}"),
            7 => format!("ALTER TABLE {table} RENAME COLUMN x{old} TO y{new}"),
            8 => "DROP TABLE t".to_owned(),
            9 => "DROP TABLE t, r".to_owned(),
            10 => "DROP TABLE g".to_owned(),
            11 => "ALTER TABLE r RENAME TO r_old".to_owned(),
            12 => "ALTER TABLE r_old RENAME TO r".to_owned(),
            13 => format!("ALTER TABLE {} REPLICA IDENTITY FULL", self.one_of(&["t", "r", "g"])),
            14 => "ALTER TABLE t REPLICA IDENTITY DEFAULT".to_owned(),
            _ => "DROP TABLE IF EXISTS t; CREATE TABLE t (site text, id int, big text, w text, PRIMARY KEY (site, id))"
                .to_owned(),
        }
    }

    /// Tables that went come again, not all and not always as they were.
    fn remake(&mut self) -> String {
        self.one_of(&[
            "CREATE TABLE IF NOT EXISTS t (site text, id int, w text, big text, PRIMARY KEY (site, id))",
            "CREATE TABLE IF NOT EXISTS t (id bigint, w text, site text, big text, PRIMARY KEY (site, id))",
            "CREATE TABLE IF NOT EXISTS r (id int PRIMARY KEY, w text, big text)",
            "CREATE TABLE IF NOT EXISTS g (up int REFERENCES c ON DELETE CASCADE ON UPDATE CASCADE, n int, w text,
               big text, PRIMARY KEY (up, n))",
        ])
        .to_owned()
    }

    /// One transaction with DDL in it, and mostly rows around that.
    fn migrate(&mut self) -> String {
        let ddl = if self.chance(40) { self.remake() } else { self.reshape() };
        match self.below(4) {
            _ if ddl.starts_with("VACUUM") => ddl,
            0 => ddl,
            1 => format!("{}; {ddl}", self.write()),
            2 => format!("{ddl}; {}", self.write()),
            _ => format!("{}; {ddl}; {}", self.write(), self.write()),
        }
    }
}

/// Runs what may fail for the application's own reasons; gives whether it did not.
fn attempt(client: &mut Client, sql: &str) -> bool {
    println!("{sql};");
    let Err(error) = client.batch_execute(sql) else { return true };
    // Duplicate and foreign keys, NOT NULL, locks of other sessions, what follows in an aborted transaction, and tables and
    // columns that are not there.
    let expected =
        ["23505", "23503", "23502", "55P03", "40P01", "25P02", "57014", "42P01", "42703", "42P07", "2BP01"];
    let code = error.code().map_or("", |state| state.code());
    assert!(expected.contains(&code), "{error:?}: {sql}");
    println!("-- fails");
    false
}

fn step(generator: &mut Generator, shard: &mut Shard, sessions: &mut [Client; 3]) {
    let number = generator.below(3) as usize;
    println!("-- session {number}");
    let client = &mut sessions[number];
    if generator.open[number] {
        match generator.below(6) {
            0 | 1 => {
                let end = generator.one_of(&["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]);
                attempt(client, end);
                generator.open[number] = false;
                shard.keep_truth();
            }
            2 => {
                let sql = format!("SAVEPOINT s; {}; ROLLBACK TO s", generator.write());
                attempt(client, &sql);
            }
            _ => {
                let sql = generator.write();
                attempt(client, &sql);
            }
        }
        return;
    }
    if generator.chance(40) {
        generator.open[number] = attempt(client, "BEGIN");
        return;
    }
    // Other sessions' open transactions would hold it up.
    let sql = if generator.chance(10) && generator.open == [false; 3] {
        generator.migrate()
    } else {
        generator.write()
    };
    attempt(client, &sql);
    shard.keep_truth();
}

fn case(server: &Postgres, seed: u64) -> u64 {
    println!("MUSTER_SEED={seed} cargo test -p muster-stores --test postgres_capture_property");
    let random = ChaCha8Rng::seed_from_u64(seed);
    let mut generator = Generator { random, columns_added: 0, open: [false; 3] };
    let schema = generator.schema();
    println!("{schema}");
    let owners = [
        ("p", Own::T("site")),
        ("c", Own::P("up", "p", "id")),
        ("g", Own::P("up", "c", "id")),
        ("t", Own::T("site")),
        ("r", Own::R),
    ];
    let mut shard = Shard::new(server, &schema, &owners);
    let mut sessions = [session(&shard.url), session(&shard.url), session(&shard.url)];
    for session in &mut sessions {
        session.batch_execute("SET lock_timeout = '50ms'; SET deadlock_timeout = '20ms'").unwrap();
    }
    for number in 0..80 {
        step(&mut generator, &mut shard, &mut sessions);
        // A table is read again only when all open transactions have ended.
        if generator.chance(25) && generator.open == [false; 3] {
            println!("-- poll at step {number}");
            shard.poll();
            println!("-- {:?}", shard.events());
            match generator.below(6) {
                0..3 => shard.acknowledge(),
                3 => shard.restart(),
                _ => {}
            }
        }
    }
    for session in &mut sessions {
        attempt(session, "COMMIT");
        shard.keep_truth();
    }
    shard.check();
    shard.compared
}

#[test]
fn replay_equals_the_database_at_every_commit() {
    let server = Postgres::shared().unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let compared: u64 = match number("MUSTER_SEED") {
        Some(seed) => case(&server, seed),
        None => (1..=number("MUSTER_CASES").unwrap_or(12)).map(|seed| case(&server, seed)).sum(),
    };
    println!("{compared} commits compared");
}
