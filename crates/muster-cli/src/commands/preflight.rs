//! `muster preflight`: what a list of ids that is about to be deleted really names, and a hash to approve.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use muster_drill::look;
use muster_plan::preflight::{FoundId, GivenId, Judgement, PreflightInput, judge};
use muster_plan::select_stores;
use muster_repo::preflights;
use muster_stores::lookup::{FoundRow, Lookup, find};
use muster_types::catalog::SiteFacts;
use muster_types::format::FORMAT;
use muster_types::incident::IncidentSite;
use muster_types::preflight::{Expectation, Preflight, hash_of};
use muster_types::topology::SITE_ID_TYPE;
use muster_types::{Digest, Kind, SiteId};

use super::{apply, preflight_view};
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Shards asked at once: each costs a connection and hardly any work here.
const SHARDS_AT_ONCE: usize = 8;

/// Arguments of `muster preflight`.
#[derive(Debug, Args)]
pub(crate) struct PreflightArgs {
    #[command(subcommand)]
    command: PreflightCommand,
}

#[derive(Debug, Subcommand)]
enum PreflightCommand {
    /// Hold a list against the live shards; prints the hash to approve. Code 5 if the list is not what was said.
    Deletion(DeletionArgs),
    /// For the acting side: is this still the list that the hash was given for? Code 5 if it is not.
    Confirm(ConfirmArgs),
}

#[derive(Debug, Args)]
struct DeletionArgs {
    #[command(flatten)]
    list: ListArgs,
    /// The type that every id must be of: `site`, or one of the topology's `[ids]`.
    #[arg(long, value_name = "TYPE")]
    expect: String,
    /// How many ids there must be.
    #[arg(long, value_name = "N")]
    count: u64,
    /// Oldest recovery point that will do, such as `5m`; the RPO of each site's tier if left out.
    #[arg(long, value_name = "SPAN")]
    recovery_point_age_max: Option<String>,
    /// How long the hash can be presented.
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    valid: String,
}

#[derive(Debug, Args)]
struct ConfirmArgs {
    /// The hash that was approved.
    #[arg(value_name = "HASH")]
    hash: Digest,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// A file with one id a line, as `ID`, `TYPE:ID` or `TYPE:ID@SITE`; `#` starts a comment.
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(topology: &TopologyPlace, args: PreflightArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    match args.command {
        PreflightCommand::Deletion(args) => deletion(&context, args).await,
        PreflightCommand::Confirm(args) => confirm(&context, args).await,
    }
}

async fn deletion(context: &Context, args: DeletionArgs) -> Result<ExitCode> {
    let types: Vec<&str> =
        std::iter::once(SITE_ID_TYPE).chain(context.topology.ids.keys().map(String::as_str)).collect();
    if !types.contains(&args.expect.as_str()) {
        return Err(exit::input(format!(
            "`{}` is no type of ids in this topology, which has {}; declare it as [ids.{}]",
            args.expect,
            types.join(", "),
            args.expect
        )));
    }
    let age = args.recovery_point_age_max.as_deref().map(select::span_seconds).transpose()?;
    let expected =
        Expectation { id_type: args.expect, count: args.count, recovery_point_age_seconds_max: age };
    let valid_seconds = select::span_seconds(&args.valid)?;
    let preflight = ask(context, &args.list.ids, expected, valid_seconds).await?;
    if preflight.refusals.is_empty() {
        preflights::put(&context.repository, &preflight).await?;
    }
    show(&preflight, args.list.json)?;
    Ok(code(&preflight))
}

async fn confirm(context: &Context, args: ConfirmArgs) -> Result<ExitCode> {
    let known = preflights::newest(&context.repository, &args.hash).await?;
    let Some(known) = known else {
        return Err(exit::preflight(format!(
            "no preflight has the hash {}; run `muster preflight deletion` and have its hash approved",
            args.hash
        )));
    };
    let now = context::now();
    if known.expires_at < now {
        return Err(exit::preflight(format!(
            "the hash could be presented until {}; run `muster preflight deletion` again, and have it approved again",
            known.expires_at
        )));
    }
    let valid_seconds = known.expires_at.seconds_since(now).max(0.0) as u64;
    let again = ask(context, &args.list.ids, known.expected.clone(), valid_seconds).await?;
    if again.hash != known.hash {
        let differences = preflight_view::differences(&known, &again);
        return Err(exit::preflight(format!(
            "`{}` is not the list that was approved as {}:\n{differences}\ndelete nothing; ask who made the list",
            args.list.ids.display(),
            args.hash.short()
        )));
    }
    show(&again, args.list.json)?;
    Ok(code(&again))
}

fn code(preflight: &Preflight) -> ExitCode {
    match preflight.refusals.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(exit::Exit::Preflight as u8),
    }
}

fn show(preflight: &Preflight, json: bool) -> Result<()> {
    if json {
        print::data(serde_json::to_string_pretty(preflight)?);
    } else {
        preflight_view::show(preflight);
    }
    Ok(())
}

/// Holds the list against the live shards and the repository.
async fn ask(context: &Context, ids: &Path, expected: Expectation, valid_seconds: u64) -> Result<Preflight> {
    let given = read(ids)?;
    let values: BTreeSet<String> = given.iter().flat_map(|given| given.values().map(str::to_owned)).collect();
    let found = named(context, values.into_iter().collect()).await?;
    let sites: BTreeSet<SiteId> = found.iter().map(|found| found.site.clone()).collect();
    let facts = facts(context, &sites).await?;
    let catalog = context.catalog_of(sites.iter().cloned()).await?;
    // Whatever is written while the shards are asked counts as older than it is, never as newer.
    let now = context::now();
    let at_now = |site: &SiteId| IncidentSite {
        site: site.clone(),
        target: now,
        outage_at: None,
        before: BTreeMap::new(),
        note: None,
    };
    let at_now: Vec<IncidentSite> = sites.iter().map(at_now).collect();
    let stores = select_stores(&context.topology, &catalog, &at_now)?;
    let live = look::live(&context.drivers(), stores.clone(), &BTreeMap::new()).await?;
    let Judgement { subjects, loss, refusals } = judge(PreflightInput {
        topology: &context.topology,
        expected: &expected,
        given: &given,
        found: &found,
        facts: &facts,
        stores: &stores,
        live: &live,
        now,
    });
    let valid_micros = i64::try_from(valid_seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    Ok(Preflight {
        format: FORMAT,
        hash: hash_of(&expected, &subjects),
        made_at: now,
        expires_at: now.plus_micros(valid_micros),
        made_by: apply::operator(),
        expected,
        subjects,
        loss,
        refusals,
    })
}

fn read(path: &Path) -> Result<Vec<GivenId>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| exit::input(format!("failed to read `{}`: {error}", path.display())))?;
    let lines = text.lines().enumerate();
    let id = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let lines = lines.map(|(number, line)| (number, id(line))).filter(|(_, id)| !id.is_empty());
    Ok(lines.map(|(number, id)| GivenId::read(format!("{}:{}", path.display(), number + 1), &id)).collect())
}

/// Everything that has one of these ids in a live shard, of whatever type.
async fn named(context: &Context, values: Vec<String>) -> Result<BTreeSet<FoundId>> {
    let topology = &context.topology;
    let (table, kind, tenant) = directory(context)?;
    let lookup = Lookup { table, key: tenant, values: values.clone(), columns: Vec::new() };
    let mut found = BTreeSet::new();
    for row in rows(context, &kind, &lookup).await? {
        let Ok(site) = SiteId::new(row.key.clone()) else { continue };
        found.insert(FoundId { id_type: SITE_ID_TYPE.to_owned(), id: row.key, site, kind: None });
    }
    for (name, id_type) in &topology.ids {
        let lookup = Lookup {
            table: id_type.table.clone(),
            key: id_type.column.clone(),
            values: values.clone(),
            columns: vec![id_type.tenant_column.clone(), id_type.kind_column.clone()],
        };
        for row in rows(context, &id_type.table_kind, &lookup).await? {
            let [Some(site), Some(kind)] = row.values.as_slice() else { continue };
            let (Ok(site), Ok(kind)) = (SiteId::new(site.clone()), kind.parse::<Kind>()) else { continue };
            if id_type.kinds.contains(&kind) {
                found.insert(FoundId { id_type: name.clone(), id: row.key, site, kind: Some(kind) });
            }
        }
    }
    Ok(found)
}

/// What the live directory says of these sites.
async fn facts(context: &Context, sites: &BTreeSet<SiteId>) -> Result<BTreeMap<SiteId, SiteFacts>> {
    let columns = &context.topology.directory.columns;
    let (table, kind, key) = directory(context)?;
    let values = sites.iter().map(|site| site.as_str().to_owned()).collect();
    let lookup = Lookup { table, key, values, columns: columns.names() };
    let mut facts = BTreeMap::new();
    for FoundRow { key, values } in rows(context, &kind, &lookup).await? {
        let value = |name: &str| {
            let number = lookup.columns.iter().position(|column| column == name)?;
            values.get(number).cloned().flatten()
        };
        if let Ok(site) = SiteId::new(key) {
            facts.insert(site, columns.facts(value));
        }
    }
    Ok(facts)
}

/// The directory's table, kind and tenant column.
fn directory(context: &Context) -> Result<(String, Kind, String)> {
    let directory = &context.topology.directory;
    let column = context.topology.directory_tenant().context("the directory has no tenant column")?;
    Ok((directory.table.clone(), directory.kind.clone(), column.to_owned()))
}

/// Rows of every shard that hosts the kind. A shard that does not answer is an error: an id that cannot be told must not
/// count as one that names nothing.
async fn rows(context: &Context, kind: &Kind, lookup: &Lookup) -> Result<Vec<FoundRow>> {
    let topology = &context.topology;
    let shards = topology.shards.iter().filter(|(_, shard)| shard.kinds.contains(kind));
    let found: Vec<Vec<FoundRow>> = stream::iter(shards.map(|(name, _)| name))
        .map(async |shard| {
            find(topology, shard, lookup).await.with_context(|| format!("failed to look at shard {shard}"))
        })
        .buffer_unordered(SHARDS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}
