//! `muster capture`: record shards into the repository.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use muster_capture::{CaptureEvent, CaptureOptions, CaptureRunner, Installer, ShardInstalled, ShardOutcome};
use muster_types::topology::{ShardConfig, Topology};
use muster_types::{Boundary, Incarnation, ShardName, Timestamp};
use tokio::task::block_in_place;

use crate::commands::{families, release, s3};
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Between two looks at the log while waiting for it to cover a moment.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `muster capture`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CaptureArgs {
    #[command(subcommand)]
    command: Option<CaptureCommand>,
    #[command(flatten)]
    record: RecordArgs,
}

#[derive(Debug, Args)]
struct RecordArgs {
    /// One recovery point for each shard, then end.
    #[arg(long, required_unless_present = "follow", conflicts_with = "follow")]
    once: bool,
    /// Keep recording until interrupted.
    #[arg(long)]
    follow: bool,
    /// Begin with a new snapshot of each shard, even where there is one.
    #[arg(long)]
    snapshot: bool,
    /// Only this shard; may be given more than once.
    #[arg(long, value_name = "NAME")]
    shard: Vec<ShardName>,
}

#[derive(Debug, Subcommand)]
enum CaptureCommand {
    /// Install what records changes into the shards; repeatable.
    Init {
        /// Only this shard; may be given more than once.
        #[arg(long, value_name = "NAME")]
        shard: Vec<ShardName>,
    },
    /// Take away from the shards everything that Muster put there.
    Remove {
        /// Only this shard; may be given more than once.
        #[arg(long, value_name = "NAME")]
        shard: Vec<ShardName>,
    },
    /// Stop capturing the databases of one site, so that they can be dropped; repeatable.
    Release {
        /// The site, as `site:ID`.
        #[arg(value_name = "SITE")]
        site: String,
    },
    /// Wait until the log of every shard covers a moment.
    Wait {
        /// The moment: RFC 3339, `now`, or `5m ago`.
        #[arg(long, value_name = "TIME", default_value = "now")]
        covers: String,
        /// Give up after so long.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout_seconds: u64,
    },
    /// Show how far each shard's log reaches.
    Status,
}

pub(crate) async fn run(place: &TopologyPlace, args: CaptureArgs) -> Result<ExitCode> {
    match args.command {
        Some(CaptureCommand::Init { shard }) => {
            let topology = context::topology(place).await?;
            let shards = chosen(&topology, &shard)?;
            let done = block_in_place(|| Installer::new(&topology, shards.as_ref()).init());
            for note in families::notes(&topology) {
                print::talk(format!("warning: {note}"));
            }
            installed(&done, |done| {
                let state = if done.unchanged { "as it was" } else { "installed" };
                let notes: String = done.notes.iter().map(|note| format!("\n  note: {note}")).collect();
                format!("{} tables captured, {} triggers, {state}{notes}", done.tables.len(), done.triggers)
            })
        }
        Some(CaptureCommand::Remove { shard }) => {
            let topology = context::topology(place).await?;
            let shards = chosen(&topology, &shard)?;
            let done = block_in_place(|| Installer::new(&topology, shards.as_ref()).remove());
            installed(&done, |()| "everything of Muster is gone; its recovery points end here".to_owned())
        }
        Some(CaptureCommand::Release { site }) => release::run(place, &site).await,
        Some(CaptureCommand::Wait { covers, timeout_seconds }) => wait(place, &covers, timeout_seconds).await,
        Some(CaptureCommand::Status) => status(place).await,
        None => record(place, args.record).await,
    }
}

/// The shards named, checked; none for all.
fn chosen(topology: &Topology, shards: &[ShardName]) -> Result<Option<BTreeSet<ShardName>>> {
    let is_known =
        |shard: &ShardName| topology.shards.contains_key(shard) || topology.families.contains_key(shard);
    if let Some(unknown) = shards.iter().find(|shard| !is_known(shard)) {
        let known: Vec<&str> = topology.shards.keys().map(ShardName::as_str).collect();
        return Err(exit::input(format!(
            "the topology has no shard `{unknown}`; it has {}",
            known.join(", ")
        )));
    }
    // The name of a family stands for all of its shards.
    let members = |shard: &ShardName| match topology.families.get(shard) {
        Some(family) => family.shards.values().cloned().collect(),
        None => vec![shard.clone()],
    };
    Ok((!shards.is_empty()).then(|| shards.iter().flat_map(members).collect()))
}

pub(crate) fn installed<T>(shards: &[ShardInstalled<T>], said: impl Fn(&T) -> String) -> Result<ExitCode> {
    let mut failed = 0;
    for shard in shards {
        match &shard.result {
            Ok(done) => print::data(format!("{}: {}", shard.shard, said(done))),
            Err(failure) => {
                failed += 1;
                print::talk(format!("error: {failure}"));
            }
        }
    }
    ended(failed, shards.len())
}

fn ended(failed: usize, shards: usize) -> Result<ExitCode> {
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    print::talk(format!("{failed} of {shards} shards failed"));
    let exit = if failed == shards { exit::Exit::Failed } else { exit::Exit::Partial };
    Ok(ExitCode::from(exit as u8))
}

async fn record(place: &TopologyPlace, args: RecordArgs) -> Result<ExitCode> {
    let context = Context::open_or_create(place).await?;
    context.keep_topology_or_tell().await;
    let mut options = CaptureOptions::of(&context.topology);
    options.shards = chosen(&context.topology, &args.shard)?;
    options.snapshot = args.snapshot;
    options.events = Arc::new(|event| say(&event));
    let mut runner = CaptureRunner::new(&context.repository, &context.topology, options);
    let outcomes = if args.once {
        runner.once().await
    } else {
        runner
            .follow(async {
                if let Err(error) = s3::interrupted().await {
                    print::talk(format!("error: {error:#}; capture ends"));
                }
            })
            .await
    };
    let failed = outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
    show(&outcomes);
    ended(failed, outcomes.len())
}

pub(crate) fn say(event: &CaptureEvent) {
    match event {
        CaptureEvent::IncarnationBegun { shard, incarnation, reason, after } => {
            let lost = after
                .map(|after| format!("; nothing is known between {} and now", after.at))
                .unwrap_or_default();
            print::talk(format!("{shard}: history {incarnation} begins: {reason}{lost}"));
        }
        CaptureEvent::Resumed { shard, boundary } => {
            print::talk(format!("{shard}: goes on behind {}", boundary.at));
        }
        CaptureEvent::Snapshot { shard, boundary, rows, seconds, .. } => print::talk(format!(
            "{shard}: snapshot of {} rows as of {} in {}",
            print::count(*rows),
            boundary.at,
            print::seconds(*seconds)
        )),
        CaptureEvent::Appended { shard, sequence, boundary, changes, lag_seconds } => {
            let what = if *changes == 0 {
                "watermark".to_owned()
            } else {
                format!("{} changes", print::count(*changes))
            };
            print::talk(format!(
                "{shard}: #{sequence} {what} up to {}, lag {}",
                boundary.at,
                print::seconds(*lag_seconds)
            ));
        }
        CaptureEvent::Undeclared { shard, tables } => print::talk(format!(
            "{shard}: ALARM: not captured, because the topology does not declare them: {}",
            tables.join(", ")
        )),
        CaptureEvent::Released { shard, boundary, gone } => {
            let since = if *gone { ", and its database was dropped since" } else { "" };
            print::talk(format!("{shard}: was released; its recovery points end at {}{since}", boundary.at));
        }
        CaptureEvent::Failed { failure, retry_seconds } => {
            print::talk(format!("error: {failure}; trying again in {}", print::seconds(*retry_seconds)));
        }
        CaptureEvent::StandsBy { failure } => print::talk(format!(
            "{}: another capture writes its log; this one stands by, and goes on when that log does not grow any more",
            failure.shard()
        )),
        CaptureEvent::Stopped { failure } => {
            print::talk(format!("error: {failure}; capture of this shard ends"));
        }
    }
}

fn show(outcomes: &[ShardOutcome]) {
    let rows = outcomes.iter().map(|outcome| match &outcome.result {
        Ok(recorded) => vec![
            outcome.shard.to_string(),
            recorded.boundary.at.to_string(),
            recorded.boundary.position.to_string(),
            print::count(recorded.changes),
            recorded.undeclared.join(", "),
        ],
        Err(failure) => vec![
            outcome.shard.to_string(),
            format!("failed: {failure}"),
            String::new(),
            String::new(),
            String::new(),
        ],
    });
    let header = ["shard", "recovery point", "position", "changes", "not captured"];
    print::data(print::table(&header, &["position", "changes"], rows));
}

/// How far the log of a shard of the topology reaches.
struct Reached {
    shard: ShardName,
    /// The last recovery point.
    last: Option<Boundary>,
    /// Its history, where it may have been released: of databases of one site.
    single: Option<Incarnation>,
}

impl Reached {
    /// Its database is captured no longer.
    async fn is_released(&self, context: &Context) -> Result<bool> {
        let Some(incarnation) = &self.single else { return Ok(false) };
        Ok(context.repository.released(&self.shard, incarnation).await?.is_some())
    }
}

async fn reached(context: &Context) -> Result<Vec<Reached>> {
    let catalog = context.catalog_of([]).await?;
    let one = |(shard, config): (&ShardName, &ShardConfig)| {
        let history = catalog.shards.get(shard).and_then(|history| history.incarnations.last());
        let last = history.and_then(|history| history.boundaries().last().copied());
        let single = history.filter(|_| config.site.is_some()).map(|history| history.incarnation.clone());
        Reached { shard: shard.clone(), last, single }
    };
    Ok(context.topology.shards.iter().map(one).collect())
}

async fn wait(place: &TopologyPlace, covers: &str, timeout_seconds: u64) -> Result<ExitCode> {
    let moment = select::moment(covers)?;
    let context = Context::open(place).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(timeout_seconds);
    loop {
        let mut behind = Vec::new();
        for reached in reached(&context).await? {
            let last = reached.last.map(|last| last.at);
            // Nobody waits for what is captured no longer.
            if last.is_none_or(|last| last < moment) && !reached.is_released(&context).await? {
                behind.push(format!("{} ({})", reached.shard, shown(last)));
            }
        }
        if behind.is_empty() {
            print::data(format!("every shard is covered up to {moment}"));
            return Ok(ExitCode::SUCCESS);
        }
        if tokio::time::Instant::now() > deadline {
            let text = format!(
                "after {timeout_seconds} s these shards do not cover {moment}: {}; is `muster capture --follow` running?",
                behind.join(", ")
            );
            return Err(exit::Failure::new(exit::Exit::Partial, text).into());
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

async fn status(place: &TopologyPlace) -> Result<ExitCode> {
    let context = Context::open(place).await?;
    let now = context::now();
    let mut rows = Vec::new();
    for reached in reached(&context).await? {
        let released = reached.is_released(&context).await?;
        let Reached { shard, last, .. } = reached;
        let lag = match last {
            _ if released => "released".to_owned(),
            Some(last) => print::seconds(now.seconds_since(last.at)),
            None => String::new(),
        };
        let position = last.map(|last| last.position.to_string()).unwrap_or_default();
        rows.push(vec![shard.to_string(), shown(last.map(|last| last.at)), position, lag]);
    }
    let header = ["shard", "last recovery point", "position", "ago"];
    print::data(print::table(&header, &header[2..], rows));
    Ok(ExitCode::SUCCESS)
}

fn shown(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "nothing captured".to_owned(), |at| at.to_string())
}
