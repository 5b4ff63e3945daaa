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
    let at = sites.as_ref().map(|sites| sites.at).or(file.as_ref().map(|file| file.at))?;
    let section = section.name();
    let mut listed = Vec::new();
    for text in sites.into_iter().flat_map(|sites| sites.value) {
        list(findings, &mut listed, &text.value, Place::Topology(text.at));
    }
    let sites_file = file.map(|file| At { value: base_dir.join(&file.value), at: file.at });
    if let Some(file) = &sites_file {
        list_file(findings, &mut listed, file, files, &section);
    }
    if listed.is_empty() && findings.is_clean() {
        let what = format!("{section} lists no sites");
        findings.add(at, what, "list the sites that have such a database, or remove the section");
    }
    Some(Members { at, section, sites_file: sites_file.map(|file| file.value), listed })
}

fn list_file(
    findings: &mut Findings<'_>,
    listed: &mut Vec<Listed>,
    file: &At<PathBuf>,
    files: &SiteFiles,
    section: &str,
) {
    let shown = file.value.display().to_string();
    let reason = match files.get(&file.value) {
        Some(Ok(text)) => {
            for (number, line) in (1..).zip(text.lines()) {
                let line = line.split('#').next().unwrap_or_default().trim();
                if !line.is_empty() {
                    list(findings, listed, line, Place::File(shown.clone(), number));
                }
            }
            return;
        }
        Some(Err(reason)) => reason.as_str(),
        None => "whoever reads the topology did not read it",
    };
    let what = format!("{section} has its sites in `{shown}`: {reason}");
    findings.add(file.at, what, "make the file, with the id of a site on each line, or name another");
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
        DriverConfig::Postgres { connection } if is_pattern(&entry.driver) => Some(connection.clone()),
        _ => None,
    };
    let (members, connection) = match (members, pattern) {
        (None, None) => return (vec![entry], None),
        (Some(members), Some(pattern)) if entry.site.is_none() => (members, pattern),
        (members, _) => {
            half_declared(findings, &entry, members);
            return (Vec::new(), None);
        }
    };
    let (mut shards, mut entries) = (BTreeMap::new(), Vec::new());
    let mut places: BTreeMap<SiteId, Place> = BTreeMap::new();
    for Listed { site, place } in members.listed {
        if let Some(first) = places.get(&site) {
            let (site, first) = (site.as_str(), first.shown(findings));
            let what = format!("`{site}` is listed twice in {}: also in {first}", members.section);
            place.add(findings, what, "remove one of the two");
            continue;
        }
        match ShardName::new(format!("{}.{}", entry.name.value, site.as_str())) {
            Ok(name) => {
                entries.push(member(&entry, &name, &site, &connection));
                shards.insert(site.clone(), name);
            }
            Err(error) => {
                let hint = "give the section a shorter name: those of its shards begin with it";
                place.add(findings, error.to_string(), hint);
            }
        }
        places.insert(site, place);
    }
    (entries, Some((entry.name.value, Family { connection, sites_file: members.sites_file, shards })))
}

/// Tells what a section lacks to be a family, or has too much.
fn half_declared(findings: &mut Findings<'_>, entry: &ShardEntry, members: Option<Members>) {
    let Some(Members { at, section, .. }) = members else {
        let name = &entry.name.value;
        let what = format!("the connection of shard `{name}` has `{PLACEHOLDER}`, and no sites are listed");
        let hint = "add `sites = [\"ID\", ...]`, or `sites_file = \"FILE\"` with an id on each line";
        return findings.add(entry.name.at, what, hint);
    };
    if is_pattern(&entry.driver) {
        let what = format!("{section} lists sites, and has `site` besides");
        return findings.add(at, what, "remove `site`: each of its databases is that of one listed site");
    }
    let what = format!("{section} lists sites, and its connection has no `{PLACEHOLDER}`");
    let hint = "write the placeholder where the site stands in the database's name: \
                `connection = \"postgresql://USER@HOST/jira_{site}\"`; one database of one site has `site = \"ID\"`";
    findings.add(at, what, hint);
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
