//! A run of the simulator: what is drawn from a seed, played, and judged.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use muster_types::RunId;

use crate::actor::{Actor, perform};
use crate::actors;
use crate::dice::Dice;
use crate::every::AtWrite;
use crate::faults::Faults;
use crate::fleet::{Fleet, PlanShape, Shape, plan};
use crate::mutation::Mutation;
use crate::operator::{Run, RunScript, Standing};
use crate::stage::Stage;
use crate::world::Oddities;

/// Resumes of each run once the world is healed: one may meet the claims of another run, which the next round finds gone.
const ROUNDS: usize = 3;

/// How a run of the simulator went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Its seed.
    pub seed: u64,
    /// Digest of its event log.
    pub digest: String,
    /// Events in it.
    pub events: u64,
    /// Points that the first engine to end came by.
    pub points: u64,
    /// Engines that died.
    pub deaths: u64,
    /// Engines that were started, those that died included.
    pub engines: u64,
    /// Engines that came to their end, whatever they could restore.
    pub ended_well: u64,
    /// Conditional writes of journal entries.
    pub journal_writes: u64,
    /// What the auditor found.
    pub violations: Vec<String>,
    /// The event log, or its end.
    pub lines: Vec<String>,
}

impl Verdict {
    /// Nothing was found.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }

    /// The command that plays it again.
    pub fn reproduce(&self) -> String {
        format!("make sim SEEDS=1 FIRST_SEED={}", self.seed)
    }
}

/// What is played.
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    pub(crate) faults: Faults,
    pub(crate) plans: Vec<PlanShape>,
    pub(crate) scripts: Vec<RunScript>,
    pub(crate) actors: Vec<Box<dyn Actor>>,
    pub(crate) dice: Dice,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) whole_trace: bool,
    pub(crate) at_write: Option<AtWrite>,
}

impl Scenario {
    /// Draws one.
    pub(crate) fn draw(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut dice = Dice::new(seed);
        let shape = Shape::draw(&mut dice);
        let faults = Faults::draw(&mut dice, shape.shards);
        let all: Vec<usize> = (0..shape.victims).collect();
        let mut plans = vec![PlanShape::draw(&mut dice, all.clone())];
        if dice.chance(350_000) {
            // Another run that wants some of the same sites.
            let first = usize::try_from(dice.between(0, shape.victims as u64 - 1)).unwrap_or(0);
            plans.push(PlanShape::draw(&mut dice, all[first..].to_vec()));
        }
        if dice.chance(200_000) {
            plans.push(PlanShape::draw_drill(&mut dice, all));
        }
        let scripts = plans.iter().map(|_| RunScript::draw(&mut dice)).collect();
        let actors = actors::draw(&mut dice);
        Self {
            seed,
            shape,
            faults,
            plans,
            scripts,
            actors,
            dice,
            mutation,
            whole_trace: false,
            at_write: None,
        }
    }

    /// Plays and judges it.
    pub(crate) async fn play(self) -> Result<Verdict> {
        let fleet = Fleet::new(self.shape).await?;
        let plans = self.plans.iter().map(|shape| plan(&fleet, shape)).collect::<Result<Vec<_>>>()?;
        let oddities = Oddities { mutation: self.mutation, at_write: self.at_write };
        let stage = Stage::new(&fleet, self.faults, self.dice, oddities, self.whole_trace)?;
        let runs = plans.into_iter().zip(["a", "b", "c"]).map(|(plan, name)| stage.run(name, plan));
        let runs = runs.collect::<Result<Vec<_>>>()?;
        let refused = beside(&stage, self.actors, operate(&stage, &runs, &self.scripts)).await;
        judge(&stage, &refused);
        let world = &stage.world;
        let (violations, trace) = (world.audit().violations().to_vec(), world.trace());
        let (points, deaths, ended_well) = stage.tally.counts();
        Ok(Verdict {
            seed: self.seed,
            digest: trace.digest(),
            events: trace.events(),
            points,
            deaths,
            engines: stage.engines.load(Ordering::Relaxed),
            ended_well,
            journal_writes: world.journal_writes(),
            violations,
            lines: trace.lines().map(str::to_owned).collect(),
        })
    }
}

/// Lets actors act while `work` goes on.
async fn beside<T>(stage: &Stage, mut actors: Vec<Box<dyn Actor>>, work: impl Future<Output = T>) -> T {
    let performing = actors.iter_mut().map(|actor| perform(actor.as_mut(), stage));
    let performing = futures::future::join_all(performing);
    let mut performing: Pin<Box<dyn Future<Output = Vec<()>> + '_>> = Box::pin(performing);
    tokio::select! {
        biased;
        done = work => done,
        never = async {
            performing.as_mut().await;
            std::future::pending().await
        } => never,
    }
}

/// Plays the scripts, heals the world, and brings back what is left. Runs whose plan was refused.
async fn operate(stage: &Stage, runs: &[Run], scripts: &[RunScript]) -> BTreeSet<RunId> {
    let operated = runs.iter().zip(scripts).map(|(run, script)| stage.operate(run, script));
    let standings = futures::future::join_all(operated).await;
    let mut refused: BTreeSet<RunId> = BTreeSet::new();
    let mut note = |run: &Run, standing| {
        if standing == Standing::Refused {
            refused.insert(run.id.clone());
        }
    };
    runs.iter().zip(standings).for_each(|(run, standing)| note(run, standing));
    stage.world.heal();
    for _ in 0..ROUNDS {
        for run in runs {
            if !refused.contains(&run.id) && stage.bring_back(run).await == Standing::Refused {
                refused.insert(run.id.clone());
            }
        }
    }
    refused
}

fn judge(stage: &Stage, refused: &BTreeSet<RunId>) {
    let states = stage.states();
    let mut audit = stage.world.audit();
    audit.compare(&states);
    audit.conclude(refused);
}

/// Plays on a runtime of its own, under virtual time.
pub(crate) fn play(scenario: Scenario) -> Result<Verdict> {
    muster_repo::offload::inline();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.context("a runtime")?;
    runtime.block_on(scenario.play())
}

/// Plays the run of a seed.
///
/// # Errors
/// What keeps the models from being set up.
pub fn run(seed: u64) -> Result<Verdict> {
    play(Scenario::draw(seed, None))
}

/// Plays the run of a seed with the whole event log.
///
/// # Errors
/// As [`run`].
pub fn run_whole(seed: u64) -> Result<Verdict> {
    play(Scenario { whole_trace: true, ..Scenario::draw(seed, None) })
}

/// Plays the run of a seed with a promise broken.
///
/// # Errors
/// As [`run`].
pub fn run_mutated(seed: u64, mutation: Mutation) -> Result<Verdict> {
    play(Scenario::draw(seed, Some(mutation)))
}
