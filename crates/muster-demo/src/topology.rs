//! The Muster topology of the fleet, as text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::schema::{self, Owner};
use crate::site::REGIONS;

/// Where the repository is and how often capture polls.
#[derive(Clone, Debug)]
pub struct TopologyOptions {
    /// Bucket.
    pub bucket: String,
    /// Folder of the embedded S3 server; absolute, or relative to the topology's folder.
    pub embedded: PathBuf,
    /// Its loopback port.
    pub port: u16,
    /// Between two polls of a shard.
    pub poll_interval_milliseconds: u64,
}

impl Fleet {
    /// Writes the topology to `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_topology(&self, path: &Path, options: &TopologyOptions) -> Result<()> {
        std::fs::write(path, self.topology(options))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The topology's text.
    pub fn topology(&self, options: &TopologyOptions) -> String {
        let mut text = head(options);
        for kind in Kind::ALL {
            let after: Vec<String> = kind.after().into_iter().map(|kind| quoted(kind.name())).collect();
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[kinds.{}]\nafter = [{}]\n", quoted(kind.name()), after.join(", "));
        }
        for shard in &self.shards {
            let kinds: Vec<String> = shard.role.kinds().map(|kind| quoted(kind.name())).collect();
            let _ = write!(
                text,
                "\n[shards.{}]\ndriver = \"sqlite\"\npath = {}\nregion = {}\nkinds = [{}]\n\
                 writer_block_milliseconds_max = 2000\n",
                quoted(&shard.name),
                quoted(&shard.path.display().to_string()),
                quoted(REGIONS[shard.region]),
                kinds.join(", ")
            );
        }
        for table in schema::all_tables() {
            let owner = match table.owner {
                Owner::Tenant(column) => format!("tenant = {}", quoted(column)),
                Owner::Parent { column, table, key } => {
                    format!(
                        "parent = {{ column = {}, table = {}, key = {} }}",
                        quoted(column),
                        quoted(table),
                        quoted(key)
                    )
                }
                Owner::Reference => "reference = true".to_owned(),
            };
            let _ =
                write!(text, "\n[tables.{}]\nkind = {}\n{owner}\n", table.name, quoted(table.kind.name()));
        }
        text
    }
}

fn head(options: &TopologyOptions) -> String {
    format!(
        "# The demo fleet. Made by `muster demo`.\n\
         fleet = \"demo\"\n\
         \n[repository]\nbucket = {bucket}\nregion = \"us-east-1\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
         path_style = true\nembedded = {embedded}\n\
         \n[capture]\npoll_interval_milliseconds = {poll}\n\
         \n[directory]\nkind = \"metadata\"\ntable = \"site\"\n\
         \n[directory.columns]\nname = \"name\"\nregion = \"region\"\ntier = \"tier\"\ncustomer = \"customer\"\n\
         internal = \"internal\"\nusers = \"users\"\n\
         \n[licences]\nkind = \"licence\"\ntable = \"licence\"\nproduct_column = \"product\"\nactive_column = \"active\"\n\
         \n[tiers.enterprise]\nrto_seconds = 3600\nrpo_seconds = 60\n\
         \n[tiers.standard]\nrto_seconds = 14400\nrpo_seconds = 300\n\
         \n[tiers.free]\nrto_seconds = 86400\nrpo_seconds = 3600\n",
        bucket = quoted(&options.bucket),
        port = options.port,
        embedded = quoted(&options.embedded.display().to_string()),
        poll = options.poll_interval_milliseconds,
    )
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
