//! Random schemas and statements; see the property test of capture in `muster-stores`, which has the same ones.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;

const SITES: [&str; 5] = ["'a'", "'b'", "'c'", "NULL", "'not an id'"];

/// A table as the generator knows it.
pub(crate) struct Table {
    name: &'static str,
    /// Whole-number columns that statements write, the key first.
    numbers: Vec<&'static str>,
    /// The table has a rowid alias, so keys may be left out.
    alias: bool,
}

/// Makes schemas and statements from a seed.
pub(crate) struct Generator {
    random: ChaCha8Rng,
    tables: Vec<Table>,
    columns_added: u32,
    /// The column of `p` that `c` refers to is `code`, not `id`.
    pub(crate) by_code: bool,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), tables: Vec::new(), columns_added: 0, by_code: false }
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap()) as usize]
    }

    /// Keys are few, so that they meet; more than in the test of capture, so that there is something to restore.
    fn key(&mut self) -> String {
        if self.chance(4) { "-1".to_owned() } else { self.below(30).to_string() }
    }

    fn value(&mut self) -> String {
        let number = self.below(5);
        match self.below(9) {
            0 => "NULL".to_owned(),
            1 => format!("{number}.5"),
            2 => format!("x'0{number}ff'"),
            3 => format!("'T{number}'"),
            4 => format!("'t{number}'"),
            5 => "CAST(x'ff00' AS TEXT)".to_owned(),
            _ => number.to_string(),
        }
    }

    fn site(&mut self) -> String {
        if self.chance(85) { self.one_of(&SITES[..3]).to_owned() } else { self.one_of(&SITES).to_owned() }
    }

    /// The schema: tenant table, children, grandchildren, reference table, with unique indexes at random.
    pub(crate) fn schema(&mut self) -> String {
        let on_delete = |generator: &mut Self| {
            generator.one_of(&["ON DELETE CASCADE", "ON DELETE SET NULL", "", "ON DELETE RESTRICT"])
        };
        let on_update =
            |generator: &mut Self| generator.one_of(&["ON UPDATE CASCADE", "", "ON UPDATE SET NULL"]);
        let deferred = |generator: &mut Self| {
            generator.one_of(&["DEFERRABLE INITIALLY DEFERRED", "DEFERRABLE INITIALLY DEFERRED", ""])
        };
        let by_code = self.chance(30);
        self.by_code = by_code;
        let parent = if by_code { "p(code)" } else { "p(id)" };
        let collate = self.one_of(&["", "COLLATE NOCASE"]);
        let tenant = self.one_of(&["site TEXT", "site"]);
        let rowid = if self.chance(30) { "WITHOUT ROWID" } else { "" };
        let mut sql = format!(
            "CREATE TABLE p(id INTEGER PRIMARY KEY, {tenant}, code INT UNIQUE, u {collate}, w) {rowid};
             CREATE TABLE c(id INTEGER {} PRIMARY KEY, up INT REFERENCES {parent} {} {} {}, u {collate}, w);
             CREATE TABLE g(up INT NOT NULL REFERENCES c(id) {} {}, n INT NOT NULL, w, PRIMARY KEY (up, n)) {};
             CREATE TABLE r(id INTEGER PRIMARY KEY, u, w);",
            if self.chance(30) { "NOT NULL" } else { "" },
            on_delete(self),
            on_update(self),
            deferred(self),
            self.one_of(&["ON DELETE CASCADE", "ON DELETE CASCADE ON UPDATE CASCADE"]),
            deferred(self),
            self.one_of(&["WITHOUT ROWID", ""]),
        );
        if self.chance(50) {
            sql += "CREATE INDEX c_up ON c(up);";
        }
        for table in ["p", "c", "r"] {
            match self.below(4) {
                0 => sql += &format!("CREATE UNIQUE INDEX {table}_u ON {table}(u);"),
                1 => sql += &format!("CREATE UNIQUE INDEX {table}_u ON {table}(u, w);"),
                2 => sql += &format!("CREATE UNIQUE INDEX {table}_u ON {table}(u) WHERE w > 1;"),
                _ => {}
            }
        }
        let alias = rowid.is_empty();
        self.tables = vec![
            Table { name: "p", numbers: vec!["id", "code"], alias },
            Table { name: "c", numbers: vec!["id", "up"], alias: true },
            Table { name: "g", numbers: vec!["up", "n"], alias: false },
            Table { name: "r", numbers: vec!["id"], alias: true },
        ];
        sql
    }

    fn write(&mut self) -> String {
        let index = self.below(4) as usize;
        let (name, alias) = (self.tables[index].name, self.tables[index].alias);
        let numbers = self.tables[index].numbers.clone();
        let or = self.one_of(&["", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"]);
        match self.below(10) {
            0..5 => self.insert(name, &numbers, alias, or),
            5..8 => self.update(name, &numbers, or),
            _ if self.chance(10) => format!("DELETE FROM {name}"),
            _ => format!("DELETE FROM {name} WHERE {} = {}", numbers[0], self.key()),
        }
    }

    fn row(&mut self, name: &str, numbers: &[&str], alias: bool) -> String {
        let mut values: Vec<String> = Vec::new();
        for column in numbers {
            let left_out = (alias && *column == "id" && self.chance(20))
                || (*column == "up" && name == "c" && self.chance(10));
            values.push(if left_out { "NULL".to_owned() } else { self.key() });
        }
        match name {
            "p" => {
                let site = self.site();
                values.insert(1, site);
                values.extend([self.value(), self.value()]);
            }
            "g" => values.push(self.value()),
            _ => values.extend([self.value(), self.value()]),
        }
        format!("({})", values.join(", "))
    }

    fn insert(&mut self, name: &str, numbers: &[&str], alias: bool, or: &str) -> String {
        let columns = match name {
            "p" => "id, site, code, u, w",
            "c" => "id, up, u, w",
            "g" => "up, n, w",
            _ => "id, u, w",
        };
        let rows: Vec<String> = (0..=self.below(9)).map(|_| self.row(name, numbers, alias)).collect();
        let upsert = match self.below(6) {
            0 if or.is_empty() => " ON CONFLICT DO NOTHING".to_owned(),
            1 | 2 if or.is_empty() => format!(" ON CONFLICT DO UPDATE SET w = {}", self.value()),
            _ => String::new(),
        };
        format!("INSERT {or} INTO {name}({columns}) VALUES {}{upsert}", rows.join(", "))
    }

    fn update(&mut self, name: &str, numbers: &[&str], or: &str) -> String {
        let mut sets = vec![format!("w = {}", self.value())];
        for column in numbers {
            if self.chance(35) {
                let value =
                    if self.chance(50) { self.key() } else { format!("{column} + {}", self.below(3)) };
                sets.push(format!("{column} = {value}"));
            }
        }
        if name != "g" && self.chance(40) {
            sets.push(format!("u = {}", self.value()));
        }
        if name == "p" && self.chance(50) {
            sets.push(format!("site = {}", self.site()));
        }
        let which = match self.below(4) {
            0 => "1".to_owned(),
            1 => format!("w = {}", self.value()),
            _ => format!("{} = {}", numbers[0], self.key()),
        };
        format!("UPDATE {or} {name} SET {} WHERE {which}", sets.join(", "))
    }

    /// Something done to the schema.
    pub(crate) fn reshape(&mut self) -> String {
        let table = self.one_of(&["p", "c", "r"]);
        match self.below(7) {
            0 => "VACUUM".to_owned(),
            1 | 2 => {
                self.columns_added += 1;
                format!("ALTER TABLE {table} ADD COLUMN x{} DEFAULT 'd'", self.columns_added)
            }
            3 => "CREATE TABLE IF NOT EXISTS later(id INTEGER PRIMARY KEY, site TEXT, u); \
                  INSERT OR REPLACE INTO later SELECT id, site, w FROM p"
                .to_owned(),
            4 => "CREATE INDEX IF NOT EXISTS by_w ON p(w)".to_owned(),
            5 => format!(
                "DROP TRIGGER IF EXISTS _muster_{table}_{}",
                self.one_of(&["bi", "bu", "ai", "au", "ae", "ad"])
            ),
            _ => rebuild(table),
        }
    }
}

/// The usual way to change a table in ways that ALTER TABLE cannot: create, copy, drop, rename.
fn rebuild(table: &str) -> String {
    format!("REBUILD {table}")
}

fn run_rebuild(conn: &Connection, table: &str) {
    let sql: String = conn
        .query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1", [table], |row| {
            row.get(0)
        })
        .unwrap();
    let indexes: Vec<String> = conn
        .prepare("SELECT sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL")
        .unwrap()
        .query_map([table], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let body = &sql[sql.find('(').unwrap()..];
    conn.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF; BEGIN; CREATE TABLE rebuilt{body}; INSERT INTO rebuilt SELECT * FROM {table};
         DROP TABLE {table}; ALTER TABLE rebuilt RENAME TO {table}; {}; COMMIT; PRAGMA foreign_keys = ON",
        indexes.join("; ")
    ))
    .unwrap();
}

/// Runs what may fail for the application's own reasons.
pub(crate) fn attempt(conn: &Connection, sql: &str) {
    if let Some(table) = sql.strip_prefix("REBUILD ") {
        return run_rebuild(conn, table);
    }
    if let Err(error) = conn.execute_batch(sql) {
        let expected = ["constraint failed", "cannot commit", "no transaction"];
        assert!(expected.iter().any(|part| error.to_string().contains(part)), "{error}: {sql}");
    }
}

pub(crate) fn transaction(generator: &mut Generator, conn: &Connection) {
    let statements = if generator.chance(50) { 1 } else { 2 + generator.below(6) };
    let group = statements > 1;
    if group {
        println!("BEGIN;");
        attempt(conn, "BEGIN");
    }
    for _ in 0..statements {
        let sql = generator.write();
        println!("{sql};");
        attempt(conn, &sql);
    }
    if group {
        let end = if generator.chance(85) { "COMMIT" } else { "ROLLBACK" };
        println!("{end};");
        attempt(conn, end);
        if !conn.is_autocommit() {
            println!("ROLLBACK;");
            attempt(conn, "ROLLBACK");
        }
    }
}
