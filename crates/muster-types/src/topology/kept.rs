//! The topology as the repository keeps it: its text, version by version.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::parse::digest;
use super::{SiteFiles, Topology, TopologyErrors};
use crate::digest::Digest;
use crate::format::FORMAT;
use crate::time::Timestamp;

/// A version of the topology in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyVersion {
    /// Format version.
    pub format: u32,
    /// Its number, from 1.
    pub version: u64,
    /// Since when it is kept, by the clock of whoever stored it.
    pub stored_at: Timestamp,
    /// Who stored it.
    pub stored_by: String,
    /// Of text and lists: [`Topology::digest`] of what is parsed from them.
    pub digest: Digest,
    /// The topology file.
    pub text: String,
    /// What is in the files that list its sites, by the names that the text has for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub site_lists: BTreeMap<String, String>,
}

impl TopologyVersion {
    /// A version of `text` and the files that it names.
    pub fn new(
        version: u64,
        (stored_at, stored_by): (Timestamp, String),
        text: String,
        site_lists: BTreeMap<String, String>,
    ) -> Self {
        let digest = digest(&text, &files(&site_lists, Path::new("")));
        Self { format: FORMAT, version, stored_at, stored_by, digest, text, site_lists }
    }

    /// Whether text and lists are what the digest says.
    pub fn is_whole(&self) -> bool {
        digest(&self.text, &files(&self.site_lists, Path::new(""))) == self.digest
    }

    /// The topology that it says. `source` names it in messages; relative paths start at `base_dir`.
    ///
    /// # Errors
    /// [`TopologyErrors`] where this Muster reads the text otherwise than the one that stored it.
    pub fn parse(&self, source: &str, base_dir: &Path) -> Result<Topology, TopologyErrors> {
        Topology::parse_with(&self.text, source, base_dir, &files(&self.site_lists, base_dir))
    }
}

fn files(lists: &BTreeMap<String, String>, base_dir: &Path) -> SiteFiles {
    lists.iter().map(|(name, text)| (base_dir.join(name), Ok(text.clone()))).collect()
}
