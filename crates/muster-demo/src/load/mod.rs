//! Fills shards: every site's first rows.

mod core;
mod identity;
mod jira;
mod ops;
mod wiki;

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rusqlite::{Connection, Params};

use crate::kind::{Kind, Role};
use crate::schema;
use crate::site::Site;

/// One shard being filled.
pub(crate) struct Loader<'c> {
    connection: &'c Connection,
    pub(crate) rng: ChaCha8Rng,
    ids: i64,
    pub(crate) rows: u64,
}

impl Loader<'_> {
    /// The next unused id; one sequence serves all tables of a shard.
    pub(crate) fn id(&mut self) -> i64 {
        self.ids += 1;
        self.ids
    }

    /// Runs one INSERT.
    pub(crate) fn insert(&mut self, sql: &str, params: impl Params) -> Result<()> {
        self.rows += 1;
        self.connection.prepare_cached(sql)?.execute(params).with_context(|| sql.to_owned())?;
        Ok(())
    }
}

/// Creates and fills the shard with this role for the sites of its region; gives the number of rows.
pub(crate) fn fill<'s>(
    connection: &Connection,
    role: Role,
    sites: impl Iterator<Item = (usize, &'s Site)>,
    seed: u64,
) -> Result<u64> {
    connection.set_prepared_statement_cache_capacity(64);
    // The file is new and thrown away on any failure.
    connection.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; BEGIN",
    )?;
    for table in schema::tables(role) {
        connection.execute_batch(&format!("CREATE TABLE {} {}", table.name, table.body))?;
    }
    let mut loader = Loader { connection, rng: ChaCha8Rng::seed_from_u64(seed), ids: 0, rows: 0 };
    reference(&mut loader, role)?;
    for (index, site) in sites {
        // A site's rows depend on the seed and the site alone.
        loader.rng = ChaCha8Rng::seed_from_u64(seed ^ ((index as u64) << 20) ^ ((role as u64) << 56));
        for kind in site.kinds.iter().filter(|kind| kind.role() == role) {
            site_kind(&mut loader, site, *kind)?;
        }
    }
    let rows = loader.rows;
    for statement in schema::tables(role).iter().flat_map(|table| table.then) {
        connection.execute_batch(statement)?;
    }
    connection.execute_batch("COMMIT; PRAGMA journal_mode = WAL;")?;
    Ok(rows)
}

fn reference(loader: &mut Loader<'_>, role: Role) -> Result<()> {
    match role {
        Role::Core => core::plans(loader),
        Role::Jira => jira::issue_types(loader),
        Role::Identity | Role::Wiki | Role::Ops => Ok(()),
    }
}

/// First rows of one store.
fn site_kind(loader: &mut Loader<'_>, site: &Site, kind: Kind) -> Result<()> {
    let weight = |kind: &Kind| match kind {
        Kind::JiraSoftware => 5,
        Kind::Confluence => 3,
        kind if kind.is_licensed() => 1,
        _ => 0,
    };
    let total: usize = site.kinds.iter().map(weight).sum();
    // Identity takes about a third of a site's rows; the products share the rest.
    let rows = site.rows * 2 / 3 * weight(&kind) / total.max(1);
    match kind {
        Kind::Metadata => core::metadata(loader, site),
        Kind::Licence => core::licences(loader, site),
        Kind::Identity => identity::identity(loader, site),
        Kind::JiraSoftware => jira::software(loader, site, rows),
        Kind::ServiceManagement => jira::service_management(loader, site, rows),
        Kind::Automation => jira::automation(loader, site, rows),
        Kind::Timesheets => jira::timesheets(loader, site, rows),
        Kind::Confluence => wiki::confluence(loader, site, rows),
        Kind::Diagrams => wiki::diagrams(loader, site, rows),
        Kind::Opsgenie => ops::opsgenie(loader, site, rows),
        Kind::Statuspage => ops::statuspage(loader, site, rows),
    }
}
