//! `muster-sim`: plays simulated runs and prints a line that reproduces each failure.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use muster_sim::Verdict;

/// Failures told in full; the rest by their seeds.
const TOLD: usize = 3;

/// Plays simulated runs, each drawn from its seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many runs.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one's seed; the others follow.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Runs played at once.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prints the whole event log of each run.
    #[arg(long)]
    log: bool,
}

#[expect(clippy::print_stdout, reason = "a command prints")]
fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let failed = play(&arguments)?;
    for verdict in failed.iter().take(TOLD) {
        for line in &verdict.lines {
            println!("{line}");
        }
        for violation in &verdict.violations {
            println!("seed {}: {violation}", verdict.seed);
        }
    }
    for verdict in &failed {
        println!("failed: {}    ({})", verdict.reproduce(), verdict.violations[0]);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} runs, {} failed, {seconds:.1} s, {:.1} ms each",
        arguments.seeds,
        failed.len(),
        seconds * 1e3 / arguments.seeds.max(1) as f64
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The verdicts on runs that failed.
fn play(arguments: &Arguments) -> Result<Vec<Verdict>> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let one = || -> Result<()> {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= arguments.seeds {
                return Ok(());
            }
            let seed = arguments.first_seed + nth;
            let verdict = if arguments.log { muster_sim::run_whole(seed)? } else { muster_sim::run(seed)? };
            if arguments.log {
                print_log(&verdict);
            }
            if !verdict.holds() {
                // A thread that panicked ends the command.
                failed.lock().map(|mut failed| failed.push(verdict)).ok();
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.threads.max(1)).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_by_key(|verdict| verdict.seed);
    Ok(failed)
}

#[expect(clippy::print_stdout, reason = "a command prints")]
fn print_log(verdict: &Verdict) {
    verdict.lines.iter().for_each(|line| println!("{line}"));
    println!("seed {}: {} events, digest {}", verdict.seed, verdict.events, verdict.digest);
}
