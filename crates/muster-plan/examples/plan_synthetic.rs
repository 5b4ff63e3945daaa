//! Plans a made-up fleet and prints how long that took and the most memory it held.
//!
//! `cargo run --release -p muster-plan --example plan_synthetic -- [SITES] [SHARDS] [SEGMENTS]`

use std::collections::BTreeMap;
use std::time::Instant;

use muster_plan::synthetic::{self, Fleet};
use muster_plan::{DetectOptions, PlanInput, detect, forecast, plan, select_stores};

#[expect(clippy::print_stdout, reason = "the point of the example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let fleet = Fleet { sites: next(100_000)?, shards: next(64)?, segments: next(1_000)? };
    let topology = synthetic::topology(fleet)?;
    let catalog = synthetic::catalog(fleet)?;
    let request = synthetic::request(fleet)?;
    println!("{} sites over {} shards with {} segments each", fleet.sites, fleet.shards, fleet.segments);
    println!("catalog: peak memory {} MiB", peak_mebibytes()?);

    let start = Instant::now();
    let to = catalog.read_at;
    let found = detect(&topology, &catalog, synthetic::began_at(), to, &DetectOptions::default());
    println!("detect: {} sites lost in {:.2} s", found.lost.len(), start.elapsed().as_secs_f64());

    let start = Instant::now();
    let stores = select_stores(&topology, &catalog, &request.incident.sites)?.len();
    println!("select: {stores} stores in {:.2} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    let live = BTreeMap::new();
    let plan =
        plan(PlanInput { topology: &topology, catalog: &catalog, request: &request, live: &live, now: to })?;
    println!(
        "plan: {} sites, {} steps, {} notes in {:.2} s; peak memory {} MiB",
        plan.sites.len(),
        plan.steps.len(),
        plan.notes.len(),
        start.elapsed().as_secs_f64(),
        peak_mebibytes()?
    );

    let start = Instant::now();
    let course = forecast(&plan);
    println!(
        "forecast: {:.0} s for all sites, in {:.2} s; {}",
        course.total_micros as f64 / 1e6,
        start.elapsed().as_secs_f64(),
        plan.id
    );
    Ok(())
}

/// The most resident memory that the process has had.
fn peak_mebibytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes / 1024)
}
