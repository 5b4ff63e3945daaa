//! Random statements.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::schema::{ADDED, DOCUMENTS, SITES, Schema};

/// Makes schemas and statements from a seed.
pub(crate) struct Generator {
    random: ChaCha8Rng,
    columns_added: u32,
    pub(crate) schema: Schema,
    /// Rows that own others change their site, and things are done to whole tables. What follows from either is rarely
    /// told by the log alone: such a table is read again, and the commits of that segment are no recovery points.
    pub(crate) wild: bool,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let schema = Schema { site_in_key: random.random(), up_in_key: random.random() };
        Self { random, columns_added: 0, schema, wild: false }
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap()) as usize]
    }

    /// As [`Self::one_of`]; none of none.
    pub(crate) fn maybe_one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| self.one_of(all))
    }

    fn site(&mut self) -> String {
        if !self.schema.site_in_key && self.chance(4) {
            return "NULL".to_owned();
        }
        format!("'{}'", self.one_of(&SITES))
    }

    fn text(&mut self) -> String {
        match self.below(8) {
            0 => "NULL".to_owned(),
            1 => "''".to_owned(),
            2 => "E'tab\\tback\\\\slash\\nline'".to_owned(),
            3 => "'größer 🎉'".to_owned(),
            _ => format!("'t{}'", self.below(1000)),
        }
    }

    /// Mostly too wide for its row, and hard to compress.
    fn wide(&mut self) -> String {
        match self.below(6) {
            0 => "NULL".to_owned(),
            1 => format!("'short {}'", self.below(100)),
            _ => {
                let (salt, parts) = (self.below(1_000_000), 70 + self.below(150));
                format!(
                    "(SELECT string_agg(md5(i::text || '{salt}'), '') FROM generate_series(1, {parts}) i)"
                )
            }
        }
    }

    /// Another row's key, at random.
    fn some(&mut self, table: &str) -> String {
        format!("(SELECT id FROM {table} ORDER BY md5(id::text || '{}') LIMIT 1)", self.below(1000))
    }

    /// A change of rows.
    pub(crate) fn write(&mut self) -> String {
        match self.below(100) {
            0..14 => self.insert_p(),
            14..28 => self.update_p(),
            28..32 => self.delete_p(),
            32..45 => self.insert_c(),
            45..55 => self.update_c(),
            55..58 => format!("DELETE FROM c WHERE id = {}", self.below(60)),
            58..66 => self.insert_g(),
            66..72 => self.update_g(),
            72..74 => format!("DELETE FROM g WHERE n = {} AND up % 3 = {}", self.below(6), self.below(3)),
            74..82 => self.insert_document(),
            82..89 => self.update_document(),
            89..91 => {
                format!("DELETE FROM \"{DOCUMENTS}\" WHERE a = {} AND b > {}", self.below(5), self.below(9))
            }
            91..94 => self.later(),
            94..96 => self.reference(),
            _ => self.large(),
        }
    }

    fn insert_p(&mut self) -> String {
        let mut rows = Vec::new();
        let first = self.below(30);
        for number in 0..=self.below(4) {
            let (code, w, u, wide, site) =
                (self.below(10_000), self.text(), self.text(), self.wide(), self.site());
            rows.push(format!("({}, {site}, {code}, {u}, {w}, {wide})", first + number));
        }
        let conflict = match self.below(3) {
            0 => "",
            1 => " ON CONFLICT DO NOTHING",
            _ => " ON CONFLICT (id) DO UPDATE SET w = excluded.w, code = excluded.code",
        };
        format!("INSERT INTO p (id, site, code, u, w, wide) VALUES {}{conflict}", rows.join(", "))
    }

    fn update_p(&mut self) -> String {
        let mut sets = vec![format!("w = {}", self.text())];
        if self.chance(25) {
            sets.push(format!("wide = {}", self.wide()));
        }
        if self.chance(15) {
            sets.push(format!("id = id + {}", 1 + self.below(40)));
        }
        if self.wild && self.chance(15) {
            sets.push(format!("site = {}", self.site()));
        }
        if self.chance(20) {
            sets.push(format!("u = {}", self.text()));
        }
        let filter = match self.below(10) {
            0 => format!("site = '{}'", self.one_of(&SITES)),
            1 => "id % 5 = 2".to_owned(),
            _ => format!("id = {}", self.below(40)),
        };
        format!("UPDATE p SET {} WHERE {filter}", sets.join(", "))
    }

    fn delete_p(&mut self) -> String {
        if self.chance(8) {
            return format!("DELETE FROM p WHERE site = '{}'", self.one_of(&SITES));
        }
        format!("DELETE FROM p WHERE id = {}", self.below(40))
    }

    fn insert_c(&mut self) -> String {
        let (first, salt, rows) = (self.below(60), self.below(1000), 1 + self.below(4));
        let (u, w, wide) = (self.text(), self.text(), self.wide());
        let conflict = self.one_of(&[
            "ON CONFLICT DO NOTHING",
            "ON CONFLICT (id) DO UPDATE SET w = excluded.w",
            if self.wild {
                "ON CONFLICT (id) DO UPDATE SET up = excluded.up"
            } else {
                "ON CONFLICT DO NOTHING"
            },
        ]);
        format!(
            "INSERT INTO c (id, up, u, w, wide) SELECT {first} + row_number() OVER (), id, {u}, {w}, {wide}
             FROM (SELECT id FROM p ORDER BY md5(id::text || '{salt}') LIMIT {rows}) parents {conflict}"
        )
    }

    fn update_c(&mut self) -> String {
        let mut sets = vec![format!("w = {}", self.text())];
        if self.chance(25) {
            sets.push(format!("wide = {}", self.wide()));
        }
        if self.wild && self.chance(20) {
            sets.push(format!("up = {}", self.some("p")));
        }
        if self.wild && !self.schema.up_in_key && self.chance(5) {
            sets = vec!["up = NULL".to_owned()];
        }
        if self.chance(12) {
            sets.push(format!("id = id + {}", 1 + self.below(80)));
        }
        let filter =
            if self.chance(10) { "id % 7 = 3".to_owned() } else { format!("id = {}", self.below(70)) };
        format!("UPDATE c SET {} WHERE {filter}", sets.join(", "))
    }

    fn insert_g(&mut self) -> String {
        let (n, w, salt, rows) = (self.below(6), self.text(), self.below(1000), 1 + self.below(5));
        let conflict =
            self.one_of(&["ON CONFLICT DO NOTHING", "ON CONFLICT (up, n) DO UPDATE SET w = excluded.w"]);
        format!(
            "INSERT INTO g (up, n, w) SELECT id, {n}, {w}
             FROM (SELECT id FROM c ORDER BY md5(id::text || '{salt}') LIMIT {rows}) parents {conflict}"
        )
    }

    fn update_g(&mut self) -> String {
        let what = match self.below(4) {
            0 => "n = n + 6".to_owned(),
            1 => format!("up = {}", self.some("c")),
            _ => format!("w = {}", self.text()),
        };
        format!("UPDATE g SET {what} WHERE n = {} AND up % 4 = {}", self.below(8), self.below(4))
    }

    fn insert_document(&mut self) -> String {
        let (site, a, b) = (self.one_of(&SITES), self.below(5), self.below(12));
        let (title, n) = (self.text(), self.below(1000));
        let f = self.one_of(&["'NaN'", "'-Infinity'", "0.1", "1e-300", "-0.0", "1.0/3", "NULL"]);
        format!(
            "INSERT INTO \"{DOCUMENTS}\" (site, a, b, \"Ti tel\", body, raw, at, price, tags, f, dur) VALUES ('{site}', {a}, {b}, {title},
             '{{\"n\": {n}, \"x\": [1.50, null, \"ü\"]}}', decode(md5('{n}'), 'hex'), timestamptz '1999-12-31 23:59:59.999999+00' + {n} * interval '1 hour',
             {n} / 7.0, ARRAY['x', NULL, 'with \"quote\" and {{brace}}', ''], {f}, {n} * interval '1 day 2 minutes')
             ON CONFLICT (site, a, b) DO UPDATE SET body = excluded.body, f = excluded.f"
        )
    }

    fn update_document(&mut self) -> String {
        let what = match self.below(6) {
            0 => format!("b = b + {}", 1 + self.below(12)),
            1 if self.wild => format!("site = '{}'", self.one_of(&SITES)),
            2 => format!("\"Ti tel\" = {}", self.wide()),
            3 => format!("raw = decode(repeat(md5('{}'), {}), 'hex')", self.below(1000), 1 + self.below(200)),
            _ => format!("price = price * 1.1, \"Ti tel\" = {}", self.text()),
        };
        format!("UPDATE \"{DOCUMENTS}\" SET {what} WHERE a = {} AND b % 3 = {}", self.below(5), self.below(3))
    }

    fn later(&mut self) -> String {
        let (site, id, u) = (self.one_of(&SITES), self.below(20), self.text());
        match self.below(3) {
            0 => format!("DELETE FROM later WHERE id = {id}"),
            _ => format!(
                "INSERT INTO later (site, id, u) VALUES ('{site}', {id}, {u}) ON CONFLICT (site, id) DO UPDATE SET u = excluded.u"
            ),
        }
    }

    fn reference(&mut self) -> String {
        let (id, w) = (self.below(10), self.text());
        format!("INSERT INTO r VALUES ({id}, {w}) ON CONFLICT (id) DO UPDATE SET w = excluded.w")
    }

    /// Hundreds of rows at once.
    fn large(&mut self) -> String {
        let (site, rows) = (self.one_of(&SITES), 100 + self.below(500));
        match self.below(3) {
            0 => format!("UPDATE \"{DOCUMENTS}\" SET \"Ti tel\" = \"Ti tel\" || '.' WHERE a >= 100"),
            1 => format!("DELETE FROM \"{DOCUMENTS}\" WHERE a >= 100 AND site = '{site}'"),
            _ => format!(
                "INSERT INTO \"{DOCUMENTS}\" (site, a, b, \"Ti tel\") SELECT '{site}', 100 + i / 50, i, repeat(md5(i::text), 3)
                 FROM generate_series(1, {rows}) i ON CONFLICT DO NOTHING"
            ),
        }
    }

    /// Something done to whole tables.
    pub(crate) fn reshape(&mut self) -> String {
        match self.below(14) {
            0 => "TRUNCATE g".to_owned(),
            1 => "TRUNCATE c CASCADE".to_owned(),
            2 => format!("TRUNCATE \"{DOCUMENTS}\", later"),
            3 => format!("TRUNCATE \"{DOCUMENTS}\""),
            4 | 5 => {
                self.columns_added += 1;
                let documents = format!("\"{DOCUMENTS}\"");
                let table = self.one_of(&["p", "c", "g", documents.as_str()]);
                format!("ALTER TABLE {table} ADD COLUMN x{} text DEFAULT '{ADDED}'", self.columns_added)
            }
            6 | 7 => "DROP TABLE later".to_owned(),
            8 => "ALTER TABLE r ADD CHECK (id >= 0); COMMENT ON TABLE p IS 'text'".to_owned(),
            9 => "ALTER TABLE c ALTER w TYPE text USING lower(w)".to_owned(),
            10 => "ALTER TABLE g RENAME COLUMN w TO v; ALTER TABLE g RENAME COLUMN v TO w".to_owned(),
            _ => "CREATE TABLE IF NOT EXISTS later (site text NOT NULL, id int NOT NULL, u text, PRIMARY KEY (site, id));
                  INSERT INTO later SELECT site, a * 1000 + b, \"Ti tel\" FROM \"Döku mente\" WHERE a < 3 ON CONFLICT DO NOTHING"
                .to_owned(),
        }
    }
}
