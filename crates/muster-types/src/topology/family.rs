//! Families: databases of single sites that differ in nothing but the site, declared once.
//!
//! `[shards.NAME]` with the placeholder in its `connection`, and with the sites beside it, stands for one shard a site,
//! named `NAME.SITE`. What comes behind the parser sees plain shards; [`Family`] is for those who compare the list of sites
//! with what a server has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::declare::ShardEntry;
use super::raw::{At, Findings, Section};
use super::{DriverConfig, PLACEHOLDER};
use crate::ids::{ShardName, SiteId};

/// A family, as it was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Where its databases are, with the placeholder in the site's place.
    pub connection: String,
    /// The file that lists its sites, if one does.
    pub sites_file: Option<PathBuf>,
    /// Its shards.
    pub shards: BTreeMap<SiteId, ShardName>,
}

/// What the files that a topology names besides itself hold, or why they could not be read; by path.
pub type SiteFiles = BTreeMap<PathBuf, Result<String, String>>;

/// The files that the sections of `[shards]` name; none of a text that cannot be read.
pub(super) fn files(text: &str, base_dir: &Path) -> Vec<PathBuf> {
    let (table, _) = DeTable::parse_recoverable(text);
    let mut ignored = Findings::new("", text);
    let mut root = Section::root(table.get_ref());
    let sections = root.sections(&mut ignored, "shards");
    let named = sections.into_iter().filter_map(|At { value: (_, mut section), .. }| {
        section.text(&mut ignored, "sites_file").map(|name| base_dir.join(name.value))
    });
    named.collect()
}

/// A site and where it was listed.
struct Listed {
    site: SiteId,
    place: Place,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    /// A byte of the topology.
    Topology(usize),
    /// A line of the file of sites.
    File(String, u64),
}

impl Place {
    fn add(&self, findings: &mut Findings<'_>, what: String, hint: &str) {
        match self {
            Self::Topology(at) => findings.add(*at, what, hint),
            Self::File(file, line) => findings.add_in(file, *line, what, hint),
        }
    }

    fn shown(&self, findings: &Findings<'_>) -> String {
        match self {
            Self::Topology(at) => format!("line {}", findings.line(*at)),
            Self::File(file, line) => format!("{file}:{line}"),
        }
    }
}

/// Whether databases of several sites are meant.
pub(super) fn is_pattern(driver: &DriverConfig) -> bool {
    matches!(driver, DriverConfig::Postgres { connection } if connection.contains(PLACEHOLDER))
}

/// What makes a section a family.
pub(super) struct Members {
    at: usize,
    section: String,
    sites_file: Option<PathBuf>,
    listed: Vec<Listed>,
}

/// Reads `sites` and `sites_file` of a section; none where it has neither.
pub(super) fn members(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    base_dir: &Path,
    files: &SiteFiles,
) -> Option<Members> {
    let sites = section.texts(findings, "sites");
    let file = section.text(findings, "sites_file");
    let at = match (&sites, &file) {
        (None, None) => return None,
        (Some(sites), _) => sites.at,
        (None, Some(file)) => file.at,
    };
    let mut listed = Vec::new();
    for text in sites.into_iter().flat_map(|sites| sites.value) {
        list(findings, &mut listed, &text.value, Place::Topology(text.at));
    }
    let sites_file = file.as_ref().map(|file| base_dir.join(&file.value));
    if let (Some(file), Some(path)) = (&file, &sites_file) {
        let shown = path.display().to_string();
        match files.get(path) {
            Some(Ok(text)) => {
                for (number, line) in (1..).zip(text.lines()) {
                    let line = line.split('#').next().unwrap_or_default().trim();
                    if !line.is_empty() {
                        list(findings, &mut listed, line, Place::File(shown.clone(), number));
                    }
                }
            }
            other => {
                let reason = match other {
                    Some(Err(reason)) => reason.as_str(),
                    _ => "whoever reads the topology did not read it",
                };
                let what = format!("{} has its sites in `{shown}`: {reason}", section.name());
                findings.add(
                    file.at,
                    what,
                    "make the file, with the id of a site on each line, or name another",
                );
                return Some(Members { at, section: section.name(), sites_file, listed });
            }
        }
    }
    if listed.is_empty() && findings.is_clean() {
        let what = format!("{} lists no sites", section.name());
        findings.add(at, what, "list the sites that have such a database, or remove the section");
    }
    Some(Members { at, section: section.name(), sites_file, listed })
}

fn list(findings: &mut Findings<'_>, listed: &mut Vec<Listed>, text: &str, place: Place) {
    match SiteId::new(text) {
        Err(error) => {
            place.add(findings, error.to_string(), "write the bare id of the site whose database it is");
        }
        Ok(site) => listed.push(Listed { site, place }),
    }
}

/// The shards that a section stands for: itself, or one for each of its sites.
pub(super) fn expand(
    findings: &mut Findings<'_>,
    entry: ShardEntry,
    members: Option<Members>,
) -> (Vec<ShardEntry>, Option<(ShardName, Family)>) {
    let pattern = match &entry.driver {
        DriverConfig::Postgres { connection } if connection.contains(PLACEHOLDER) => Some(connection.clone()),
        _ => None,
    };
    let name = entry.name.value.clone();
    let (members, connection) = match (members, pattern) {
        (None, None) => return (vec![entry], None),
        (Some(members), Some(pattern)) => (members, pattern),
        (None, Some(_)) => {
            let what =
                format!("the connection of shard `{name}` has `{PLACEHOLDER}`, and no sites are listed");
            let hint = "add `sites = [\"ID\", ...]`, or `sites_file = \"FILE\"` with an id on each line";
            findings.add(entry.name.at, what, hint);
            return (Vec::new(), None);
        }
        (Some(members), None) => {
            let what = format!("{} lists sites, and its connection has no `{PLACEHOLDER}`", members.section);
            let hint = "write the placeholder where the site stands in the database's name: \
                        `connection = \"postgresql://USER@HOST/jira_{site}\"`; one database of one site has `site = \"ID\"`";
            findings.add(members.at, what, hint);
            return (Vec::new(), None);
        }
    };
    if entry.site.is_some() {
        let what = format!("{} lists sites, and has `site` besides", members.section);
        findings.add(members.at, what, "remove `site`: each of its databases is that of one listed site");
        return (Vec::new(), None);
    }
    let mut shards: BTreeMap<SiteId, (ShardName, Place)> = BTreeMap::new();
    let mut entries = Vec::new();
    for Listed { site, place } in members.listed {
        if let Some((_, first)) = shards.get(&site) {
            let what = format!(
                "`{}` is listed twice in {}: also in {}",
                site.as_str(),
                members.section,
                first.shown(findings)
            );
            place.add(findings, what, "remove one of the two");
            continue;
        }
        let derived = match ShardName::new(format!("{name}.{}", site.as_str())) {
            Ok(derived) => derived,
            Err(error) => {
                place.add(
                    findings,
                    error.to_string(),
                    "give the section a shorter name: those of its shards begin with it",
                );
                continue;
            }
        };
        entries.push(member(&entry, &derived, &site, &connection));
        shards.insert(site, (derived, place));
    }
    let shards = shards.into_iter().map(|(site, (shard, _))| (site, shard)).collect();
    (entries, Some((name, Family { connection, sites_file: members.sites_file, shards })))
}

fn member(entry: &ShardEntry, name: &ShardName, site: &SiteId, connection: &str) -> ShardEntry {
    ShardEntry {
        name: At { value: name.clone(), at: entry.name.at },
        driver: DriverConfig::Postgres { connection: connection.replace(PLACEHOLDER, site.as_str()) },
        site: Some(site.clone()),
        family: Some(entry.name.value.clone()),
        ..entry.clone()
    }
}
