//! The declarations of kinds, shards and tables, each on its own; what they say about each other is checked later.

use std::collections::BTreeMap;
use std::path::Path;

use super::family::{self, Family, SiteFiles};
use super::kind_check::checks;
use super::migration::{Migration, migrations};
use super::order::Pattern;
use super::raw::{At, Findings, Section, listed, quoted};
use super::{DriverConfig, KindMode, PLACEHOLDER, SandboxConfig, SandboxPlace, TablePattern};
use crate::ids::{Kind, ShardName, SiteId};
use crate::kind_check::KindCheck;
use crate::table::Owner;

/// `[kinds.X]`
pub(super) struct KindEntry {
    pub(super) pattern: At<Pattern>,
    /// None: as by default.
    pub(super) after: Option<Vec<At<Pattern>>>,
    pub(super) stage_waits: bool,
    pub(super) mode: KindMode,
    pub(super) checks: Vec<KindCheck>,
}

/// `[shards.X]`, or one shard of such a family.
#[derive(Clone)]
pub(super) struct ShardEntry {
    pub(super) name: At<ShardName>,
    pub(super) driver: DriverConfig,
    pub(super) region: String,
    pub(super) kinds: Vec<At<Pattern>>,
    pub(super) stage_slots: u64,
    pub(super) publish_slots: u64,
    pub(super) writer_block_milliseconds_max: u64,
    pub(super) stage_bytes_per_second_max: Option<u64>,
    pub(super) site: Option<SiteId>,
    pub(super) slots_max: Option<u64>,
    /// The section that it is one of several of.
    pub(super) family: Option<ShardName>,
}

impl ShardEntry {
    /// The name of its section.
    pub(super) fn section(&self) -> &ShardName {
        self.family.as_ref().unwrap_or(&self.name.value)
    }
}

/// Everything under `[shards]`.
#[derive(Default)]
pub(super) struct ShardEntries {
    pub(super) shards: Vec<ShardEntry>,
    pub(super) families: BTreeMap<ShardName, Family>,
    /// Some section is meant for databases of single sites, whatever is wrong with it.
    pub(super) single: bool,
}

/// `[tables.X]`
pub(super) struct TableEntry {
    pub(super) name: At<String>,
    pub(super) kind: At<Kind>,
    pub(super) owner: Owner,
    pub(super) migrations: Vec<Migration>,
    pub(super) harmless_triggers: Vec<String>,
}

/// `[tables."SCHEMA_{site}.X"]`
pub(super) struct SiteTableEntry {
    pub(super) pattern: At<TablePattern>,
    pub(super) kind: At<Kind>,
    pub(super) migrations: Vec<Migration>,
    pub(super) harmless_triggers: Vec<String>,
}

/// `[tables.X]` without an owner.
pub(super) struct OwnerlessEntry {
    pub(super) name: At<String>,
    pub(super) kind: At<Kind>,
    pub(super) migrations: Vec<Migration>,
    pub(super) harmless_triggers: Vec<String>,
}

/// Everything under `[tables]`.
#[derive(Default)]
pub(super) struct TableEntries {
    /// With an owner.
    pub(super) named: Vec<TableEntry>,
    /// Of each site, in schemas of their own.
    pub(super) of_sites: Vec<SiteTableEntry>,
    /// Of the site whose database they are in.
    pub(super) ownerless: Vec<OwnerlessEntry>,
}

/// Stores of a shard staged at once. Staging is reading and a file of its own; two keep both sides busy.
const STAGE_SLOTS: u64 = 2;
/// SQLite has one writer.
const PUBLISH_SLOTS: u64 = 1;
/// Below the busy timeouts that applications usually set.
const WRITER_BLOCK_MILLISECONDS_MAX: u64 = 1000;

const KIND_HINT: &str = "a kind is `metadata`, `identity`, `licence`, `media`, `product:NAME`, `app:NAME` or a name of \
                         your own, of letters, digits, `-`, `_` and `.`";

pub(super) fn kinds(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Vec<KindEntry> {
    let mut entries = Vec::new();
    for At { value: (name, mut section), at } in root.sections(findings, "kinds") {
        let pattern = pattern(findings, &At { value: name, at });
        let after = section.texts(findings, "after");
        let after =
            after.map(|after| after.value.iter().filter_map(|kind| self::pattern(findings, kind)).collect());
        let stage_waits = section.flag(findings, "stage_waits").is_some_and(|flag| flag.value);
        let mode = mode(findings, &mut section);
        let checks = checks(findings, &mut section, mode.as_ref());
        section.close(findings);
        if let (Some(pattern), Some(mode)) = (pattern, mode) {
            entries.push(KindEntry { pattern, after, stage_waits, mode, checks });
        }
    }
    entries
}

pub(super) fn pattern(findings: &mut Findings<'_>, text: &At<String>) -> Option<At<Pattern>> {
    let parsed = Pattern::parse(&text.value);
    if parsed.is_none() {
        let hint = format!("{KIND_HINT}; the patterns are `product:*` and `app:*`");
        findings.add(text.at, format!("`{}` is not a kind", text.value), hint);
    }
    parsed.map(|value| At { value, at: text.at })
}

fn mode(findings: &mut Findings<'_>, section: &mut Section<'_>) -> Option<KindMode> {
    let name = section.name();
    let mode = section.text(findings, "mode");
    let command = section.texts(findings, "command");
    let words = |command: &At<Vec<At<String>>>| -> Vec<String> {
        command.value.iter().map(|word| word.value.clone()).collect()
    };
    let given =
        command.as_ref().filter(|command| command.value.first().is_some_and(|word| !word.value.is_empty()));
    match (mode.as_ref().map(|mode| mode.value.as_str()), given) {
        (None | Some("restored"), _) => {
            if let Some(command) = command {
                findings.add(
                    command.at,
                    format!("{name} has a `command`, and its rows are restored"),
                    "remove the command, or add `mode = \"rebuilt\"` or `mode = \"external\"`",
                );
            }
            Some(KindMode::Restored)
        }
        (Some("rebuilt"), Some(command)) => Some(KindMode::Rebuilt { command: words(command) }),
        (Some("external"), Some(command)) => Some(KindMode::External { command: words(command) }),
        (Some(mode @ ("rebuilt" | "external")), None) => {
            let hint = "add `command = [\"PROGRAM\", \"ARGUMENT\", ...]`";
            findings.add(section.at(), format!("{name} is {mode} and has no `command`"), hint);
            None
        }
        (Some(other), _) => {
            let at = mode.as_ref().map_or(section.at(), |mode| mode.at);
            findings.add(
                at,
                format!("unknown mode `{other}` in {name}"),
                "the modes are `restored`, `rebuilt`, `external`",
            );
            None
        }
    }
}

pub(super) fn shards(
    findings: &mut Findings<'_>,
    root: &mut Section<'_>,
    base_dir: &Path,
    files: &SiteFiles,
) -> ShardEntries {
    let mut entries = ShardEntries::default();
    let sections = root.sections(findings, "shards");
    if sections.is_empty() {
        let hint = "add a section [shards.NAME] with `driver`, `path`, `region` and `kinds`";
        findings.add(0, "there are no shards", hint);
    }
    for At { value: (name, mut section), at } in sections {
        entries.single |= ["site", "sites", "sites_file"].iter().any(|key| section.has(key));
        let members = family::members(findings, &mut section, base_dir, files);
        let Some(entry) = shard(findings, &name, at, section, base_dir) else { continue };
        entries.single |= family::is_pattern(&entry.driver);
        let (shards, family) = family::expand(findings, entry, members);
        entries.shards.extend(shards);
        entries.families.extend(family);
    }
    entries
}

fn shard(
    findings: &mut Findings<'_>,
    name: &str,
    at: usize,
    mut section: Section<'_>,
    base_dir: &Path,
) -> Option<ShardEntry> {
    let shard_name = ShardName::new(name);
    if let Err(error) = &shard_name {
        findings.add(at, error.to_string(), "give the shard such a name: it becomes part of object keys");
    }
    let driver = driver(findings, &mut section, base_dir);
    let region = section.required_text(
        findings,
        "region",
        "add `region = \"...\"`; sites are restored in their own region",
    );
    let kinds = section.texts(findings, "kinds");
    if kinds.as_ref().is_none_or(|kinds| kinds.value.is_empty()) {
        let hint = "add `kinds = [...]` with the kinds that it hosts, such as \"metadata\" or \"product:*\"";
        findings.add(at, format!("{} hosts no kinds", section.name()), hint);
    }
    let kinds = kinds.map(|kinds| kinds.value).unwrap_or_default();
    let kinds = kinds.iter().filter_map(|kind| pattern(findings, kind)).collect();
    let stage_slots = section.positive_or(findings, "stage_slots", STAGE_SLOTS);
    let publish_slots = section.positive(findings, "publish_slots");
    let writer_block_milliseconds_max =
        section.positive_or(findings, "writer_block_milliseconds_max", WRITER_BLOCK_MILLISECONDS_MAX);
    let stage_bytes_per_second_max =
        section.positive(findings, "stage_bytes_per_second_max").map(|found| found.value);
    if let (Some(DriverConfig::Sqlite { .. }), Some(slots)) = (&driver, &publish_slots)
        && slots.value > PUBLISH_SLOTS
    {
        let what = format!("{} has {} publish slots, and SQLite has one writer", section.name(), slots.value);
        findings.add(slots.at, what, "write 1, or leave it out");
    }
    let site = site(findings, &mut section, driver.as_ref());
    let slots_max = slots_max(findings, &mut section, driver.as_ref());
    section.close(findings);
    Some(ShardEntry {
        name: At { value: shard_name.ok()?, at },
        driver: driver?,
        region: region?.value,
        kinds,
        stage_slots,
        publish_slots: publish_slots.map_or(PUBLISH_SLOTS, |slots| slots.value),
        writer_block_milliseconds_max,
        stage_bytes_per_second_max,
        site,
        slots_max,
        family: None,
    })
}

fn slots_max(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    driver: Option<&DriverConfig>,
) -> Option<u64> {
    let slots = section.positive(findings, "slots_max")?;
    if let Some(DriverConfig::Sqlite { .. }) = driver {
        let what = format!("{} is a SQLite file, which has no replication slots", section.name());
        findings.add(slots.at, what, "remove `slots_max`");
    }
    Some(slots.value)
}

/// Text of rows that a drill may put into a sandbox where nothing else is said: 16 GiB, which most disks have free.
const SANDBOX_BYTES_MAX: u64 = 16 << 30;

pub(super) fn sandboxes(
    findings: &mut Findings<'_>,
    root: &mut Section<'_>,
    base_dir: &Path,
) -> BTreeMap<String, SandboxConfig> {
    let mut found = BTreeMap::new();
    for At { value: (name, mut section), at } in root.sections(findings, "sandbox") {
        if ShardName::new(name.as_str()).is_err() {
            findings.add(
                at,
                format!("`{name}` is not a sandbox name"),
                "use letters, digits, `-`, `_` and `.`",
            );
        }
        let hint = "add `driver = \"sqlite\"` or `driver = \"postgres\"`";
        let driver = section.required_text(findings, "driver", hint);
        let region_hint = "add `region = \"...\"`; a site's rows stay in its region in drills, too";
        let region = section.required_text(findings, "region", region_hint);
        let bytes_max = section.positive_or(findings, "bytes_max", SANDBOX_BYTES_MAX);
        let place = match driver.as_ref().map(|driver| driver.value.as_str()) {
            Some("sqlite") => {
                let hint =
                    "add `dir = \"FOLDER\"`, relative to the topology's folder; drills make files there";
                let dir = section.required_text(findings, "dir", hint);
                dir.map(|dir| SandboxPlace::Sqlite { dir: base_dir.join(dir.value) })
            }
            Some("postgres") => {
                let hint = "add `connection = \"postgresql://USER@HOST/postgres\"`; drills make databases on that server";
                let connection = section.required_text(findings, "connection", hint);
                connection.map(|connection| SandboxPlace::Postgres { connection: connection.value })
            }
            other => {
                section.text(findings, "dir");
                section.text(findings, "connection");
                if let (Some(other), Some(driver)) = (other, &driver) {
                    let what = format!("unknown driver `{other}` in {}", section.name());
                    findings.add(driver.at, what, "the drivers are `sqlite` and `postgres`");
                }
                None
            }
        };
        section.close(findings);
        if let (Some(place), Some(region)) = (place, region) {
            found.insert(name, SandboxConfig { place, region: region.value, bytes_max });
        }
    }
    found
}

fn site(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    driver: Option<&DriverConfig>,
) -> Option<SiteId> {
    let text = section.text(findings, "site")?;
    if let Some(DriverConfig::Sqlite { .. }) = driver {
        let what = format!("{} is a SQLite file, and `site` is for databases of PostgreSQL", section.name());
        findings.add(text.at, what, "declare a tenant column of its tables, and remove `site`");
    }
    let site = SiteId::new(text.value.as_str());
    if let Err(error) = &site {
        findings.add(text.at, error.to_string(), "write the bare id of the site whose database it is");
    }
    site.ok()
}

fn driver(findings: &mut Findings<'_>, section: &mut Section<'_>, base_dir: &Path) -> Option<DriverConfig> {
    let path_hint = "add `path = \"FILE\"`, relative to the topology's folder";
    let connection_hint = "add `connection = \"postgresql://USER@HOST/DATABASE\"`; the password comes from PGPASSWORD or a password file";
    let driver_hint = "add `driver = \"sqlite\"` or `driver = \"postgres\"`";
    let Some(driver) = section.required_text(findings, "driver", driver_hint) else {
        // Asked for, so that they are not unknown keys as well.
        section.text(findings, "path");
        section.text(findings, "connection");
        return None;
    };
    match driver.value.as_str() {
        "sqlite" => {
            let path = section.required_text(findings, "path", path_hint)?;
            Some(DriverConfig::Sqlite { path: base_dir.join(path.value) })
        }
        "postgres" => {
            let connection = section.required_text(findings, "connection", connection_hint)?;
            Some(DriverConfig::Postgres { connection: connection.value })
        }
        other => {
            section.text(findings, "path");
            section.text(findings, "connection");
            findings.add(
                driver.at,
                format!("unknown driver `{other}` in {}", section.name()),
                "the drivers are `sqlite` and `postgres`",
            );
            None
        }
    }
}

/// With `databases` of single sites, tables may be without an owner.
pub(super) fn tables(findings: &mut Findings<'_>, root: &mut Section<'_>, databases: bool) -> TableEntries {
    let TableEntries { named: mut entries, mut of_sites, mut ownerless } = TableEntries::default();
    for At { value: (name, mut section), at } in root.sections(findings, "tables") {
        let reserved = name.starts_with("_muster_") || name.starts_with("sqlite_");
        if name.is_empty() || reserved {
            let what = format!("`{name}` is not the name of an application's table");
            findings.add(at, what, "remove the section; such tables belong to SQLite or to Muster");
        }
        let kind_hint = "add `kind = \"...\"`, the kind that its rows are part of";
        let kind = section.required_text(findings, "kind", kind_hint).and_then(|text| {
            let parsed: Result<Kind, _> = text.value.parse();
            if parsed.is_err() {
                findings.add(text.at, format!("`{}` is not a kind", text.value), KIND_HINT);
            }
            parsed.ok().map(|value| At { value, at: text.at })
        });
        let migrations = migrations(findings, &mut section);
        let harmless = section.texts(findings, "harmless_triggers").map(|found| found.value);
        let harmless_triggers: Vec<String> =
            harmless.unwrap_or_default().into_iter().map(|name| name.value).collect();
        if let Some(pattern) = TablePattern::parse(&name) {
            let pattern = site_table(findings, &mut section, &name, pattern);
            section.close(findings);
            if let (Some(kind), Some(value)) = (kind, pattern) {
                let pattern = At { value, at };
                of_sites.push(SiteTableEntry { pattern, kind, migrations, harmless_triggers });
            }
            continue;
        }
        if databases && !OWNERS.into_iter().any(|key| section.has(key)) {
            section.close(findings);
            let name = At { value: name, at };
            ownerless.extend(kind.map(|kind| OwnerlessEntry { name, kind, migrations, harmless_triggers }));
            continue;
        }
        let owner = owner(findings, &mut section, &name);
        section.close(findings);
        if let (Some(kind), Some(owner)) = (kind, owner) {
            let name = At { value: name, at };
            entries.push(TableEntry { name, kind, owner, migrations, harmless_triggers });
        }
    }
    TableEntries { named: entries, of_sites, ownerless }
}

/// A table of each site: its schema is its owner.
fn site_table(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    name: &str,
    pattern: Result<TablePattern, &'static str>,
) -> Option<TablePattern> {
    let owners: Vec<&str> = OWNERS.into_iter().filter(|key| section.has(key)).collect();
    // Asked for, so that they are not unknown keys as well.
    section.text(findings, "tenant");
    section.section(findings, "parent");
    section.flag(findings, "reference");
    if !owners.is_empty() {
        let what =
            format!("table `{name}` belongs to the site of its schema, and has {} besides", listed(&owners));
        let hint = format!("remove {}, or name one table without `{PLACEHOLDER}`", listed(&owners));
        findings.add(section.at(), what, hint);
    }
    if let Err(reason) = pattern {
        let hint = format!(
            "write `{PLACEHOLDER}` once, in the schema's name: [tables.\"tenant_{PLACEHOLDER}.issue\"]"
        );
        findings.add(section.at(), format!("table `{name}` {reason}"), hint);
    }
    pattern.ok().filter(|_| owners.is_empty())
}

/// Keys that say to whom rows belong.
const OWNERS: [&str; 3] = ["tenant", "parent", "reference"];

fn owner(findings: &mut Findings<'_>, section: &mut Section<'_>, table: &str) -> Option<Owner> {
    let given: Vec<&str> = OWNERS.into_iter().filter(|key| section.has(key)).collect();
    let tenant = section.text(findings, "tenant");
    let parent = section.section(findings, "parent");
    let reference = section.flag(findings, "reference");
    if given.len() != 1 {
        let what = match given.as_slice() {
            [] => format!("nothing says to whom the rows of table `{table}` belong"),
            several => format!("table `{table}` has several owners: {}", listed(several)),
        };
        findings.add(section.at(), what, owner_hint());
        return None;
    }
    if let Some(tenant) = tenant {
        if tenant.value.is_empty() {
            findings.add(tenant.at, format!("`tenant` in {} is empty", section.name()), owner_hint());
        }
        return Some(Owner::Tenant { column: tenant.value });
    }
    if let Some(mut parent) = parent {
        let column = parent.required_text(
            findings,
            "column",
            "name the column of this table that refers to the parent",
        );
        let of = parent.required_text(findings, "table", "name the parent table");
        let key = parent.required_text(findings, "key", "name the parent's primary or unique key column");
        parent.close(findings);
        return Some(Owner::Parent { column: column?.value, table: of?.value, key: key?.value });
    }
    let reference = reference?;
    if !reference.value {
        findings.add(
            reference.at,
            format!("`reference = false` says nothing about table `{table}`"),
            owner_hint(),
        );
    }
    Some(Owner::Reference)
}

pub(super) fn owner_hint() -> &'static str {
    "write one of `tenant = \"COLUMN\"`, `parent = { column = \"...\", table = \"...\", key = \"...\" }`, `reference = true`"
}

/// The section of a table, for hints.
pub(super) fn table_section(name: &str) -> String {
    format!("[tables.{}]", quoted(name))
}
