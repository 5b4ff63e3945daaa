//! Benchmarks against physical limits: what Muster does, as ratios to what the same machine does without it.
//!
//! | module | what |
//! |---|---|
//! | [`restore`] | rows restored per second, to raw SQLite bulk insertion of the same rows |
//! | [`reads`] | bytes read through the repository per second, to plain ranged GETs |
//! | [`plan`] | a fleet of 100,000 sites planned: seconds and memory |
//! | [`scheduler`] | what the scheduler costs per step, up to a million |
//! | [`postgres_restore`] | rows restored into PostgreSQL per second, to raw `COPY` of the same rows |
//! | [`postgres_capture`] | what capture costs a PostgreSQL shard, and how far its log is behind |
//! | [`postgres_slots`] | what slots of idle databases cost their server |
//! | [`minio_reads`] | bytes read from MinIO per second, to ranged GETs by `curl` |
//! | [`incumbent`] | some sites of a shard brought back, to pgBackRest and `COPY` |
//! | [`log_growth`] | objects that one site's restore reads after days of capture |
//! | [`world`] | the fleet of SQLite shards, its repository and its plans, for `restore` and `reads` |
//! | [`shard`] | the PostgreSQL shard of the others |
//! | [`measure`] | rounds, medians, tables |
//!
//! # Invariants
//! - What is compared runs in the same process in alternating rounds: a busy machine slows both sides alike.
//! - Every round checks what it did; one that restored or read something else is an error, not a figure.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod incumbent;
mod log_growth;
mod measure;
mod minio_reads;
mod plan;
mod postgres_capture;
mod postgres_restore;
mod postgres_slots;
mod reads;
mod restore;
mod scheduler;
mod shard;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use muster_services::PgBackRest;

/// Measures Muster against the limits of this machine.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// What to measure; everything if none is named.
    benches: Vec<Bench>,
    /// Rounds of each side, interleaved; the tables show medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sites, in all but `plan` and `incumbent`.
    #[arg(long, default_value_t = 300)]
    sites: usize,
    /// Rows of a site, on average; in all but `plan`.
    #[arg(long, default_value_t = 3000)]
    rows_per_site: usize,
    /// Sites that are deleted and restored, or read by themselves; in all but `plan` and `incumbent`.
    #[arg(long, default_value_t = 100)]
    victims: usize,
    /// Seed of the fleet.
    #[arg(long, default_value_t = 883)]
    seed: u64,
    /// Sites in the fleet of `plan`.
    #[arg(long, default_value_t = 100_000)]
    planned_sites: u32,
    /// Steps of the runs of `scheduler`, ascending.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    scheduled_steps: Vec<usize>,
    /// Sites of each shard of `incumbent`, where all sites have the same size.
    #[arg(long, value_delimiter = ',', default_values_t = [70, 250, 1000])]
    shard_sites: Vec<usize>,
    /// Sites that are deleted and restored in `incumbent`.
    #[arg(long, default_value_t = 30)]
    shard_victims: usize,
    /// Days of capture after which `log-growth` counts.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 30])]
    days: Vec<u64>,
    /// Connections that write to a PostgreSQL shard.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Publishes at once in a PostgreSQL shard: more than processors, since each waits for the journal and its commit.
    #[arg(long, default_value_t = 4)]
    publish_slots: usize,
    /// Seconds of writing in a round of `postgres-capture` and `postgres-slots`.
    #[arg(long, default_value_t = 10)]
    round_seconds: u64,
    /// Transactions a second while `postgres-capture` measures the lag.
    #[arg(long, default_value_t = 200.0)]
    commits_per_second: f64,
    /// Follows the shard whose topology lies in a folder: a process of `postgres-capture`.
    #[arg(long, hide = true)]
    follow: Option<PathBuf>,
    /// Where files go, on the disk to be measured; a folder in it is made, and removed at the
    /// end. PostgreSQL and MinIO have theirs in temporary folders: TMPDIR.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

impl Args {
    /// Of the PostgreSQL shard.
    fn size(&self) -> shard::Size {
        shard::Size { sites: self.sites, rows_per_site: self.rows_per_site }
    }

    /// Writing of one round.
    fn round(&self) -> Duration {
        Duration::from_secs(self.round_seconds)
    }
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
    /// Cost of the scheduler per step.
    Scheduler,
    /// Rows restored into PostgreSQL per second.
    PostgresRestore,
    /// Cost of capture on a PostgreSQL shard, and lag of its log.
    PostgresCapture,
    /// Cost of replication slots of idle databases.
    PostgresSlots,
    /// Bytes read from MinIO per second.
    MinioReads,
    /// Sites of one shard brought back, to pgBackRest.
    Incumbent,
    /// Objects that one site's restore reads after days of capture.
    LogGrowth,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.follow {
        return shard::follow::run(folder).await;
    }
    let wanted = |bench| args.benches.is_empty() || args.benches.contains(&bench);
    if wanted(Bench::Plan) {
        plan::run(args.planned_sites, args.benches == [Bench::Plan])?;
    }
    if wanted(Bench::Scheduler) {
        scheduler::run(&args.scheduled_steps)?;
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
    if wanted(Bench::LogGrowth) {
        log_growth::run(&args.days).await?;
    }
    if wanted(Bench::MinioReads) {
        minio_reads::run(&args).await?;
    }
    if wanted(Bench::PostgresRestore) {
        postgres_restore::run(&args).await?;
    }
    if wanted(Bench::PostgresCapture) {
        postgres_capture::run(&args).await?;
    }
    if wanted(Bench::PostgresSlots) {
        postgres_slots::run(&args).await?;
    }
    if args.benches.is_empty() && !PgBackRest::is_installed() {
        println!("\n`incumbent` is left out: pgBackRest is missing (Debian: apt-get install pgbackrest)");
    } else if wanted(Bench::Incumbent) {
        incumbent::run(&args).await?;
    }
    Ok(())
}
