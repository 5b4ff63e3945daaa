//! What applications do to the rows of one store: one small transaction at a time.
//!
//! Each function reads what it needs inside the transaction and returns statements with fixed values.

mod core;
mod identity;
mod jira;
mod ops;
mod wiki;

use anyhow::Result;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rusqlite::{Connection, OptionalExtension};

use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::record::Statement;
use crate::words;

/// One site's store in one open transaction.
pub(crate) struct Scene<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) connection: &'a Connection,
    pub(crate) rng: &'a mut ChaCha8Rng,
    /// The site's bare id.
    pub(crate) site: String,
    /// Its display name.
    pub(crate) name: &'a str,
}

impl Scene<'_> {
    /// Some value that `sql` gives: its `?1` is the site, `?2` the number of rows to pass over.
    fn pick<T: rusqlite::types::FromSql>(&mut self, sql: &str) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        for skip in [self.rng.random_range(0..40), self.rng.random_range(0..4), 0] {
            if let Some(value) = statement.query_row((&self.site, skip), |row| row.get(0)).optional()? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn id(&self) -> i64 {
        self.fleet.new_id()
    }

    fn text(&mut self, words: usize) -> String {
        words::text(self.rng, words)
    }

    /// A number below `below`.
    fn below(&mut self, below: i64) -> i64 {
        self.rng.random_range(0..below)
    }

    fn real(&mut self) -> f64 {
        self.rng.random()
    }
}

/// One transaction's statements for a store of `kind`; empty where there is nothing to do.
pub(crate) fn transaction(scene: &mut Scene<'_>, kind: Kind) -> Result<Vec<Statement>> {
    match kind {
        Kind::Metadata => core::metadata(scene),
        Kind::Licence => core::licence(scene),
        Kind::Identity => identity::identity(scene),
        Kind::JiraSoftware => jira::software(scene),
        Kind::ServiceManagement => jira::service_management(scene),
        Kind::Automation => jira::automation(scene),
        Kind::Timesheets => jira::timesheets(scene),
        Kind::Confluence => wiki::confluence(scene),
        Kind::Diagrams => wiki::diagrams(scene),
        Kind::Opsgenie => ops::opsgenie(scene),
        Kind::Statuspage => ops::statuspage(scene),
    }
}

/// First rows of a Statuspage that a site activates now.
pub(crate) fn first_statuspage(scene: &mut Scene<'_>) -> Vec<Statement> {
    ops::first_statuspage(scene)
}

/// The licence of a product that a site activates now.
pub(crate) fn new_licence(scene: &mut Scene<'_>, kind: Kind) -> Vec<Statement> {
    core::new_licence(scene, kind)
}

/// A change of the shared plans: reference rows that no site owns.
pub(crate) fn new_prices(rng: &mut ChaCha8Rng) -> Vec<Statement> {
    core::new_prices(rng)
}
