//! Benchmarks against physical limits: what Muster does, as ratios to what the same machine does without it.
//!
//! | module | what |
//! |---|---|
//! | [`restore`] | rows restored per second, to raw SQLite bulk insertion of the same rows |
//! | [`reads`] | bytes read through the repository per second, to plain ranged GETs |
//! | [`plan`] | a fleet of 100,000 sites planned: seconds and memory |
//! | [`world`] | the fleet, its repository and its plans that the first two measure on |
//! | [`measure`] | rounds, medians, tables |
//!
//! # Invariants
//! - What is compared runs in the same process in alternating rounds: a busy machine slows both sides alike.
//! - Every round checks what it did; one that restored or read something else is an error, not a figure.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod measure;
mod plan;
mod reads;
mod restore;
mod world;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

/// Measures Muster against the limits of this machine.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// What to measure; everything if none is named.
    benches: Vec<Bench>,
    /// Rounds of each side, interleaved; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Sites in the fleet of `restore` and `reads`.
    #[arg(long, default_value_t = 300)]
    sites: usize,
    /// Rows of a site in that fleet, on average.
    #[arg(long, default_value_t = 3000)]
    rows_per_site: usize,
    /// Sites that are deleted and restored.
    #[arg(long, default_value_t = 100)]
    victims: usize,
    /// Seed of the fleet.
    #[arg(long, default_value_t = 883)]
    seed: u64,
    /// Sites in the fleet of `plan`.
    #[arg(long, default_value_t = 100_000)]
    planned_sites: u32,
    /// Where files go, on the disk to be measured; a folder in it is made, and removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Restored rows per second.
    Restore,
    /// Bytes read per second.
    Reads,
    /// Planning of a large fleet.
    Plan,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |bench| args.benches.is_empty() || args.benches.contains(&bench);
    if wanted(Bench::Plan) {
        plan::run(args.planned_sites, args.benches == [Bench::Plan])?;
    }
    if wanted(Bench::Restore) || wanted(Bench::Reads) {
        std::fs::create_dir_all(&args.dir)
            .with_context(|| format!("failed to create `{}`; name another with --dir", args.dir.display()))?;
        let world = world::World::make(&args).await?;
        if wanted(Bench::Reads) {
            reads::run(&world, args.rounds).await?;
        }
        if wanted(Bench::Restore) {
            restore::run(&world, args.rounds).await?;
        }
        world.close().await;
    }
    Ok(())
}
