//! The Muster topology of the fleet, as text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::record::Shard;
use crate::schema::{self, Owner};
use crate::site::REGIONS;

/// Where the repository is and how often capture polls.
#[derive(Clone, Debug)]
pub struct TopologyOptions {
    /// Bucket.
    pub bucket: String,
    /// The S3 server.
    pub repository: RepositoryPlace,
    /// Between two polls of a shard.
    pub poll_interval_milliseconds: u64,
}

/// An S3 server.
#[derive(Clone, Debug)]
pub enum RepositoryPlace {
    /// Muster's own.
    Embedded {
        /// Its folder; absolute, or relative to the topology's folder.
        folder: PathBuf,
        /// Its loopback port.
        port: u16,
    },
    /// Any other, with credentials in the environment.
    Endpoint {
        /// Its URL.
        url: String,
    },
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
            if let Some((name, sql)) = check(kind) {
                let section = quoted(kind.name());
                let (name, sql) = (quoted(name), quoted(sql));
                let _ = write!(
                    text,
                    "\n[[kinds.{section}.checks]]\nname = {name}\nsql = {sql}\nexpect_no_rows = true\n"
                );
            }
        }
        for (from, to) in REFERENCES {
            let _ = write!(text, "\n[[references]]\nfrom = {}\nto = {}\n", quoted(from), quoted(to));
        }
        for shard in &self.shards {
            let kinds: Vec<String> = shard.role.kinds().map(|kind| quoted(kind.name())).collect();
            let _ = write!(
                text,
                "\n[shards.{}]\n{}\nregion = {}\nkinds = [{}]\nwriter_block_milliseconds_max = {}\n",
                quoted(&shard.name),
                driver(shard),
                quoted(REGIONS[shard.region]),
                kinds.join(", "),
                writer_block_milliseconds_max(shard),
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

/// Columns that hold keys of rows in other stores: every store names its site.
const REFERENCES: [(&str, &str); 5] = [
    ("identity.user_account.site_id", "metadata.site.site_id"),
    ("licence.licence.site_id", "metadata.site.site_id"),
    ("product:jira-software.jsw_project.tenant", "metadata.site.site_id"),
    ("product:confluence.wiki_space.cloud_id", "metadata.site.site_id"),
    ("product:opsgenie.ops_team.site", "metadata.site.site_id"),
];

/// What each product's rows must not show, in the words of both drivers.
fn check(kind: Kind) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        Kind::JiraSoftware => (
            "issues-have-types",
            "SELECT i.issue_id FROM jsw_project p JOIN jsw_issue i ON i.project_id = p.project_id \
             LEFT JOIN jsw_issue_type t ON t.type_id = i.type_id WHERE p.tenant = $1 AND t.type_id IS NULL",
        ),
        Kind::ServiceManagement => {
            ("queues-have-names", "SELECT queue_id FROM jsm_queue WHERE tenant = $1 AND name = ''")
        }
        Kind::Confluence => (
            "pages-have-parents",
            "SELECT p.page_id FROM wiki_space s JOIN wiki_page p ON p.space_id = s.space_id \
             LEFT JOIN wiki_page a ON a.page_id = p.above \
             WHERE s.cloud_id = $1 AND p.above IS NOT NULL AND a.page_id IS NULL",
        ),
        Kind::Opsgenie => ("teams-have-names", "SELECT team_id FROM ops_team WHERE site = $1 AND name = ''"),
        Kind::Statuspage => (
            "incidents-have-components",
            "SELECT i.incident_id FROM status_incident i \
             LEFT JOIN status_component c ON c.component_id = i.component_id \
             WHERE i.site = $1 AND i.component_id IS NOT NULL AND c.component_id IS NULL",
        ),
        _ => return None,
    })
}

/// A publish into a SQLite file holds up all its writers; in PostgreSQL hardly any, and a busy machine may take its time.
fn writer_block_milliseconds_max(shard: &Shard) -> u64 {
    if shard.database.is_some() { 20_000 } else { 2_000 }
}

fn driver(shard: &Shard) -> String {
    match &shard.database {
        Some(database) => format!("driver = \"postgres\"\nconnection = {}", quoted(&database.connection)),
        None => format!("driver = \"sqlite\"\npath = {}", quoted(&shard.path.display().to_string())),
    }
}

fn head(options: &TopologyOptions) -> String {
    let place = match &options.repository {
        RepositoryPlace::Embedded { folder, port } => format!(
            "endpoint = \"http://127.0.0.1:{port}\"\npath_style = true\nembedded = {}\n",
            quoted(&folder.display().to_string())
        ),
        RepositoryPlace::Endpoint { url } => format!("endpoint = {}\npath_style = true\n", quoted(url)),
    };
    format!(
        "# The demo fleet. Made by `muster demo`.\n\
         fleet = \"demo\"\n\
         \n[repository]\nbucket = {bucket}\nregion = \"us-east-1\"\n{place}\
         \n[capture]\npoll_interval_milliseconds = {poll}\n\
         \n[directory]\nkind = \"metadata\"\ntable = \"site\"\n\
         \n[directory.columns]\nname = \"name\"\nregion = \"region\"\ntier = \"tier\"\ncustomer = \"customer\"\n\
         internal = \"internal\"\nusers = \"users\"\n\
         \n[licences]\nkind = \"licence\"\ntable = \"licence\"\nproduct_column = \"product\"\nactive_column = \"active\"\n\
         \n[ids.app]\ntable = \"licence\"\ncolumn = \"licence_id\"\nkind_column = \"product\"\nkinds = [\"app:*\"]\n\
         \n[tiers.enterprise]\nrto_seconds = 3600\nrpo_seconds = 60\n\
         \n[tiers.standard]\nrto_seconds = 14400\nrpo_seconds = 300\n\
         \n[tiers.free]\nrto_seconds = 86400\nrpo_seconds = 3600\n",
        bucket = quoted(&options.bucket),
        poll = options.poll_interval_milliseconds,
    )
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
