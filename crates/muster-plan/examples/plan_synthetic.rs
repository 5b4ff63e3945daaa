//! Plans a made-up fleet and prints the processor time (and the time) that each phase took and the most memory held.
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
    let start = Clock::start()?;
    let topology = synthetic::topology(fleet)?;
    let catalog = synthetic::catalog(fleet)?;
    let request = synthetic::request(fleet)?;
    println!("{} sites over {} shards with {} segments each", fleet.sites, fleet.shards, fleet.segments);
    println!("catalog: made in {}; peak memory {} MiB", start.elapsed()?, peak_mebibytes()?);

    let start = Clock::start()?;
    let to = catalog.read_at;
    let found = detect(&topology, &catalog, synthetic::began_at(), to, &DetectOptions::default());
    println!("detect: {} sites lost in {}", found.lost.len(), start.elapsed()?);

    let start = Clock::start()?;
    let stores = select_stores(&topology, &catalog, &request.incident.sites)?.len();
    println!("select: {stores} stores in {}", start.elapsed()?);

    let start = Clock::start()?;
    let live = BTreeMap::new();
    let plan =
        plan(PlanInput { topology: &topology, catalog: &catalog, request: &request, live: &live, now: to })?;
    println!(
        "plan: {} sites, {} steps, {} notes in {}; peak memory {} MiB",
        plan.sites.len(),
        plan.steps.len(),
        plan.notes.len(),
        start.elapsed()?,
        peak_mebibytes()?
    );

    let start = Clock::start()?;
    let course = forecast(&plan);
    println!(
        "forecast: {:.0} s for all sites, in {}; {}",
        course.total_micros as f64 / 1e6,
        start.elapsed()?,
        plan.id
    );
    Ok(())
}

/// Wall and processor time: on a machine that others use as well the first says little.
struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self { wall: Instant::now(), cpu: cpu_seconds()? })
    }

    fn elapsed(&self) -> Result<String, Box<dyn std::error::Error>> {
        let (cpu, wall) = (cpu_seconds()? - self.cpu, self.wall.elapsed().as_secs_f64());
        Ok(format!("{cpu:.2} s of one processor ({wall:.2} s)"))
    }
}

/// User and system time of the process, in Linux's hundredths of a second.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = status.rsplit_once(") ").ok_or("no name in /proc/self/stat")?;
    let times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    Ok(times.sum::<Result<u64, _>>()? as f64 / 100.0)
}

/// The most resident memory that the process has had.
fn peak_mebibytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes / 1024)
}
