//! Planning a made-up fleet of any size, in a process of its own so that its peak memory is its own.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use muster_plan::synthetic::{self, Fleet};
use muster_plan::{PlanInput, forecast, plan, select_stores};

use crate::measure::{count, peak_mebibytes, seconds, table};

const SHARDS: u32 = 64;
/// A segment a minute: most of a day of log.
const SEGMENTS: u32 = 1_000;

/// Plans `sites` sites that all go back to before their own deletion.
pub(crate) fn run(sites: u32, here: bool) -> Result<()> {
    if here {
        return measure(Fleet { sites, shards: SHARDS, segments: SEGMENTS });
    }
    let status = Command::new(std::env::current_exe()?)
        .args(["plan", "--planned-sites", &sites.to_string()])
        .status()
        .context("failed to start the benchmark of the planner")?;
    ensure!(status.success(), "the benchmark of the planner ended with {status}");
    Ok(())
}

fn measure(fleet: Fleet) -> Result<()> {
    let topology = synthetic::topology(fleet)?;
    let mut table = table(&["plan", "seconds", "peak memory, MiB"]);
    let mut began = Instant::now();
    let mut row = |what: &str| -> Result<()> {
        let took = seconds(began.elapsed().as_secs_f64());
        table.add_row([what.to_owned(), took, count(peak_mebibytes()? as f64)]);
        began = Instant::now();
        Ok(())
    };
    let catalog = synthetic::catalog(fleet)?;
    let request = synthetic::request(fleet)?;
    row("(making the catalog up)")?;
    let stores = select_stores(&topology, &catalog, &request.incident.sites)?;
    let live: BTreeMap<_, _> = stores.iter().map(|store| (store.store.clone(), Default::default())).collect();
    let chosen = stores.len();
    drop(stores);
    row("choose the stores")?;
    let input = PlanInput {
        topology: &topology,
        catalog: &catalog,
        request: &request,
        live: &live,
        now: catalog.read_at,
    };
    let plan = plan(input)?;
    ensure!(plan.sites.len() == fleet.sites as usize, "only {} sites were planned", plan.sites.len());
    row("plan, check, seal")?;
    let course = forecast(&plan);
    ensure!(course.total_micros > 0, "the forecast is empty");
    row("forecast")?;
    println!(
        "\n{} sites, {} stores, {} steps, over {SHARDS} shards with {SEGMENTS} segments each\n{table}",
        count(fleet.sites.into()),
        count(chosen as f64),
        count(plan.steps.len() as f64)
    );
    Ok(())
}
