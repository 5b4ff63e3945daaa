//! `muster apply` and `muster resume`: execute a plan, to the end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_engine::{Cancel, Engine, EngineError, Events, JournalError, Options, RunSummary};
use muster_plan::planner;
use muster_repo::RunObjects;
use muster_types::plan::{Plan, Severity};
use muster_types::{RunId, Timestamp};

use crate::commands::{plan, s3};
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print, progress};

/// Arguments of `muster apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The plan that `muster plan` wrote.
    plan: PathBuf,
    /// Name of the run; made from time and plan where it is not given.
    #[arg(long)]
    run: Option<RunId>,
    /// Check everything that apply checks first, and stop there.
    #[arg(long)]
    check_only: bool,
}

/// Arguments of `muster resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The run.
    run: RunId,
}

pub(crate) async fn apply(topology: &TopologyPlace, args: ApplyArgs) -> Result<ExitCode> {
    let plan = plan::read(&args.plan)?;
    if plan.worst() == Some(Severity::Fatal) {
        return Err(exit::refused(
            "the plan has fatal notes and cannot be applied; mend what they name and plan again",
        ));
    }
    let left_out = planner::held_back(&plan.notes).len();
    if left_out > 0 && plan.steps.is_empty() {
        return Err(exit::refused(format!(
            "the plan leaves all of its {left_out} sites out: there is nothing to apply; mend what its error notes name and \
             plan again"
        )));
    }
    if let Some(run) = args.run.as_ref().filter(|run| run.as_str().starts_with(muster_drill::RUN_PREFIX)) {
        return Err(exit::input(format!("`{run}` is named like the run of a drill; choose another name")));
    }
    let context = Context::open(topology).await?;
    if let Some(run) = &args.run {
        refuse_known(&context, run).await?;
    }
    let (engine, shown) = engine(&context);
    if args.check_only {
        engine.preflight(&plan).await.map_err(failure)?;
        print::data("the plan can be applied: its inputs are as they were");
        return Ok(ExitCode::SUCCESS);
    }
    let run = match args.run {
        Some(run) => run,
        None => new_run_id(&plan, context::now())?,
    };
    let cancel = cancel_on_signal();
    let outcome = engine.apply(plan, &run, &cancel).await;
    drop(engine);
    // The last lines of progress come before the summary.
    let _ = shown.await;
    let code = finish(outcome)?;
    if left_out > 0 {
        print::talk(format!("{left_out} sites were left out by the plan: see its error notes"));
        return Ok(ExitCode::from(exit::Exit::Partial as u8));
    }
    Ok(code)
}

/// Said before anything else: what an earlier run of that name did makes every other finding misleading.
async fn refuse_known(context: &Context, run: &RunId) -> Result<()> {
    if RunObjects::new(&context.repository, run.clone()).journal(0).await?.is_empty() {
        return Ok(());
    }
    Err(exit::refused(format!(
        "run {run} exists already; `muster status {run}` shows it, `muster resume {run}` goes on with it; for another \
         run choose another name"
    )))
}

pub(crate) async fn resume(topology: &TopologyPlace, args: ResumeArgs) -> Result<ExitCode> {
    let context = Context::open(topology).await?;
    let (engine, shown) = engine(&context);
    let cancel = cancel_on_signal();
    let outcome = engine.resume(&args.run, &cancel).await;
    drop(engine);
    let _ = shown.await;
    finish(outcome)
}

/// An engine over the topology's shards, and the task that shows what it tells.
pub(crate) fn engine(context: &Context) -> (Engine, tokio::task::JoinHandle<()>) {
    let options = Options::new(operator(), context.topology.digest);
    let (events, receiver) = Events::channel();
    let shown = tokio::spawn(progress::follow(receiver));
    (Engine::new(context.repository.clone(), context.drivers(), options, events), shown)
}

/// Host and process, for those who ask who holds a run.
pub(crate) fn operator() -> String {
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown-host\n".to_owned());
    format!("{}:{}", host.trim(), std::process::id())
}

fn new_run_id(plan: &Plan, now: Timestamp) -> Result<RunId> {
    let digits = now.to_string().chars().filter(char::is_ascii_digit).take(17).collect::<String>();
    let (date, time) = digits.split_at(8.min(digits.len()));
    Ok(RunId::new(format!("{date}-{time}-{}", plan.id.as_str().chars().take(6).collect::<String>()))?)
}

/// Cancelled by the first Ctrl-C or SIGTERM; a second one ends the process, as a crash would.
pub(crate) fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::new();
    let signalled = cancel.clone();
    tokio::spawn(async move {
        if s3::interrupted().await.is_ok() {
            print::talk("stopping after the running steps; once more to stop at once");
            signalled.cancel();
        }
        if s3::interrupted().await.is_ok() {
            std::process::exit(130);
        }
    });
    cancel
}

fn listed(reasons: &[String]) -> String {
    let mut text: String = reasons.iter().take(REASONS_MAX).map(|reason| format!("\n  {reason}")).collect();
    if reasons.len() > REASONS_MAX {
        text.push_str(&format!("\n  … and {} more", reasons.len() - REASONS_MAX));
    }
    text
}

fn finish(outcome: Result<RunSummary, EngineError>) -> Result<ExitCode> {
    let summary = outcome.map_err(failure)?;
    let run = &summary.run;
    print::data(format!(
        "run {run}: {} sites restored, {} not",
        print::count(summary.sites_restored),
        print::count(summary.sites_failed)
    ));
    if summary.cancelled {
        print::talk(format!("stopped; go on with: muster resume {run}"));
        return Ok(ExitCode::from(exit::Exit::Partial as u8));
    }
    for failure in summary.failures.iter().take(10) {
        print::talk(format!("{}: {}", failure.step, failure.error));
    }
    print::talk(format!("report: muster report {run}"));
    if summary.sites_failed > 0 {
        print::talk(format!(
            "mend what failed and `muster resume {run}`, or `muster abandon {run}` to release the sites it holds"
        ));
        return Ok(ExitCode::from(exit::Exit::Partial as u8));
    }
    Ok(ExitCode::SUCCESS)
}

/// Most reasons of a refusal that one message lists.
const REASONS_MAX: usize = 8;

/// The engine's error with its hint and exit code.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` takes")]
pub(crate) fn failure(error: EngineError) -> anyhow::Error {
    let text = match &error {
        EngineError::Refused { reasons } => {
            format!("the plan cannot be applied:{}\n{}", listed(reasons), error.hint())
        }
        _ => {
            let (text, hint) = (error.to_string(), error.hint());
            // Errors of the repository and of shards say their way out themselves.
            if text.ends_with(&hint) { text } else { format!("{text}; {hint}") }
        }
    };
    match error {
        EngineError::Refused { .. }
        | EngineError::FencedInShard { .. }
        | EngineError::Journal(
            JournalError::Fenced { .. } | JournalError::Exists { .. } | JournalError::Abandoned { .. },
        ) => exit::refused(text),
        EngineError::Journal(JournalError::NoRun { .. }) => exit::input(text),
        _ => anyhow!(text),
    }
}
