//! `muster plan`: decide everything about a restore and write it down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use muster_drill::look;
use muster_forecast::Forecast;
use muster_plan::planner::{self, PlanInput};
use muster_repo::retention;
use muster_types::catalog::Catalog;
use muster_types::format::{self, FORMAT};
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::{Plan, Severity};
use muster_types::request::{Placement, PlanRequest, ProofLevel};
use muster_types::retention::PlanHold;
use muster_types::{Kind, ShardName, SiteId, StoreId, Timestamp};

use crate::commands::{forecast, plan_view};
use crate::context::{self, Context};
use crate::select::{self, SiteFilter, SiteIds};
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Arguments of `muster plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The incident file that `muster detect` wrote, with a target time per site.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sites", "sites_file", "to", "region", "tier", "shard"])]
    incident: Option<PathBuf>,
    #[command(flatten)]
    ids: SiteIds,
    #[command(flatten)]
    filter: SiteFilter,
    /// The moment to return to: RFC 3339 or `5m ago`; each store reaches its last recovery point at or before it.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Where to write the plan.
    #[arg(long, value_name = "FILE", default_value = "plan.json")]
    out: PathBuf,
    /// How much of the neighbours is proven untouched; `full` also digests each touched shard before and after.
    #[arg(long, value_enum, default_value_t = Proof::Marked)]
    proof: Proof,
    /// Replace the live rows of this site.
    #[arg(long, value_name = "SITE")]
    overwrite: Vec<SiteId>,
    /// Let the publish of this store block other writers beyond its shard's bound.
    #[arg(long, value_name = "STORE")]
    accept_block: Vec<StoreId>,
    /// Accept the loss that a gap in a shard's log means, as its note names it.
    #[arg(long, value_name = "GAP")]
    accept_gap: Vec<String>,
    /// Plan what would go into the shard OLD into the shard NEW, of the same driver; OLD may be gone. An empty NEW is first
    /// given the definitions and reference rows that OLD had.
    #[arg(long, value_name = "OLD=NEW", value_parser = to_shard)]
    to_shard: Vec<(ShardName, ShardName)>,
    /// Plan only what this shard held; the sites' other stores are left as they are.
    #[arg(long, value_name = "SHARD")]
    only_shard: Vec<ShardName>,
    /// Plan only stores of this kind; the sites' other stores are left as they are.
    #[arg(long, value_name = "KIND")]
    only_kind: Vec<Kind>,
    /// Let a shard of another region than the site's hold it.
    #[arg(long)]
    allow_region: bool,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

/// How much of the neighbours is proven untouched.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proof {
    /// What the run wrote is read back from the change logs.
    Marked,
    /// Also digest the neighbours before and after.
    Full,
}

pub(crate) async fn run(topology: &TopologyPlace, args: PlanArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let incident = incident(&context, &args).await?;
    let request = PlanRequest {
        incident,
        proof: match args.proof {
            Proof::Marked => ProofLevel::Marked,
            Proof::Full => ProofLevel::Full,
        },
        overwrite: args.overwrite.iter().cloned().collect(),
        accept_block: args.accept_block.iter().cloned().collect(),
        accept_gap: args.accept_gap.iter().cloned().collect(),
        placement: placement(&context, &args)?,
    };
    let plan = make(&context, &request).await?;
    hold(&context, &plan).await?;
    write(&plan, &args.out)?;
    let forecast = forecast::of_plan(&context, &plan).await?;
    if args.json {
        print::data(serde_json::to_string_pretty(&Forecasted { plan: &plan, forecast: &forecast })?);
    } else {
        plan_view::show(&plan, &forecast);
    }
    print::talk(format!("wrote {} · holds its objects until {}", args.out.display(), plan.expires_at));
    if plan.worst() == Some(Severity::Fatal) {
        print::talk("this plan cannot be applied: see the fatal notes");
        return Ok(ExitCode::from(exit::Exit::Input as u8));
    }
    let excluded = planner::held_back(&plan.notes).len();
    if excluded > 0 {
        print::talk(format!("{excluded} sites are left out: see their notes"));
        return Ok(ExitCode::from(exit::Exit::Partial as u8));
    }
    print::talk(format!("next: muster apply {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// A plan with the forecast of its run, which is no part of it: it changes with each run and drill.
#[derive(serde::Serialize)]
struct Forecasted<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    forecast: &'a Forecast,
}

/// `OLD=NEW`.
fn to_shard(text: &str) -> Result<(ShardName, ShardName), String> {
    let (old, new) = text.split_once('=').ok_or("write it as OLD=NEW")?;
    let name = |text: &str| text.parse::<ShardName>().map_err(|error| error.to_string());
    Ok((name(old)?, name(new)?))
}

fn placement(context: &Context, args: &PlanArgs) -> Result<Placement> {
    let shards = &context.topology.shards;
    let mut placement = Placement {
        allow_region: args.allow_region,
        only_shards: args.only_shard.iter().cloned().collect(),
        only_kinds: args.only_kind.iter().cloned().collect(),
        ..Placement::default()
    };
    for (old, new) in &args.to_shard {
        if !shards.contains_key(new) {
            return Err(exit::input(format!(
                "--to-shard {old}={new}: the topology declares no shard `{new}`; declare it with the driver, region and kinds \
                 that `{old}` had"
            )));
        }
        if let Some(other) = placement.to_shard.insert(old.clone(), new.clone()).filter(|other| other != new)
        {
            return Err(exit::input(format!(
                "--to-shard sends `{old}` to `{other}` and to `{new}`; name one of them"
            )));
        }
    }
    Ok(placement)
}

/// Holds the plan's objects until it expires.
async fn hold(context: &Context, plan: &Plan) -> Result<()> {
    let hold = PlanHold {
        format: FORMAT,
        plan: plan.id.clone(),
        title: plan.request.incident.title.clone(),
        created_at: plan.created_at,
        expires_at: plan.expires_at,
        sites: Some(plan.sites.iter().map(|site| site.site.clone()).collect()),
        topology: Some(plan.topology),
        objects: plan.objects.iter().map(|object| object.key.clone()).collect(),
    };
    retention::hold_plan(&context.repository, &hold).await?;
    // Only now: who removes objects notes it first, and then looks for holds.
    let gone = retention::swept(&context.repository, &hold.objects).await?;
    let Some(first) = gone.first() else { return Ok(()) };
    Err(exit::refused(format!(
        "`{first}` and {} other objects that the plan needs are being pruned; choose a moment that the retention \
         promises, or another target for the sites that need it",
        gone.len() - 1
    )))
}

/// Reads the catalog, asks the drivers, plans.
pub(crate) async fn make(context: &Context, request: &PlanRequest) -> Result<Plan> {
    let sites = &request.incident.sites;
    let mut catalog = context.catalog_of(sites.iter().map(|site| site.site.clone())).await?;
    muster_inspect::read_facts(&context.repository, &context.topology, &mut catalog, sites).await?;
    let probes = planner::select_placed(&context.topology, &catalog, sites, &request.placement)?;
    let drivers = context.drivers();
    let surveys = look::surveys(&drivers, &catalog, &probes, &request.placement).await?;
    let live = look::live(&drivers, probes, &surveys).await?;
    let now = context::now();
    let topology = &context.topology;
    let input = PlanInput { topology, catalog: &catalog, request, live: &live, now };
    Ok(planner::plan_placed(input, &surveys)?)
}

async fn incident(context: &Context, args: &PlanArgs) -> Result<Incident> {
    if let Some(path) = &args.incident {
        return read_incident(path);
    }
    let Some(to) = &args.to else {
        return Err(exit::input("which moment? name it with --to TIME, or give an --incident file"));
    };
    let target = select::moment(to)?;
    let (mut sites, repeated) = args.ids.resolve()?;
    let mut id_source = "named on the command line".to_owned();
    if let Some(path) = &args.ids.sites_file {
        id_source = format!("file {}", path.display());
    }
    if args.filter.is_set() {
        let found = filtered(context, &args.filter, target).await?;
        if found.is_empty() {
            return Err(exit::input(format!(
                "no site matched {} at {target}; `muster sites` lists the sites, `muster capture status` how far back and \
                 forth the repository reaches",
                args.filter
            )));
        }
        sites.extend(found);
        id_source = format!("filter {}", args.filter);
    }
    // A site that was named twice stays twice: the plan has a note on it.
    sites.extend(repeated);
    if sites.is_empty() {
        return Err(exit::input(
            "no site is selected: name sites as site:ID, or use --sites-file, --region, --tier, --shard or --incident",
        ));
    }
    let one = |site| IncidentSite { site, target, outage_at: None, before: BTreeMap::new(), note: None };
    Ok(Incident {
        format: FORMAT,
        title: format!("restore of {} sites to {target}", sites.len()),
        declared_at: context::now(),
        id_source,
        sites: sites.into_iter().map(one).collect(),
    })
}

/// The sites that matched the filter at the target, by what the directory said then.
async fn filtered(context: &Context, filter: &SiteFilter, target: Timestamp) -> Result<BTreeSet<SiteId>> {
    let mut catalog: Catalog = context.catalog_of_all().await?;
    let all: Vec<IncidentSite> = catalog
        .sites
        .keys()
        .map(|site| IncidentSite {
            site: site.clone(),
            target,
            outage_at: None,
            before: BTreeMap::new(),
            note: None,
        })
        .collect();
    muster_inspect::read_facts(&context.repository, &context.topology, &mut catalog, &all).await?;
    // A filter that cannot be told of some sites would silently leave them out.
    let mut unread = catalog.sites.iter().filter_map(|(id, site)| Some((id, filter.untold(site)?)));
    if let Some((first, reason)) = unread.next() {
        let others = match unread.count() {
            0 => String::new(),
            others => format!(" and {others} others"),
        };
        return Err(exit::input(format!(
            "whether {first}{others} match {filter} cannot be told: {reason}; bring the object back from the bucket's \
             versions or replica, or name the sites with --sites-file"
        )));
    }
    Ok(catalog.sites.iter().filter(|(_, site)| filter.matches(site)).map(|(id, _)| id.clone()).collect())
}

/// Reads an incident file.
pub(crate) fn read_incident(path: &Path) -> Result<Incident> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| exit::input(format!("failed to read the incident `{}`: {error}", path.display())))?;
    let incident: Incident = toml::from_str(&text)
        .map_err(|error| exit::input(format!("`{}` is not an incident file: {error}", path.display())))?;
    format::accept(&path.display().to_string(), incident.format).map_err(exit::input)?;
    if incident.sites.is_empty() {
        return Err(exit::input(format!(
            "the incident `{}` names no site: there is nothing to plan",
            path.display()
        )));
    }
    Ok(incident)
}

/// Reads a plan file, checking its format and that its content has its id.
pub(crate) fn read(path: &Path) -> Result<Plan> {
    let failed =
        |error: &dyn std::fmt::Display| exit::input(format!("`{}` is not a plan: {error}", path.display()));
    let text = std::fs::read(path)
        .map_err(|error| exit::input(format!("failed to read the plan `{}`: {error}", path.display())))?;
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    format::accept(&path.display().to_string(), head.format).map_err(exit::input)?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    if plan.content_id() != plan.id {
        return Err(exit::refused(format!(
            "the plan `{}` was changed after it was made: its id {} is not that of its content; plan again",
            path.display(),
            plan.id
        )));
    }
    Ok(plan)
}

fn write(plan: &Plan, path: &Path) -> Result<()> {
    let text = serde_json::to_vec(plan)?;
    std::fs::write(path, text).with_context(|| format!("failed to write the plan `{}`", path.display()))
}
