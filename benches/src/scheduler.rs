//! What the scheduler, and the state that a journal folds to, cost per step as a run grows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use muster_engine::journal::RunState;
use muster_engine::scheduler::{Command, Input, RetryPolicy, Scheduler};
use muster_types::journal::{Outcome, Published, Record};
use muster_types::plan::{Plan, PlanStep, StepKey};
use muster_types::{Digest, Epoch, ShardName, SiteId, StoreId, Timestamp};

use crate::measure::{count, cpu_seconds, resident_bytes, table};

const SHARDS: usize = 64;
/// With check and hand-back, a site has 20 steps.
const STORES: usize = 6;
const STEPS_OF_SITE: usize = STORES * 3 + 2;

/// Takes runs of so many steps from begin to end, in ascending order: the peak of a larger one is not that of a smaller.
pub(crate) fn run(sizes: &[usize]) -> Result<()> {
    let mut table = table(&[
        "steps",
        "make and order, µs/step",
        "run, µs/step",
        "scheduler, bytes/step",
        "fold, µs/record",
        "state, bytes/step",
    ]);
    for &size in sizes {
        table.add_row(measure(size)?);
    }
    println!("\nscheduler: {SHARDS} shards, {STEPS_OF_SITE} steps a site\n{table}");
    Ok(())
}

fn measure(size: usize) -> Result<Vec<String>> {
    let (steps, pools) = fleet(size / STEPS_OF_SITE)?;
    let per_step = |micros: f64| format!("{:.2}", micros * 1e6 / steps.len() as f64);
    let bytes = |from: u64, to: u64| count(to.saturating_sub(from) as f64 / steps.len() as f64);

    let (resident, began) = (resident_bytes()?, own_cpu()?);
    let mut scheduler = Scheduler::new(&steps, &pools, &BTreeMap::new(), RetryPolicy::default())?;
    let first = scheduler.step(Timestamp::EPOCH, Input::Begin);
    let made = own_cpu()?;
    let records = drive(&steps, &mut scheduler, first)?;
    let (ran, scheduler_bytes) = (own_cpu()?, resident_bytes()?);
    // What the records take is not the scheduler's.
    let of_records = records.iter().map(|record| record_bytes(record) as u64).sum::<u64>();
    drop(scheduler);

    let (resident_before, began_fold) = (resident_bytes()?, own_cpu()?);
    let wall = Instant::now();
    let mut state = RunState::new(&steps);
    for record in opening().iter().chain(&records) {
        state.apply(record).with_context(|| format!("{record:?}"))?;
    }
    ensure!(state.finished().is_some(), "the run has not ended after {:?}", wall.elapsed());
    let fold = (own_cpu()? - began_fold) * 1e6 / records.len() as f64;
    Ok(vec![
        count(steps.len() as f64),
        per_step(made - began),
        per_step(ran - made),
        bytes(resident + of_records, scheduler_bytes),
        format!("{fold:.2}"),
        bytes(resident_before, resident_bytes()?),
    ])
}

fn own_cpu() -> Result<f64> {
    cpu_seconds(std::process::id())
}

/// About what a record takes in memory: itself and the texts of its key.
fn record_bytes(record: &Record) -> usize {
    let text = match record {
        Record::Started { step, .. } | Record::Succeeded { step, .. } => step.to_string().len(),
        _ => 0,
    };
    std::mem::size_of::<Record>() + text.next_multiple_of(16)
}

fn opening() -> [Record; 2] {
    let at = Timestamp::EPOCH;
    [
        Record::Opened { plan: Plan::unsealed_id(), at, operator: String::new() },
        Record::Taken { epoch: Epoch(1), by: String::new(), at },
    ]
}

/// Every step takes its estimate; what came of the run, in records.
fn drive(steps: &[PlanStep], scheduler: &mut Scheduler, first: Vec<Command>) -> Result<Vec<Record>> {
    let mut records = Vec::with_capacity(steps.len() * 2 + 2);
    let mut ends: BTreeSet<(i64, u32)> = BTreeSet::new();
    let mut now = 0;
    let mut commands = first;
    loop {
        for command in commands {
            match command {
                Command::Record(record) => records.push(record),
                Command::Start(attempts) => {
                    let end = |step: u32| now + steps[step as usize].estimate_micros as i64;
                    ends.extend(attempts.iter().map(|attempt| (end(attempt.step), attempt.step)));
                }
                Command::Done { .. } => return Ok(records),
                Command::WakeAt(_) => {}
            }
        }
        let (at, step) = ends.pop_first().context("nothing runs, and the run has not ended")?;
        now = at;
        let outcome = outcome_of(&steps[step as usize].key);
        commands = scheduler.step(Timestamp::from_micros(now), Input::Finished { step, outcome });
    }
}

fn outcome_of(key: &StepKey) -> Outcome {
    match key {
        StepKey::Stage(_) => Outcome::Staged { rows: 1, bytes: 1, tables: BTreeMap::new() },
        StepKey::Verify(_) => Outcome::Verified { rows: 1, digest: Digest::of(b""), migrated: None },
        StepKey::Publish(_) => Outcome::Published(Published {
            rows: 1,
            replaced: 0,
            positions: None,
            blocked_micros: 0,
            at: Timestamp::EPOCH,
        }),
        StepKey::Check(_) => Outcome::Checked { changes: 1, compared_live: vec![], read_whole: false },
        _ => Outcome::HandedBack,
    }
}

fn fleet(sites: usize) -> Result<(Vec<PlanStep>, BTreeMap<String, u64>)> {
    let mut pools = BTreeMap::from([("stage".to_owned(), 128), ("s3".to_owned(), 256)]);
    let mut names = Vec::new();
    for shard in 0..SHARDS {
        let name: ShardName = format!("shard-{shard:02}").parse()?;
        pools.insert(format!("stage:{name}"), 4);
        pools.insert(format!("publish:{name}"), 1);
        names.push(name);
    }
    let mut steps = Vec::with_capacity(sites * STEPS_OF_SITE);
    for number in 0..sites {
        push_site(&mut steps, number, &names)?;
    }
    Ok((steps, pools))
}

fn push_site(steps: &mut Vec<PlanStep>, number: usize, shards: &[ShardName]) -> Result<()> {
    let site: SiteId = SiteId::new(format!("s{number:07}"))?;
    let mut push = |key, after: Vec<u32>, demand: &[(&str, u64)], estimate_micros| {
        let demand = demand.iter().copied().collect();
        let (after_ended, wave, group) = (Vec::new(), 0, None);
        steps.push(PlanStep { key, after, after_ended, demand, estimate_micros, wave, group });
        steps.len() as u32 - 1
    };
    let mut published: Vec<u32> = Vec::new();
    for nth in 0..STORES {
        let store = StoreId { site: site.clone(), kind: format!("kind-{nth}").parse()? };
        let shard = &shards[(number * 7 + nth * 13) % shards.len()];
        let (stage, publish) = (format!("stage:{shard}"), format!("publish:{shard}"));
        // Sizes that look like any others, and are the same every time.
        let micros = 10_000 + (number * 7_919 + nth * 104_729) as u64 % 50_000;
        let demand = [("stage", 1), (stage.as_str(), 1), ("s3", 1 + micros % 4)];
        let staged = push(StepKey::Stage(store.clone()), vec![], &demand, micros);
        let demand = [("stage", 1), (stage.as_str(), 1)];
        let verified = push(StepKey::Verify(store.clone()), vec![staged], &demand, micros / 2);
        let after = published.last().copied().into_iter().chain([verified]).collect();
        published.push(push(StepKey::Publish(store), after, &[(&publish, 1)], micros / 2));
    }
    let check = push(StepKey::Check(site.clone()), published, &[("s3", 1)], 10_000);
    push(StepKey::Handback(site), vec![check], &[("s3", 1)], 10_000);
    Ok(())
}
