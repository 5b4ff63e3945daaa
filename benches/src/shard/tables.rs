//! The shard's tables: a directory, accounts, and a tracker with projects, issues and comments.
//!
//! # Invariants
//! - The same size gives the same rows. A site's rows lie side by side, as they hardly do in a shard that has grown; that
//!   spares whoever copies single sites out of it.
//! - Text has the entropy of hexadecimal digits: it compresses to half, which is less than prose does.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use muster_services::Postgres;
use postgres::{Client, NoTls};

/// Ids of a site's rows begin at its number times this.
pub(crate) const IDS_PER_SITE: usize = 1_000_000;

/// A comment's text: 60 to 840 digits, so that 1,000 sites of 3,000 rows make 1.4 GB with their indexes.
const BODY: &str =
    "left(encode(sha512((n || 'a')::bytea), 'hex') || encode(sha512((n || 'b')::bytea), 'hex') ||
    encode(sha512((n || 'c')::bytea), 'hex') || encode(sha512((n || 'd')::bytea), 'hex') ||
    encode(sha512((n || 'e')::bytea), 'hex') || encode(sha512((n || 'f')::bytea), 'hex') ||
    encode(sha512((n || 'g')::bytea), 'hex'), (60 + n * 7919 % 780)::int)";

const TABLES: &str = "
CREATE TABLE site (site_id text NOT NULL, name text NOT NULL, region text NOT NULL, tier text NOT NULL);
CREATE TABLE account (account_id bigint NOT NULL, site_id text NOT NULL, email text NOT NULL, name text NOT NULL,
    seen_at timestamptz);
CREATE TABLE project (project_id bigint NOT NULL, site_id text NOT NULL, key text NOT NULL, name text NOT NULL);
CREATE TABLE issue (issue_id bigint NOT NULL, project_id bigint NOT NULL, number integer NOT NULL, summary text NOT NULL,
    state text NOT NULL, votes integer NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL);
CREATE TABLE comment (comment_id bigint NOT NULL, issue_id bigint NOT NULL, author text NOT NULL, body text NOT NULL,
    written_at timestamptz NOT NULL);";

/// Made after the rows, which is quicker. Capture has to know whose a deleted row was.
const KEYS: &str = "
ALTER TABLE site ADD PRIMARY KEY (site_id), REPLICA IDENTITY FULL;
ALTER TABLE account ADD PRIMARY KEY (account_id), ADD UNIQUE (site_id, email), REPLICA IDENTITY FULL;
ALTER TABLE project ADD PRIMARY KEY (project_id), ADD UNIQUE (site_id, key), REPLICA IDENTITY FULL;
ALTER TABLE issue ADD PRIMARY KEY (issue_id), ADD UNIQUE (project_id, number), REPLICA IDENTITY FULL,
    ADD FOREIGN KEY (project_id) REFERENCES project ON DELETE CASCADE;
ALTER TABLE comment ADD PRIMARY KEY (comment_id), REPLICA IDENTITY FULL,
    ADD FOREIGN KEY (issue_id) REFERENCES issue ON DELETE CASCADE;
CREATE INDEX comment_by_issue ON comment (issue_id);
VACUUM (ANALYZE);
CHECKPOINT;";

/// A table, and how its rows find their site.
pub(crate) struct Owned {
    pub(crate) table: &'static str,
    pub(crate) kind: &'static str,
    /// What follows `FROM`: the table is `t`, the site's id `s.site_id`.
    from: &'static str,
}

/// Parents first.
pub(crate) const OWNED: [Owned; 5] = [
    Owned { table: "site", kind: "metadata", from: "site t JOIN site s USING (site_id)" },
    Owned { table: "account", kind: "identity", from: "account t JOIN account s USING (account_id)" },
    Owned { table: "project", kind: "product:tracker", from: "project t JOIN project s USING (project_id)" },
    Owned { table: "issue", kind: "product:tracker", from: "issue t JOIN project s USING (project_id)" },
    Owned {
        table: "comment",
        kind: "product:tracker",
        from: "comment t JOIN issue i USING (issue_id) JOIN project s USING (project_id)",
    },
];

impl Owned {
    /// Selects a site's rows.
    pub(crate) fn rows_of(&self, site: &str) -> String {
        format!("SELECT t.* FROM {} WHERE s.site_id = '{site}'", self.from)
    }
}

/// How much is in a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) sites: usize,
    pub(crate) rows_per_site: usize,
}

impl Size {
    fn accounts(self) -> usize {
        (self.rows_per_site / 100).max(1)
    }

    fn projects(self) -> usize {
        (self.rows_per_site / 1000).max(1)
    }

    pub(crate) fn issues(self) -> usize {
        (self.rows_per_site * 3 / 10).max(1)
    }

    fn comments(self) -> usize {
        self.rows_per_site.saturating_sub(1 + self.accounts() + self.projects() + self.issues()).max(1)
    }

    /// The id of the site with a number from 1.
    pub(crate) fn site(number: usize) -> String {
        format!("site-{number:05}")
    }

    /// Site ids spread over the shard, so that they share no pages.
    pub(crate) fn victims(self, count: usize) -> Vec<String> {
        let count = count.clamp(1, self.sites);
        (0..count).map(|nth| Self::site(nth * self.sites / count + 1)).collect()
    }
}

/// A database with the tables.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) url: String,
    pub(crate) database: String,
}

/// Of each site and table: rows, and sums of two halves of their hashes.
pub(crate) type Digests = BTreeMap<(String, &'static str), String>;

impl Tables {
    /// Makes a database and fills it. Blocks.
    pub(crate) fn make(cluster: &Postgres, name: &str, size: Size) -> Result<Self> {
        ensure!(size.rows_per_site < IDS_PER_SITE / 2, "a site has {} rows at most", IDS_PER_SITE / 2);
        let database = cluster.create_lasting_database(name)?;
        let filled = "SET synchronous_commit = off; SET maintenance_work_mem = '256MB'; SET max_parallel_workers_per_gather = 0;";
        cluster.psql(&database, &format!("{filled}{TABLES}{}{KEYS}", fill(size)))?;
        Ok(Self { url: cluster.url(&database), database })
    }

    /// A copy that shares nothing with this one. Nobody may be connected to this one. Blocks.
    pub(crate) fn copy(&self, cluster: &Postgres, name: &str) -> Result<Self> {
        let sql = format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY FILE_COPY", self.database);
        cluster.psql("postgres", &sql)?;
        Ok(Self { url: cluster.url(name), database: name.to_owned() })
    }

    /// A session with its settings pinned. Blocks, as all that is done with it.
    pub(crate) fn connect(&self) -> Result<Client> {
        let mut client = Client::connect(&self.url, NoTls).with_context(|| self.url.clone())?;
        client.batch_execute("SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET work_mem = '64MB'")?;
        Ok(client)
    }

    /// Deletes sites, a transaction each, and brings the tables in order again. Blocks.
    pub(crate) fn delete(&self, sites: &[String]) -> Result<()> {
        let mut client = self.connect()?;
        for site in sites {
            let mut transaction = client.transaction()?;
            for table in ["project", "account", "site"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE site_id = $1"), &[site])?;
            }
            transaction.commit()?;
        }
        self.settle()
    }

    /// Leaves no dead rows and no dirty pages to the next round. Blocks.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut client = self.connect()?;
        ["VACUUM (ANALYZE)", "CHECKPOINT"].iter().try_for_each(|sql| client.batch_execute(sql))?;
        Ok(())
    }

    /// Digests of some sites' rows, or of all. Blocks.
    pub(crate) fn digests(&self, sites: Option<&[String]>) -> Result<Digests> {
        let mut client = self.connect()?;
        let mut digests = Digests::new();
        for owned in &OWNED {
            let half = |from: u32| format!("sum(('x' || substr(md5(t::text), {from}, 15))::bit(60)::bigint)");
            let some = if sites.is_some() { "WHERE s.site_id = ANY($1)" } else { "WHERE $1::text[] IS NULL" };
            let sql = format!(
                "SELECT s.site_id, count(*) || ' rows ' || {} || ' ' || {} FROM {} {some} GROUP BY 1",
                half(1),
                half(17),
                owned.from
            );
            for row in client.query(&sql, &[&sites])? {
                digests.insert((row.get(0), owned.table), row.get(1));
            }
        }
        Ok(digests)
    }

    /// What the disk holds of it.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let row = self.connect()?.query_one("SELECT pg_database_size(current_database())", &[])?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// When the transactions that wrote comments from an id on were committed, in microseconds and in order. Blocks.
    pub(crate) fn commit_times(&self, first_comment: i64) -> Result<Vec<i64>> {
        let sql = "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
                   FROM comment WHERE comment_id >= $1 ORDER BY 1";
        let rows = self.connect()?.query(sql, &[&first_comment])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The server's clock, as a target of `pgbackrest` has it, and in microseconds.
    pub(crate) fn now(&self) -> Result<(String, i64)> {
        let sql =
            "SELECT now::text, (extract(epoch FROM now) * 1000000)::bigint FROM clock_timestamp() AS now";
        let row = self.connect()?.query_one(sql, &[])?;
        Ok((row.get(0), row.get(1)))
    }
}

/// Fails where rows are not what they were.
pub(crate) fn same(what: &str, is: &Digests, was: &Digests) -> Result<()> {
    if is == was {
        return Ok(());
    }
    let differing: Vec<_> =
        was.keys().chain(is.keys()).filter(|key| is.get(*key) != was.get(*key)).take(3).collect();
    anyhow::bail!("{what} has other rows than before the deletion, among others {differing:?}")
}

fn fill(size: Size) -> String {
    let Size { sites, .. } = size;
    // `n` counts through all rows of a table, site by site.
    let rows = |table: &str, per_site: usize, fields: &str| {
        format!(
            "INSERT INTO {table} SELECT {fields} FROM (SELECT n, n / {per_site} + 1 AS s, n % {per_site} AS i
             FROM generate_series(0::bigint, {sites}::bigint * {per_site} - 1) AS n) AS n;\n",
        )
    };
    let (site, id) = ("'site-' || lpad(s::text, 5, '0')", format!("s * {IDS_PER_SITE} + i"));
    let (projects, issues) = (size.projects(), size.issues());
    let at = "timestamptz '2026-01-01 00:00:00Z' + n * interval '1.7 seconds'";
    let hash = |letter: char, length: u32| format!("left(md5(n || '{letter}') || md5(n || 'z'), {length})");
    [
        rows("site", 1, &format!("{site}, 'Site ' || s, 'eu', 'standard'")),
        rows(
            "account",
            size.accounts(),
            &format!("{id}, {site}, {} || '@example.org', {}, {at}", hash('a', 12), hash('b', 20)),
        ),
        rows("project", projects, &format!("{id}, {site}, 'P' || i, {}", hash('a', 16))),
        rows(
            "issue",
            issues,
            &format!(
                "{id}, s * {IDS_PER_SITE} + i % {projects}, i / {projects} + 1, {}, \
                 (ARRAY['to do', 'in progress', 'done'])[n % 3 + 1], n % 7, {at}",
                hash('a', 48)
            ),
        ),
        rows(
            "comment",
            size.comments(),
            &format!("{id}, s * {IDS_PER_SITE} + i % {issues}, {}, {BODY}, {at}", hash('a', 14)),
        ),
    ]
    .concat()
}
