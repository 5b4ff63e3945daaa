//! From the text of the file to a validated topology.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::check::{self, Kinds};
use super::declare::{
    self, KindEntry, OwnerlessEntry, ShardEntries, ShardEntry, SiteTableEntry, TableEntries, TableEntry,
};
use super::error::TopologyErrors;
use super::family::{self, Family, SiteFiles};
use super::id_type::{self, IdTypeEntry};
use super::order;
use super::raw::{At, Findings, Section};
use super::reference::{self, ReferenceEntry};
use super::serve::{self, JobConfig, ServeConfig};
use super::{
    CaptureConfig, DatabaseTable, Directory, DirectoryColumns, Licences, RepositoryConfig, RunLimits,
    SandboxConfig, SiteTable, Source, TableConfig, Tier, Topology,
};
use crate::digest::Digest;
use crate::ids::{Kind, ShardName};
use crate::retention::Retention;

/// Half of what a site may lose by default goes to the poll, well above what an idle poll costs.
const POLL_INTERVAL_MILLISECONDS: u64 = 1000;
/// An idle shard costs one small object each; ten seconds keep its covered time fresh.
const WATERMARK_INTERVAL_SECONDS: u64 = 10;
/// A read transaction keeps a SQLite write-ahead log from shrinking; an hour of it is much.
const SNAPSHOT_SECONDS_MAX: u64 = 3600;
/// What a busy shard writes in about a day: capture may be away so long before the shard's disk comes first.
const WAL_BYTES_MAX: u64 = 64 << 30;
/// Longer than a plan is worked on, a snapshot may take or a compaction lasts, over a weekend.
const GRACE_HOURS: u64 = 72;
/// A capture that slept for an hour looks whether its slot was removed: slots must stay for longer.
const GRACE_HOURS_MIN: u64 = 2;
/// Shorter days hold too few polls to promise anything.
const DAY_SECONDS_MIN: u64 = 60;
/// Enough to hide the latency of one S3 request behind the others.
const S3_REQUESTS: u64 = 16;
/// Fits the smallest machine that a responder is likely to have.
const BYTES_IN_FLIGHT: u64 = 256 * 1024 * 1024;
/// Over all shards; staging is CPU work, and responders' machines have few cores.
const STAGE_SLOTS: u64 = 4;
/// With growing waits between them; what fails so often needs a person.
const ATTEMPTS: u64 = 5;

impl Topology {
    /// The files with lists of sites that a topology names; [`Self::parse_with`] takes what is in them.
    pub fn site_files(text: &str, base_dir: &Path) -> Vec<PathBuf> {
        family::files(text, base_dir)
    }

    /// [`Self::parse_with`], for a topology that names no files.
    ///
    /// # Errors
    /// As there.
    pub fn parse(text: &str, file: &str, base_dir: &Path) -> Result<Self, TopologyErrors> {
        Self::parse_with(text, file, base_dir, &SiteFiles::new())
    }

    /// Reads and validates a topology. `file` is its name for messages; relative paths start at `base_dir`; `files` are
    /// those of [`Self::site_files`].
    ///
    /// # Errors
    /// [`TopologyErrors`]: as much of what is wrong as can be told at once, each with line and way out.
    pub fn parse_with(
        text: &str,
        file: &str,
        base_dir: &Path,
        files: &SiteFiles,
    ) -> Result<Self, TopologyErrors> {
        let mut findings = Findings::new(file, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        syntax_errors(&mut findings, text, &errors);
        if !findings.is_clean() {
            return Err(TopologyErrors(findings.into_errors()));
        }
        let draft = Draft::read(&mut findings, Section::root(table.get_ref()), base_dir, files);
        match draft {
            Some(draft) if findings.is_clean() => draft.resolve(findings, file, digest(text, files)),
            _ => Err(TopologyErrors(findings.into_errors())),
        }
    }
}

/// Of everything that the topology was read from.
pub(super) fn digest(text: &str, files: &SiteFiles) -> Digest {
    let mut all = text.to_owned();
    for list in files.values().flatten() {
        // No text holds this byte by itself: it would be no TOML.
        all.push('\0');
        all.push_str(list);
    }
    Digest::of(all.as_bytes())
}

fn syntax_errors(findings: &mut Findings<'_>, text: &str, errors: &[toml::de::Error]) {
    let mut repeated_header = None;
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        if !error.message().starts_with("duplicate key") {
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            let hint = "correct the line; strings are quoted, sections are in brackets";
            findings.add(at, format!("not TOML: {message}"), hint);
            continue;
        }
        let line = findings.line_text(at);
        if line.starts_with('[') {
            repeated_header = Some(at);
        } else if repeated_header.and_then(|header| text.get(header..at)).is_some_and(is_one_section) {
            // The keys of a repeated section are repeated, too; that it is repeated has been said.
            continue;
        }
        repeated(findings, at, line);
    }
}

fn is_one_section(text: &str) -> bool {
    !text.lines().skip(1).any(|line| line.trim_start().starts_with('['))
}

fn repeated(findings: &mut Findings<'_>, at: usize, line: &str) {
    if line.starts_with("[shards.") {
        findings.add(at, format!("two shards have one name: {line}"), "rename one of them");
    } else if line.starts_with("[tables.") {
        findings.add(at, format!("a table is declared twice: {line}"), "remove one of the two");
    } else {
        findings.add(at, format!("declared twice: {line}"), "remove one of the two");
    }
}

/// The file's sections, each valid on its own.
struct Draft {
    fleet: String,
    repository: RepositoryConfig,
    capture: CaptureConfig,
    retention: Option<Retention>,
    limits: RunLimits,
    directory: At<Directory>,
    licences: Option<At<Licences>>,
    ids: Vec<IdTypeEntry>,
    serve: ServeConfig,
    jobs: BTreeMap<String, JobConfig>,
    tiers: BTreeMap<String, Tier>,
    kinds: Vec<KindEntry>,
    references: Vec<ReferenceEntry>,
    shards: Vec<ShardEntry>,
    families: BTreeMap<ShardName, Family>,
    sandboxes: BTreeMap<String, SandboxConfig>,
    tables: Vec<TableEntry>,
    site_tables: Vec<SiteTableEntry>,
    ownerless: Vec<OwnerlessEntry>,
}

impl Draft {
    /// Reads every section, whatever is wrong with another.
    fn read(
        findings: &mut Findings<'_>,
        mut root: Section<'_>,
        base_dir: &Path,
        files: &SiteFiles,
    ) -> Option<Self> {
        let fleet = root.required_text(findings, "fleet", "add `fleet = \"NAME\"` at the top");
        if let Some(fleet) = &fleet
            && ShardName::new(fleet.value.as_str()).is_err()
        {
            let what = format!("`{}` is not a fleet name", fleet.value);
            findings.add(fleet.at, what, "use letters, digits, `-`, `_` and `.`");
        }
        let repository = repository(findings, &mut root, base_dir);
        let capture = capture(findings, &mut root);
        let retention = retention(findings, &mut root);
        let limits = limits(findings, &mut root);
        let directory = directory(findings, &mut root);
        let licences = licences(findings, &mut root);
        let ids = id_type::read(findings, &mut root);
        let serve = serve::serve(findings, &mut root, base_dir);
        let jobs = serve::jobs(findings, &mut root, base_dir);
        let tiers = tiers(findings, &mut root);
        let kinds = declare::kinds(findings, &mut root);
        let references = reference::read(findings, &mut root);
        let ShardEntries { shards, families, single } = declare::shards(findings, &mut root, base_dir, files);
        let sandboxes = declare::sandboxes(findings, &mut root, base_dir);
        let TableEntries { named: tables, of_sites: site_tables, ownerless } =
            declare::tables(findings, &mut root, single);
        root.close(findings);
        Some(Self {
            fleet: fleet?.value,
            repository: repository?,
            capture,
            retention,
            limits,
            directory: directory?,
            licences,
            ids,
            serve,
            jobs,
            tiers,
            kinds,
            references,
            shards,
            families,
            sandboxes,
            tables,
            site_tables,
            ownerless,
        })
    }

    /// Checks what the sections say about each other.
    fn resolve(
        self,
        mut findings: Findings<'_>,
        file: &str,
        digest: Digest,
    ) -> Result<Topology, TopologyErrors> {
        let mentioned =
            order::mentioned(&self.kinds, &self.tables, (&self.site_tables, &self.ownerless), &self.shards);
        let kinds = order::resolve(&mut findings, &self.kinds, &mentioned);
        order::check_cycles(&mut findings, &kinds, &mentioned);
        let source = self.source(&findings, file, &mentioned);
        let all = Kinds { configs: &kinds, mentioned: &mentioned };
        check::names_of_drills(&mut findings, &self.shards);
        let shards = check::shards(&mut findings, self.shards, &all);
        check::tables(&mut findings, &self.tables, (&self.site_tables, &self.ownerless), &shards, &all);
        check::ownerless(&mut findings, &self.ownerless, &shards);
        check::site_tables(&mut findings, &self.site_tables, &self.tables, &shards);
        check::directory(&mut findings, &self.directory, &self.tables, &self.site_tables);
        if let Some(licences) = &self.licences {
            check::licences(&mut findings, licences, &self.tables, &self.site_tables);
        }
        let ids = id_type::resolve(&mut findings, self.ids, (&self.tables, &self.site_tables), &all);
        let references = reference::resolve(
            &mut findings,
            &self.references,
            &self.tables,
            (&self.site_tables, &self.ownerless),
        );
        if !findings.is_clean() {
            return Err(TopologyErrors(findings.into_errors()));
        }
        let table = |entry: TableEntry| {
            let TableEntry { name, kind, owner, migrations, harmless_triggers } = entry;
            (name.value, TableConfig { kind: kind.value, owner, migrations, harmless_triggers })
        };
        let site_table = |entry: SiteTableEntry| SiteTable {
            pattern: entry.pattern.value,
            kind: entry.kind.value,
            migrations: entry.migrations,
            harmless_triggers: entry.harmless_triggers,
        };
        let database_table = |entry: OwnerlessEntry| {
            let OwnerlessEntry { name, kind, migrations, harmless_triggers } = entry;
            (name.value, DatabaseTable { kind: kind.value, migrations, harmless_triggers })
        };
        Ok(Topology {
            digest,
            source,
            fleet: self.fleet,
            repository: self.repository,
            capture: self.capture,
            retention: self.retention,
            limits: self.limits,
            directory: self.directory.value,
            licences: self.licences.map(|licences| licences.value),
            ids,
            serve: self.serve,
            jobs: self.jobs,
            tiers: self.tiers,
            kinds,
            references,
            shards,
            families: self.families,
            sandboxes: self.sandboxes,
            tables: self.tables.into_iter().map(table).collect(),
            site_tables: self.site_tables.into_iter().map(site_table).collect(),
            database_tables: self.ownerless.into_iter().map(database_table).collect(),
        })
    }

    fn source(&self, findings: &Findings<'_>, file: &str, kinds: &BTreeMap<Kind, usize>) -> Source {
        let kinds = kinds.iter().map(|(kind, at)| (format!("kinds.{kind}"), *at));
        let shards = self.shards.iter().map(|shard| (format!("shards.{}", shard.name.value), shard.name.at));
        let tables = self.tables.iter().map(|table| (format!("tables.{}", table.name.value), table.name.at));
        let of_sites = self
            .site_tables
            .iter()
            .map(|table| (format!("tables.{}", table.pattern.value), table.pattern.at));
        let ownerless =
            self.ownerless.iter().map(|table| (format!("tables.{}", table.name.value), table.name.at));
        let tables = tables.chain(of_sites).chain(ownerless);
        let lines = kinds.chain(shards).chain(tables).map(|(name, at)| (name, findings.line(at))).collect();
        Source { file: file.to_owned(), lines }
    }
}

fn repository(
    findings: &mut Findings<'_>,
    root: &mut Section<'_>,
    base_dir: &Path,
) -> Option<RepositoryConfig> {
    let Some(mut section) = root.section(findings, "repository") else {
        if !root.has("repository") {
            findings.add(
                0,
                "there is no [repository]",
                "add [repository] with `bucket`, and `endpoint` for anything but AWS",
            );
        }
        return None;
    };
    let bucket = section.required_text(findings, "bucket", "add `bucket = \"NAME\"`");
    if let Some(bucket) = &bucket
        && !is_bucket_name(&bucket.value)
    {
        let what = format!("`{}` is not a bucket name", bucket.value);
        findings.add(
            bucket.at,
            what,
            "use 3 to 63 lower-case letters, digits, `-` and `.`, beginning with a letter or digit",
        );
    }
    let prefix = section.text(findings, "prefix");
    if let Some(prefix) =
        prefix.as_ref().filter(|prefix| prefix.value.starts_with('/') || prefix.value.ends_with('/'))
    {
        findings.add(
            prefix.at,
            format!("the prefix `{}` begins or ends with `/`", prefix.value),
            "remove the slash",
        );
    }
    let region =
        section.text(findings, "region").map_or_else(|| "us-east-1".to_owned(), |region| region.value);
    let endpoint = section.text(findings, "endpoint");
    let embedded = section.text(findings, "embedded");
    let path_style = section.flag(findings, "path_style");
    check_embedded(findings, embedded.as_ref(), endpoint.as_ref(), path_style.as_ref());
    section.close(findings);
    Some(RepositoryConfig {
        bucket: bucket?.value,
        prefix: prefix.map(|prefix| prefix.value).unwrap_or_default(),
        region,
        path_style: path_style.map_or(endpoint.is_some(), |flag| flag.value),
        endpoint: endpoint.map(|endpoint| endpoint.value),
        embedded: embedded.map(|dir| base_dir.join(dir.value)),
    })
}

fn check_embedded(
    findings: &mut Findings<'_>,
    embedded: Option<&At<String>>,
    endpoint: Option<&At<String>>,
    path_style: Option<&At<bool>>,
) {
    let Some(embedded) = embedded else { return };
    let address = endpoint.and_then(|endpoint| endpoint.value.strip_prefix("http://"));
    let address = address.and_then(|address| address.trim_end_matches('/').parse::<SocketAddr>().ok());
    if address.is_none_or(|address| !address.ip().is_loopback() || address.port() == 0) {
        let at = endpoint.map_or(embedded.at, |endpoint| endpoint.at);
        let found = endpoint.map_or_else(|| "none".to_owned(), |endpoint| format!("`{}`", endpoint.value));
        findings.add(
            at,
            format!("the embedded S3 server needs a loopback endpoint, and the endpoint is {found}"),
            "write `endpoint = \"http://127.0.0.1:9310\"` or another port",
        );
    }
    if let Some(flag) = path_style.filter(|flag| !flag.value) {
        let what = "the embedded S3 server has buckets in the path only";
        findings.add(flag.at, what, "write `path_style = true`, or leave it out");
    }
}

fn is_bucket_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| allowed(*byte) || matches!(byte, b'-' | b'.'))
        && bytes.first().is_some_and(|byte| allowed(*byte))
        && bytes.last().is_some_and(|byte| allowed(*byte))
        && !name.contains("..")
}

fn capture(findings: &mut Findings<'_>, root: &mut Section<'_>) -> CaptureConfig {
    let defaults = CaptureConfig {
        poll_interval_milliseconds: POLL_INTERVAL_MILLISECONDS,
        watermark_interval_seconds: WATERMARK_INTERVAL_SECONDS,
        snapshot_seconds_max: SNAPSHOT_SECONDS_MAX,
        wal_bytes_max: WAL_BYTES_MAX,
    };
    let Some(mut section) = root.section(findings, "capture") else { return defaults };
    let mut number = |key, default| section.positive_or(findings, key, default);
    let config = CaptureConfig {
        poll_interval_milliseconds: number("poll_interval_milliseconds", defaults.poll_interval_milliseconds),
        watermark_interval_seconds: number("watermark_interval_seconds", defaults.watermark_interval_seconds),
        snapshot_seconds_max: number("snapshot_seconds_max", defaults.snapshot_seconds_max),
        wal_bytes_max: number("wal_bytes_max", defaults.wal_bytes_max),
    };
    section.close(findings);
    config
}

fn retention(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Option<Retention> {
    let mut section = root.section(findings, "retention")?;
    let hint = "add `every_moment_days = 14`: any moment of so many days can be restored";
    let every_moment_days = section.required_positive(findings, "every_moment_days", hint);
    let daily = section.positive(findings, "daily_days");
    let grace = section.positive(findings, "grace_hours");
    let day = section.positive(findings, "day_seconds");
    if let (Some(days), Some(daily)) = (every_moment_days, &daily)
        && daily.value < days
    {
        let what = format!("`daily_days` is {}, less than `every_moment_days`, {days}", daily.value);
        findings.add(daily.at, what, "leave it out, or let it reach farther back");
    }
    if let Some(grace) = grace.as_ref().filter(|grace| grace.value < GRACE_HOURS_MIN) {
        let what = format!("`grace_hours` is {}", grace.value);
        findings.add(
            grace.at,
            what,
            format!("write {GRACE_HOURS_MIN} or more: plans under way need their objects"),
        );
    }
    if let Some(day) =
        day.as_ref().filter(|day| !(DAY_SECONDS_MIN..=Retention::DAY_SECONDS).contains(&day.value))
    {
        let what = format!("`day_seconds` is {}", day.value);
        let hint =
            format!("leave it out; rehearsals on fleets of no worth may write {DAY_SECONDS_MIN} or more");
        findings.add(day.at, what, hint);
    }
    section.close(findings);
    let every_moment_days = every_moment_days?;
    Some(Retention {
        every_moment_days,
        daily_days: daily.map_or(every_moment_days, |daily| daily.value),
        grace_hours: grace.map_or(GRACE_HOURS, |grace| grace.value),
        day_seconds: day.map_or(Retention::DAY_SECONDS, |day| day.value),
    })
}

fn limits(findings: &mut Findings<'_>, root: &mut Section<'_>) -> RunLimits {
    // No run makes more attempts than fit.
    let attempts = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let Some(mut section) = root.section(findings, "limits") else {
        return RunLimits {
            s3_requests: S3_REQUESTS,
            bytes_in_flight: BYTES_IN_FLIGHT,
            stage_slots: STAGE_SLOTS,
            attempts: attempts(ATTEMPTS),
        };
    };
    let mut number = |key, default| section.positive_or(findings, key, default);
    let limits = RunLimits {
        s3_requests: number("s3_requests", S3_REQUESTS),
        bytes_in_flight: number("bytes_in_flight", BYTES_IN_FLIGHT),
        stage_slots: number("stage_slots", STAGE_SLOTS),
        attempts: attempts(number("attempts", ATTEMPTS)),
    };
    section.close(findings);
    limits
}

fn kind_of(findings: &mut Findings<'_>, section: &mut Section<'_>) -> Option<Kind> {
    let text = section.required_text(findings, "kind", "add `kind = \"...\"`, the kind of the table")?;
    let kind: Result<Kind, _> = text.value.parse();
    if kind.is_err() {
        findings.add(text.at, format!("`{}` is not a kind", text.value), "name the kind of the table");
    }
    kind.ok()
}

fn directory(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Option<At<Directory>> {
    let Some(mut section) = root.section(findings, "directory") else {
        if !root.has("directory") {
            let hint = "add [directory] with `kind` and `table`, the table with one row a site";
            findings.add(0, "there is no [directory]", hint);
        }
        return None;
    };
    let kind = kind_of(findings, &mut section);
    let table =
        section.required_text(findings, "table", "add `table = \"...\"`, the table with one row a site");
    let columns = section.section(findings, "columns").map(|mut columns| {
        let mut column = |key| columns.text(findings, key).map(|column| column.value);
        let named = DirectoryColumns {
            name: column("name"),
            region: column("region"),
            tier: column("tier"),
            customer: column("customer"),
            internal: column("internal"),
            users: column("users"),
        };
        columns.close(findings);
        named
    });
    let at = section.at();
    section.close(findings);
    let value = Directory { kind: kind?, table: table?.value, columns: columns.unwrap_or_default() };
    Some(At { value, at })
}

fn licences(findings: &mut Findings<'_>, root: &mut Section<'_>) -> Option<At<Licences>> {
    let mut section = root.section(findings, "licences")?;
    let kind = kind_of(findings, &mut section);
    let table = section.required_text(findings, "table", "add `table = \"...\"`, the table of licences");
    let product_hint = "add `product_column = \"...\"`, the column that names the kind";
    let product_column = section.required_text(findings, "product_column", product_hint);
    let active_column = section.text(findings, "active_column").map(|column| column.value);
    let at = section.at();
    section.close(findings);
    let (table, product_column) = (table?.value, product_column?.value);
    Some(At { value: Licences { kind: kind?, table, product_column, active_column }, at })
}

fn tiers(findings: &mut Findings<'_>, root: &mut Section<'_>) -> BTreeMap<String, Tier> {
    let mut tiers = BTreeMap::new();
    let sections = root.sections(findings, "tiers");
    if sections.is_empty() {
        let hint = "add [tiers.standard] with `rto_seconds` and `rpo_seconds`";
        findings.add(0, "there are no tiers", hint);
    }
    for At { value: (name, mut section), at: _ } in sections {
        let rto = section.required_positive(
            findings,
            "rto_seconds",
            "add `rto_seconds`, the time to have a site back",
        );
        let rpo =
            section.required_positive(findings, "rpo_seconds", "add `rpo_seconds`, what a site may lose");
        section.close(findings);
        if let (Some(rto_seconds), Some(rpo_seconds)) = (rto, rpo) {
            tiers.insert(name, Tier { rto_seconds, rpo_seconds });
        }
    }
    tiers
}
