//! Makes a fleet, writes, deletes and judges what was left out: shows how long the demo's own parts take.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::{Duration, Instant};

use muster_demo::{Fleet, FleetConfig, Reached, TopologyOptions, WriterConfig};

fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "demo-fleet".to_owned());
    let started = Instant::now();
    let fleet = Fleet::generate(&FleetConfig::new(dir))?;
    println!("{} sites, {} rows: {:.1?}", fleet.sites.len(), fleet.rows(), started.elapsed());
    let largest = fleet.sites.iter().map(|site| site.rows).max();
    println!("largest site aims at {largest:?} rows");
    let options = TopologyOptions {
        bucket: "muster".to_owned(),
        embedded: "repository".into(),
        port: 9310,
        poll_interval_milliseconds: 500,
    };
    fleet.write_topology(&fleet.config.dir.join("topology.toml"), &options)?;
    let writers = fleet.start_writers(WriterConfig::default());
    let victims = fleet.pick_victims(883);
    let own = victims.iter().filter(|victim| fleet.sites[**victim].internal).count();
    let rows: usize = victims.iter().map(|victim| fleet.sites[*victim].rows).sum();
    println!("{} victims, {own} internal, about {rows} rows", victims.len());
    let started = Instant::now();
    let log = fleet.delete_victims(&victims, Duration::ZERO)?;
    println!("deleted {}: {:.1?}", log.sites.len(), started.elapsed());
    println!("{:?}", writers.stop()?);
    let started = Instant::now();
    let verdict = fleet.judge(&log, &Reached::new(), 0)?;
    println!("judged: {:.1?}\n{verdict}", started.elapsed());
    Ok(())
}
