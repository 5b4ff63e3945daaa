//! What the declarations say about each other.

use std::collections::BTreeMap;

use super::declare::{OwnerlessEntry, ShardEntry, SiteTableEntry, TableEntry, owner_hint, table_section};
use super::error::suggestion;
use super::order::{self, Pattern};
use super::raw::{At, Findings, quoted};
use super::{
    Directory, DriverConfig, KindConfig, KindMode, Licences, MADE_PREFIX, Named as Tenant, PLACEHOLDER,
    ShardConfig,
};
use crate::ids::{Kind, ShardName};
use crate::table::Owner;

/// Kinds by name, and where each is first mentioned.
pub(super) struct Kinds<'k> {
    pub(super) configs: &'k BTreeMap<Kind, KindConfig>,
    pub(super) mentioned: &'k BTreeMap<Kind, usize>,
}

/// Puts each shard's kinds in the place of its patterns, and checks that each kind has a home.
pub(super) fn shards(
    findings: &mut Findings<'_>,
    entries: Vec<ShardEntry>,
    kinds: &Kinds<'_>,
) -> BTreeMap<ShardName, ShardConfig> {
    let mut shards: BTreeMap<ShardName, ShardConfig> = BTreeMap::new();
    for entry in entries {
        let hosted = hosted(findings, &entry, kinds);
        if let Some((other, _)) = shards.get_key_value(&entry.name.value) {
            // Sections have different names: one of a family has this one's.
            let what =
                format!("two shards have one name: `{other}`, of section [shards.{}]", entry.section());
            findings.add(
                entry.name.at,
                what,
                "rename the section: the shards of a family are named SECTION.SITE",
            );
            continue;
        }
        if let Some((other, _)) = shards.iter().find(|(_, shard)| shard.driver == entry.driver) {
            let what = format!("shards `{other}` and `{}` are the same store", entry.name.value);
            let key = if matches!(entry.driver, DriverConfig::Sqlite { .. }) { "path" } else { "connection" };
            findings.add(entry.name.at, what, format!("give one of them another `{key}`, or remove it"));
        }
        check_single(findings, &entry, &hosted, &shards);
        let config = ShardConfig {
            driver: entry.driver,
            region: entry.region,
            kinds: hosted,
            stage_slots: entry.stage_slots,
            publish_slots: entry.publish_slots,
            writer_block_milliseconds_max: entry.writer_block_milliseconds_max,
            stage_bytes_per_second_max: entry.stage_bytes_per_second_max,
            site: entry.site,
            slots_max: entry.slots_max,
        };
        shards.insert(entry.name.value, config);
    }
    check_homes(findings, &shards, kinds);
    shards
}

/// Two databases of one site cannot both hold its store of a kind: nothing says which one a restore goes into.
fn check_single(
    findings: &mut Findings<'_>,
    entry: &ShardEntry,
    hosted: &[Kind],
    shards: &BTreeMap<ShardName, ShardConfig>,
) {
    let Some(site) = &entry.site else { return };
    let both =
        shards.iter().filter(|(_, other)| other.site.as_ref() == Some(site)).find_map(|(name, other)| {
            hosted.iter().find(|kind| other.kinds.contains(kind)).map(|kind| (name, kind))
        });
    if let Some((other, kind)) = both {
        let name = &entry.name.value;
        let what = format!(
            "shards `{other}` and `{name}` are both the database of `{}` for kind `{kind}`",
            site.as_str()
        );
        findings.add(entry.name.at, what, "give one of them another `site` or other `kinds`, or remove it");
    }
}

fn hosted(findings: &mut Findings<'_>, entry: &ShardEntry, kinds: &Kinds<'_>) -> Vec<Kind> {
    let mut hosted: Vec<Kind> = Vec::new();
    for pattern in &entry.kinds {
        let exact = matches!(pattern.value, Pattern::Exact(_));
        let is_restored =
            |kind: &Kind| kinds.configs.get(kind).is_none_or(|config| config.mode == KindMode::Restored);
        let matching: Vec<&Kind> =
            kinds.mentioned.keys().filter(|kind| pattern.value.matches(kind)).collect();
        for kind in &matching {
            if exact && !is_restored(kind) {
                let what = format!("shard `{}` hosts kind `{kind}`, which has no rows", entry.section());
                findings.add(pattern.at, what, "remove it from `kinds`: it is rebuilt or external");
            } else if exact && hosted.contains(kind) {
                let what = format!("shard `{}` names kind `{kind}` twice", entry.section());
                findings.add(pattern.at, what, "remove one of the two");
            }
        }
        if matching.is_empty() {
            let what = format!("no kind matches `{}` in shard `{}`", pattern.value.as_str(), entry.section());
            let hint = match &entry.site {
                Some(_) => {
                    "declare the tables of its database: [tables.NAME] with `kind` and no owner, since all rows there \
                            are its site's"
                }
                None => "declare tables of such kinds, or remove it from `kinds`",
            };
            findings.add(pattern.at, what, hint);
        }
        for kind in matching {
            if is_restored(kind) && !hosted.contains(kind) {
                hosted.push(kind.clone());
            }
        }
    }
    hosted
}

fn check_homes(findings: &mut Findings<'_>, shards: &BTreeMap<ShardName, ShardConfig>, kinds: &Kinds<'_>) {
    let restored = kinds.configs.iter().filter(|(_, config)| config.mode == KindMode::Restored);
    for (kind, _) in restored {
        if shards.values().any(|shard| shard.kinds.contains(kind)) {
            continue;
        }
        let hosted = shards.values().flat_map(|shard| &shard.kinds).map(Kind::as_str);
        let hint = format!(
            "{}add it to the `kinds` of a shard, or declare [kinds.{}] with another mode",
            suggestion(kind.as_str(), hosted),
            quoted(kind.as_str())
        );
        let at = kinds.mentioned.get(kind).copied().unwrap_or_default();
        findings.add(at, format!("kind `{kind}` has no shard"), hint);
    }
}

/// Checks the tables against kinds, shards and each other.
pub(super) fn tables(
    findings: &mut Findings<'_>,
    entries: &[TableEntry],
    (of_sites, ownerless): (&[SiteTableEntry], &[OwnerlessEntry]),
    shards: &BTreeMap<ShardName, ShardConfig>,
    kinds: &Kinds<'_>,
) {
    for (kind, config) in kinds.configs {
        let named = entries.iter().map(|table| (table.name.value.clone(), &table.kind));
        let named = named.chain(of_sites.iter().map(|table| (table.pattern.value.to_string(), &table.kind)));
        let named = named.chain(ownerless.iter().map(|table| (table.name.value.clone(), &table.kind)));
        let own = named.filter(|(_, of)| of.value == *kind);
        if config.mode != KindMode::Restored {
            for (name, of) in own {
                let what = format!("table `{name}` is of kind `{kind}`, which has no rows");
                findings.add(of.at, what, "give the table another kind, or the kind `mode = \"restored\"`");
            }
        } else if own.count() == 0 {
            let at = kinds.mentioned.get(kind).copied().unwrap_or_default();
            let hint = format!(
                "declare its tables ([tables.NAME] with `kind = {:?}`), or it would come back without rows",
                kind.as_str()
            );
            findings.add(at, format!("kind `{kind}` has no tables"), hint);
        }
    }
    for table in entries {
        if let Owner::Parent { table: parent, .. } = &table.owner {
            if of_sites.iter().any(|other| other.pattern.value.to_string() == *parent) {
                let what = format!(
                    "table `{}` is owned through `{parent}`, of which each site has its own",
                    table.name.value
                );
                let hint =
                    "name a parent that all sites share, or put the table into the sites' schemas, too";
                findings.add(table.name.at, what, hint);
                continue;
            }
            if ownerless.iter().any(|other| other.name.value == *parent) {
                let what = format!(
                    "table `{}` is owned through `{parent}`, which has no owner of its own",
                    table.name.value
                );
                let hint = "leave the owner out here, too, if both are in databases of single sites only; or give \
                            that table one";
                findings.add(table.name.at, what, hint);
                continue;
            }
            check_parent(findings, table, parent, entries, shards);
        }
        check_migrations(findings, table, shards);
    }
    check_owner_cycles(findings, entries);
}

/// Only PostgreSQL shards apply them.
fn check_migrations(
    findings: &mut Findings<'_>,
    table: &TableEntry,
    shards: &BTreeMap<ShardName, ShardConfig>,
) {
    let hosts = |config: &ShardConfig| {
        config.kinds.contains(&table.kind.value) && matches!(config.driver, DriverConfig::Sqlite { .. })
    };
    let host = shards.iter().find(|(_, config)| hosts(config)).map(|(name, _)| name);
    if let (Some(shard), false) = (host, table.migrations.is_empty()) {
        let what = format!(
            "table `{}` has migrations, and SQLite shard `{shard}` of its kind applies none",
            table.name.value
        );
        findings.add(table.name.at, what, "remove them: rows of another definition are refused there");
    }
}

/// Checks that tables without an owner are in databases of single sites only.
pub(super) fn ownerless(
    findings: &mut Findings<'_>,
    entries: &[OwnerlessEntry],
    shards: &BTreeMap<ShardName, ShardConfig>,
) {
    for table in entries {
        let shared = |(_, shard): &(&ShardName, &ShardConfig)| {
            shard.site.is_none() && shard.kinds.contains(&table.kind.value)
        };
        if let Some((shard, _)) = shards.iter().find(shared) {
            let what = format!(
                "nothing says to whom the rows of table `{}` belong in shard `{shard}`, which is no single site's",
                table.name.value
            );
            findings.add(table.name.at, what, owner_hint());
        }
    }
}

/// Checks the tables of each site against each other and against the shards that host them.
pub(super) fn site_tables(
    findings: &mut Findings<'_>,
    entries: &[SiteTableEntry],
    named: &[TableEntry],
    shards: &BTreeMap<ShardName, ShardConfig>,
) {
    for (number, table) in entries.iter().enumerate() {
        let (pattern, at) = (&table.pattern.value, table.pattern.at);
        if let Some(other) = entries[..number].iter().find(|other| other.pattern.value.meets(pattern)) {
            let what = format!("`{pattern}` and `{}` match one table", other.pattern.value);
            findings.add(at, what, "make the fixed parts of the two schemas' names differ");
        }
        let is_of_it =
            |other: &&TableEntry| matches!(pattern.named(&other.name.value), Some(Tenant::Site(_)));
        if let Some(other) = named.iter().find(is_of_it) {
            let what =
                format!("table `{}` is declared by its name, and `{pattern}` matches it", other.name.value);
            findings.add(other.name.at, what, "remove one of the two");
        }
        let without_schemas = |(_, shard): &(&ShardName, &ShardConfig)| {
            matches!(shard.driver, DriverConfig::Sqlite { .. }) && shard.kinds.contains(&table.kind.value)
        };
        if let Some((shard, _)) = shards.iter().find(without_schemas) {
            let what = format!(
                "shard `{shard}` hosts kind `{}` of `{pattern}`, and SQLite has no schemas",
                table.kind.value
            );
            findings.add(at, what, "give the table another kind, which only PostgreSQL shards host");
        }
    }
}

fn check_parent(
    findings: &mut Findings<'_>,
    child: &TableEntry,
    parent: &str,
    entries: &[TableEntry],
    shards: &BTreeMap<ShardName, ShardConfig>,
) {
    let (name, at) = (&child.name.value, child.name.at);
    let Some(parent) = entries.iter().find(|table| table.name.value == parent) else {
        let hint = format!(
            "{}declare {} as well, or name another parent",
            suggestion(parent, entries.iter().map(|table| table.name.value.as_str())),
            table_section(parent)
        );
        findings.add(at, format!("table `{name}` is owned through `{parent}`, which is not declared"), hint);
        return;
    };
    let parent_name = &parent.name.value;
    if parent.owner == Owner::Reference {
        findings.add(
            at,
            format!(
                "table `{name}` is owned through `{parent_name}`, which is a reference table and has no owner"
            ),
            "name an owned parent, a `tenant` column, or `reference = true`",
        );
    }
    let apart = |shard: &ShardConfig| {
        shard.kinds.contains(&child.kind.value) && !shard.kinds.contains(&parent.kind.value)
    };
    if let Some((shard, _)) = shards.iter().find(|(_, shard)| apart(shard)) {
        let what = format!(
            "table `{name}` is owned through `{parent_name}` of kind `{}`, which shard `{shard}` does not host",
            parent.kind.value
        );
        let hint = format!(
            "own it through a table of its own shard, or add `{}` to the kinds of shard `{shard}`",
            parent.kind.value
        );
        findings.add(at, what, hint);
    }
}

fn check_owner_cycles(findings: &mut Findings<'_>, entries: &[TableEntry]) {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for table in entries {
        let parents = owners.entry(table.name.value.clone()).or_default();
        if let Owner::Parent { table: parent, .. } = &table.owner {
            parents.push(parent.clone());
        }
    }
    let next = |table: &String| owners.get(table).map_or(&[][..], Vec::as_slice);
    let Some(circle) = order::circle(owners.keys(), next) else { return };
    let in_circle = entries.iter().filter(|table| circle.contains(&&table.name.value));
    let at = in_circle.map(|table| table.name.at).min().unwrap_or_default();
    let path = circle.iter().chain(circle.first()).map(|table| format!("`{table}`")).collect::<Vec<_>>();
    findings.add(
        at,
        format!("tables are owned through each other in a circle: {}", path.join(" through ")),
        "give one of them a `tenant` column",
    );
}

/// Checks that nothing alive is named like what drills make and remove.
pub(super) fn names_of_drills(findings: &mut Findings<'_>, shards: &[ShardEntry]) {
    for shard in shards {
        let file = match &shard.driver {
            DriverConfig::Sqlite { path } => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            DriverConfig::Postgres { .. } => None,
        };
        let names = [Some(shard.name.value.to_string()), file];
        if let Some(name) = names.into_iter().flatten().find(|name| name.starts_with(MADE_PREFIX)) {
            let what = format!(
                "`{name}` of shard `{}` is named like what drills make, and remove",
                shard.name.value
            );
            findings.add(
                shard.name.at,
                what,
                format!("give it a name that does not begin with `{MADE_PREFIX}`"),
            );
        }
    }
}

/// Checks that the directory is a table of sites.
pub(super) fn directory(
    findings: &mut Findings<'_>,
    directory: &At<Directory>,
    tables: &[TableEntry],
    of_sites: &[SiteTableEntry],
) {
    if is_of_sites(findings, directory.at, "[directory]", &directory.value.table, of_sites) {
        return;
    }
    let named = Named { section: "[directory]", kind: &directory.value.kind, table: &directory.value.table };
    let Some(table) = named_table(findings, directory.at, &named, tables) else { return };
    if !matches!(table.owner, Owner::Tenant { .. }) {
        findings.add(
            directory.at,
            format!("[directory] names table `{}`, which has no tenant column", table.name.value),
            "name the table with one row a site, whose `tenant` column is the site's id",
        );
    }
}

/// Checks that the licences are rows of sites.
pub(super) fn licences(
    findings: &mut Findings<'_>,
    licences: &At<Licences>,
    tables: &[TableEntry],
    of_sites: &[SiteTableEntry],
) {
    if is_of_sites(findings, licences.at, "[licences]", &licences.value.table, of_sites) {
        return;
    }
    let named = Named { section: "[licences]", kind: &licences.value.kind, table: &licences.value.table };
    let Some(table) = named_table(findings, licences.at, &named, tables) else { return };
    if table.owner == Owner::Reference {
        findings.add(
            licences.at,
            format!("[licences] names table `{}`, which is a reference table", table.name.value),
            "name the table with the licences of each site",
        );
    }
}

/// Whether the section names a table of which each site has its own, which cannot be: it is read for all sites.
pub(super) fn is_of_sites(
    findings: &mut Findings<'_>,
    at: usize,
    section: &str,
    table: &str,
    of_sites: &[SiteTableEntry],
) -> bool {
    let found = of_sites.iter().any(|other| other.pattern.value.to_string() == table);
    if found {
        let what = format!("{section} names table `{table}`, of which each site has its own");
        findings.add(at, what, format!("name one table of all sites, without `{PLACEHOLDER}`"));
    }
    found
}

/// A table that a section names, with the kind that it says the table has.
struct Named<'n> {
    section: &'n str,
    kind: &'n Kind,
    table: &'n str,
}

fn named_table<'t>(
    findings: &mut Findings<'_>,
    at: usize,
    named: &Named<'_>,
    tables: &'t [TableEntry],
) -> Option<&'t TableEntry> {
    let Named { section, kind, table: name } = named;
    let Some(table) = tables.iter().find(|table| table.name.value == *name) else {
        let hint = format!(
            "{}declare {}, or name another table",
            suggestion(name, tables.iter().map(|table| table.name.value.as_str())),
            table_section(name)
        );
        findings.add(at, format!("{section} names table `{name}`, which is not declared"), hint);
        return None;
    };
    if table.kind.value != **kind {
        let what = format!(
            "{section} says that table `{name}` is of kind `{kind}`, and it is of `{}`",
            table.kind.value
        );
        findings.add(at, what, format!("write `kind = {:?}` in {section}", table.kind.value.as_str()));
    }
    Some(table)
}
