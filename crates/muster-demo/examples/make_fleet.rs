//! Makes a fleet, writes, deletes and judges what was left out: shows how long the demo's own parts take.
//!
//! `make_fleet [FOLDER [POSTGRESQL_URL PREFIX]]`; with a URL, the databases are dropped in the end.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::{Duration, Instant};

use muster_demo::{
    Fleet, FleetConfig, PostgresServer, Reached, RepositoryPlace, TopologyOptions, WriterConfig,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = FleetConfig::new(arguments.first().map_or("demo-fleet", String::as_str));
    let server = match arguments.get(1..) {
        Some([url, prefix]) => Some(PostgresServer::new(url, prefix)?),
        _ => None,
    };
    let started = Instant::now();
    let fleet = match &server {
        Some(server) => Fleet::generate_on(server, &config)?,
        None => Fleet::generate(&config)?,
    };
    println!("{} sites, {} rows: {:.1?}", fleet.sites.len(), fleet.rows(), started.elapsed());
    let largest = fleet.sites.iter().map(|site| site.rows).max();
    println!("largest site aims at {largest:?} rows");
    let options = TopologyOptions {
        bucket: "muster".to_owned(),
        repository: RepositoryPlace::Embedded { folder: "repository".into(), port: 9310 },
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
    if let Some(server) = server {
        println!("dropped {} databases", server.drop_databases()?.len());
    }
    Ok(())
}
