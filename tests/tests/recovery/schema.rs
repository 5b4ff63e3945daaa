//! A random schema: tenant tables, children by parent, composite keys, every form of replica identity.

use muster_tests::Owned;

use super::statements::Generator;

/// The sites.
pub(crate) const SITES: [&str; 3] = ["a", "b", "c"];

/// A name that has to be quoted.
pub(crate) const DOCUMENTS: &str = "Döku mente";

/// What a column that is added later holds in all rows.
pub(crate) const ADDED: &str = "d";

/// Who owns what, as plain joins.
pub(crate) const TABLES: [Owned; 5] = [
    owned("p", "SELECT t.site AS owner, t.* FROM p t"),
    owned("c", "SELECT p.site AS owner, t.* FROM c t JOIN p ON p.id = t.up"),
    owned("g", "SELECT p.site AS owner, t.* FROM g t JOIN c ON c.id = t.up JOIN p ON p.id = c.up"),
    Owned {
        table: DOCUMENTS,
        sql: "SELECT t.site AS owner, t.* FROM \"Döku mente\" t",
        generated: &["number"],
    },
    owned("later", "SELECT t.site AS owner, t.* FROM later t"),
];

const fn owned(table: &'static str, sql: &'static str) -> Owned {
    Owned { table, sql, generated: &[] }
}

/// The kinds of the tables.
pub(crate) const KINDS: [&str; 2] = ["metadata", "product:docs"];

/// The topology's part about the tables.
pub(crate) fn declared() -> String {
    format!(
        "[directory]\nkind = 'metadata'\ntable = 'p'\n\
         [tables.p]\nkind = 'metadata'\ntenant = 'site'\n\
         [tables.c]\nkind = 'metadata'\nparent = {{ column = 'up', table = 'p', key = 'id' }}\n\
         [tables.g]\nkind = 'metadata'\nparent = {{ column = 'up', table = 'c', key = 'id' }}\n\
         [tables.\"{DOCUMENTS}\"]\nkind = 'product:docs'\ntenant = 'site'\n\
         [tables.later]\nkind = 'product:docs'\ntenant = 'site'\n\
         [tables.r]\nkind = 'metadata'\nreference = true\n"
    )
}

/// What statements have to know of the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    /// `p.site` is part of the primary key, and never NULL.
    pub(crate) site_in_key: bool,
    /// `c.up` is part of the primary key, and never NULL.
    pub(crate) up_in_key: bool,
}

impl Generator {
    /// Statements that create the schema.
    pub(crate) fn create(&mut self) -> String {
        let deferred = |generator: &mut Self| generator.one_of(&["", "", "DEFERRABLE INITIALLY DEFERRED"]);
        let Schema { site_in_key, up_in_key } = self.schema;
        let on_delete = if up_in_key {
            self.one_of(&["ON DELETE CASCADE", "ON DELETE CASCADE", ""])
        } else {
            self.one_of(&["ON DELETE CASCADE", "ON DELETE CASCADE", "ON DELETE SET NULL", ""])
        };
        let p_key = if site_in_key { "UNIQUE (id), PRIMARY KEY (site, id)" } else { "PRIMARY KEY (id)" };
        let c_key = if up_in_key { "UNIQUE (id), PRIMARY KEY (up, id)" } else { "PRIMARY KEY (id)" };
        let mut sql = format!(
            "CREATE TABLE p (id bigint NOT NULL, site text, code int UNIQUE, u text, w text, wide text, {p_key});
             CREATE TABLE c (id bigint NOT NULL, up bigint REFERENCES p (id) {on_delete} {} {}, u text, w text, wide text, {c_key});
             CREATE TABLE g (up bigint REFERENCES c (id) ON DELETE CASCADE ON UPDATE CASCADE {}, n int, w text,
               PRIMARY KEY (up, n));
             CREATE TABLE \"{DOCUMENTS}\" (site text NOT NULL, a int NOT NULL, b int NOT NULL, \"Ti tel\" text, body jsonb,
               raw bytea, at timestamptz, price numeric(14, 4), tags text[], f double precision, dur interval,
               number int GENERATED ALWAYS AS (a * 100 + b) STORED, PRIMARY KEY (site, a, b));
             CREATE UNIQUE INDEX by_b ON \"{DOCUMENTS}\" (b, site, a);
             CREATE TABLE r (id int PRIMARY KEY, w text);
             CREATE INDEX c_up ON c (up);",
            self.one_of(&["ON UPDATE CASCADE", "ON UPDATE CASCADE", ""]),
            deferred(self),
            deferred(self),
        );
        let mut full = vec![];
        if !site_in_key || self.chance(30) {
            full.push("p".to_owned());
        }
        if !up_in_key || self.chance(30) {
            full.push("c".to_owned());
        }
        if self.chance(30) {
            full.push("g".to_owned());
        }
        match self.below(3) {
            0 => full.push(format!("\"{DOCUMENTS}\"")),
            1 => sql += &format!("ALTER TABLE \"{DOCUMENTS}\" REPLICA IDENTITY USING INDEX by_b;"),
            _ => {}
        }
        for table in full {
            sql += &format!("ALTER TABLE {table} REPLICA IDENTITY FULL;");
        }
        for table in ["p", "c"] {
            if self.chance(50) {
                sql += &format!("ALTER TABLE {table} ALTER COLUMN wide SET STORAGE EXTERNAL;");
            }
        }
        sql
    }
}
