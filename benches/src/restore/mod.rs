//! Rows restored per second, to raw SQLite bulk insertion of the same rows in the same transactions.

mod peer;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use muster_engine::{Cancel, Drivers, Engine, Events, Options, load_report};
use muster_repo::Repository;
use muster_types::plan::Plan;
use muster_types::report::{Report, SiteReport, StepTimes, StoreReport};
use muster_types::topology::Topology;
use muster_types::{RunId, Timestamp};

use self::peer::{Payload, Threads};
use crate::measure::{Lap, Rounds, Stopwatch, count, ratio, seconds, table};
use crate::world::{Keeping, World};

/// What is compared with a restore.
const PEERS: [(&str, Keeping, Threads); 3] = [
    ("SQLite, 1 thread", Keeping::Plain, Threads::One),
    ("SQLite, a thread per shard", Keeping::Plain, Threads::PerShard),
    ("SQLite with capture on, a thread per shard", Keeping::Captured, Threads::PerShard),
];

/// One round's restore.
pub(crate) struct Restored {
    /// Until the last store was live.
    pub(crate) published_seconds: f64,
    /// Until the last site was handed back.
    pub(crate) whole: Lap,
    /// Rows that were published.
    pub(crate) rows: u64,
    /// Summed over stores or their groups, and over sites, by kind of step.
    pub(crate) steps: BTreeMap<&'static str, f64>,
}

/// Sums of steps, a round each.
#[derive(Default)]
pub(crate) struct Steps(BTreeMap<&'static str, Rounds>);

impl Steps {
    pub(crate) fn push(&mut self, sums: BTreeMap<&'static str, f64>) {
        for (step, sum) in sums {
            self.0.entry(step).or_default().push(sum);
        }
    }

    pub(crate) fn print(&self, rows: f64) {
        let mut shown = table(&["steps of a restore", "summed time", "µs/row"]);
        for (step, sum) in &self.0 {
            shown.add_row([(*step).to_owned(), sum.show(seconds), ratio(sum.median() / rows * 1e6)]);
        }
        println!("\n{shown}");
    }
}

/// Runs the rounds and prints the tables.
pub(crate) async fn run(world: &World, rounds: usize) -> Result<()> {
    let payload = Payload::read(world).await?;
    let rows = payload.rows() as f64;
    let mut peers: Vec<(Rounds, Rounds)> = vec![Default::default(); PEERS.len()];
    let (mut published, mut handed_back, mut cpu) = (Rounds::default(), Rounds::default(), Rounds::default());
    let mut steps = Steps::default();
    for round in 0..rounds {
        for ((_, keeping, threads), (rate, cpu)) in PEERS.iter().zip(&mut peers) {
            let lap = payload.insert(&world.peer(*keeping)?, *keeping, *threads)?;
            rate.push(rows / lap.wall.as_secs_f64());
            cpu.push(lap.cpu_seconds / rows * 1e6);
        }
        let restored = restore(world, round, payload.rows()).await?;
        published.push(rows / restored.published_seconds);
        handed_back.push(rows / restored.whole.wall.as_secs_f64());
        cpu.push(restored.whole.cpu_seconds / rows * 1e6);
        steps.push(restored.steps);
    }
    println!("\n{} rows in {} transactions", count(rows), payload.stores());
    let mut shown = table(&["restore", "rows/s", "to one thread", "to a thread per shard", "CPU µs/row"]);
    let ours = [
        ("Muster, until all is live", &published, &cpu),
        ("Muster, until all is handed back", &handed_back, &cpu),
    ];
    let theirs = PEERS.iter().zip(&peers).map(|((name, ..), (rate, cpu))| (*name, rate, cpu));
    for (name, rate, cpu) in theirs.chain(ours) {
        let (one, many) = (rate.to(&peers[0].0), rate.to(&peers[1].0));
        shown.add_row([
            name.to_owned(),
            rate.show(count),
            one.show(ratio),
            many.show(ratio),
            cpu.show(ratio),
        ]);
    }
    println!("{shown}");
    steps.print(rows);
    Ok(())
}

async fn restore(world: &World, round: usize, rows: u64) -> Result<Restored> {
    let drivers = world.reset()?;
    let run = format!("round-{round}");
    let restored = apply(&world.repository, drivers, &world.topology, &world.plan, &run).await?;
    ensure!(restored.rows == rows, "{} rows were restored instead of {rows}", restored.rows);
    Ok(restored)
}

/// Applies a plan as a new run; all of it must come back.
pub(crate) async fn apply(
    repository: &Repository,
    drivers: Drivers,
    topology: &Topology,
    plan: &Plan,
    run: &str,
) -> Result<Restored> {
    let options = Options::new("benchmark", topology.digest);
    let engine = Engine::new(repository.clone(), drivers, options, Events::none());
    let (run, plan) = (RunId::new(run)?, plan.clone());
    let began = crate::world::now();
    let watch = Stopwatch::start()?;
    let summary = engine.apply(plan, &run, &Cancel::new()).await?;
    let whole = watch.lap()?;
    ensure!(summary.failures.is_empty(), "the restore failed: {:?}", summary.failures.first());
    let report = load_report(repository, &run).await?;
    let ends = stores(&report).filter_map(|store| store.publish?.ended_at);
    let live_at = ends.max().context("nothing was published")?;
    let (rows, steps) = (report.totals.rows, sums(&report));
    Ok(Restored { published_seconds: between(began, live_at), whole, rows, steps })
}

fn stores(report: &Report) -> impl Iterator<Item = &StoreReport> {
    report.sites.iter().flat_map(|site| &site.stores)
}

fn sums(report: &Report) -> BTreeMap<&'static str, f64> {
    let spans = |times: &mut dyn Iterator<Item = Option<StepTimes>>| -> Vec<(i64, i64)> {
        let ended = times
            .flatten()
            .filter_map(|times| Some((times.started_at.as_micros(), times.ended_at?.as_micros())));
        ended.collect()
    };
    let sum = |spans: &mut dyn Iterator<Item = (i64, i64)>| -> f64 {
        spans.map(|(began, ended)| (ended - began) as f64 / 1e6).sum()
    };
    // Stores of a group begin and end together, and what they took is taken once.
    let of_stores = |times: fn(&StoreReport) -> Option<StepTimes>| {
        let spans = spans(&mut stores(report).map(times));
        sum(&mut BTreeSet::from_iter(spans).into_iter())
    };
    let of_sites = |times: fn(&SiteReport) -> Option<StepTimes>| {
        sum(&mut spans(&mut report.sites.iter().map(times)).into_iter())
    };
    let blocked: BTreeSet<(i64, Option<i64>, u64)> = stores(report)
        .filter_map(|store| {
            let times = store.publish?;
            let ended = times.ended_at.map(Timestamp::as_micros);
            Some((times.started_at.as_micros(), ended, store.blocked_micros?))
        })
        .collect();
    let blocked: u64 = blocked.iter().map(|(_, _, micros)| micros).sum();
    BTreeMap::from([
        ("stage", of_stores(|store| store.stage)),
        ("verify", of_stores(|store| store.verify)),
        ("publish", of_stores(|store| store.publish)),
        ("publish: in its transaction", blocked as f64 / 1e6),
        ("site: check", of_sites(|site| site.check)),
        ("site: hand-back", of_sites(|site| site.handback)),
    ])
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    (to.as_micros() - from.as_micros()) as f64 / 1e6
}
