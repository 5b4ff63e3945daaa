//! Live definitions beside those at the recovery point: what every driver tells of them alike.

use muster_types::Digest;
use muster_types::table::{ColumnDef, TableDef};

/// What became of a table between the recovery point and now.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Differences that restored rows can live with, in words.
    pub(crate) notes: Vec<String>,
    /// Differences that they cannot, in words.
    pub(crate) obstacles: Vec<String>,
    /// How many of the obstacles, the first ones, are about columns: what a migration is for.
    pub(crate) column_obstacles: usize,
    /// Columns that are new; restored rows get their default.
    pub(crate) added: Vec<ColumnDef>,
}

impl Comparison {
    /// Of a table that is not there any more.
    pub(crate) fn gone(table: &str) -> Self {
        Self { obstacles: vec![format!("table `{table}` is gone")], ..Self::default() }
    }

    /// All differences in words, obstacles first.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.obstacles.iter().chain(&self.notes).cloned().collect()
    }

    /// Notes keys that changed: restored rows meet them as they are now.
    pub(crate) fn keys(&mut self, then: &TableDef, now: &TableDef) {
        let table = &then.name;
        if then.key != now.key {
            self.notes.push(format!(
                "table `{table}`: its primary key was ({}) and is ({})",
                then.key.join(", "),
                now.key.join(", ")
            ));
        }
        let known = |columns: &[String]| then.unique.iter().any(|old| old.columns == columns);
        for unique in now.unique.iter().filter(|unique| !known(&unique.columns)) {
            self.notes.push(format!("table `{table}`: ({}) is unique since", unique.columns.join(", ")));
        }
    }
}

/// Identifies the live definitions of some tables, in the order of their names; a plan made for them is void when it changes.
pub(crate) fn definitions_digest<'d>(live: impl Iterator<Item = (&'d str, Option<&'d TableDef>)>) -> Digest {
    let line = |(name, def): (&str, Option<&TableDef>)| {
        format!("{name:?} {}", def.map_or_else(|| "none".to_owned(), |def| def.digest().to_string()))
    };
    Digest::of(live.map(line).collect::<Vec<_>>().join("\n").as_bytes())
}
