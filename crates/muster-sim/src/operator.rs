//! Operators: they start engines, lose them, start others, stop them, give runs up.

use std::sync::Arc;
use std::time::Duration;

use muster_engine::{Cancel, Drivers, Engine, EngineError, Events, JournalError, Options, RunSummary};
use muster_repo::{Objects, Repository};
use muster_types::plan::{Plan, StepKey};
use muster_types::{Digest, RunId};

use crate::dice::Dice;
use crate::life::Life;
use crate::mutation::Mutation;
use crate::s3::ModelObjects;
use crate::stage::Stage;
use crate::world::View;

/// No engine works for so long: throttled and absent shards are waited for within the hour.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// What happens to one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Before it starts.
    pub pause: Duration,
    /// It dies at this point, from 1.
    pub dies_at: Option<u64>,
    /// The operator stops it after this time.
    pub stops_after: Option<Duration>,
    /// Another engine resumes the run after this time.
    pub rival_after: Option<Duration>,
    /// Another engine resumes the run when this one comes by this point.
    pub rival_at: Option<u64>,
    /// The rival dies at this point.
    pub rival_dies_at: Option<u64>,
}

/// What happens to one run before the world heals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunScript {
    /// Engines, one after the other, until one has brought everything back.
    pub lives: Vec<Script>,
    /// The operator gives it up afterwards.
    pub abandons: bool,
}

impl Script {
    /// Draws one. Small runs have some hundred points.
    pub fn draw(dice: &mut Dice) -> Self {
        let soon = |dice: &mut Dice| dice.span(Duration::ZERO, Duration::from_secs(5));
        let rival = dice.chance(200_000).then(|| soon(dice));
        Self {
            pause: dice.span(Duration::ZERO, Duration::from_secs(3)),
            dies_at: dice.chance(700_000).then(|| dice.between(1, 400)),
            stops_after: dice.chance(100_000).then(|| soon(dice)),
            rival_after: rival,
            rival_at: None,
            rival_dies_at: rival.filter(|_| dice.chance(500_000)).map(|_| dice.between(1, 300)),
        }
    }
}

impl RunScript {
    /// Draws one.
    pub fn draw(dice: &mut Dice) -> Self {
        let lives = (0..dice.between(1, 4)).map(|_| Script::draw(dice)).collect();
        Self { lives, abandons: dice.chance(50_000) }
    }
}

/// A run and its plan.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) plan: Arc<Plan>,
}

impl Run {
    fn is_drill(&self) -> bool {
        self.plan.request.placement.sandbox
    }
}

/// How an engine ended.
#[derive(Debug)]
enum End {
    Died,
    Ended(Result<RunSummary, EngineError>),
    /// It worked for longer than anything can take.
    Stuck,
}

/// How a run stands for its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There may be something to do.
    Open,
    /// The plan was refused: nothing of it began.
    Refused,
}

/// The plan as an engine with this defect has it.
fn mutated(mutation: Option<Mutation>, plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    let keys: Vec<StepKey> = plan.steps.iter().map(|step| step.key.clone()).collect();
    match mutation {
        Some(Mutation::StartBeforeDependency) => {
            for step in plan.steps.iter_mut().filter(|step| matches!(step.key, StepKey::Publish(_))) {
                step.after.retain(|&edge| !matches!(keys[edge as usize], StepKey::Publish(_)));
            }
        }
        Some(Mutation::PublishUnverified) => {
            let stage_of = |key: &StepKey| match key {
                StepKey::Verify(store) => keys.iter().position(|key| *key == StepKey::Stage(store.clone())),
                _ => None,
            };
            for step in plan.steps.iter_mut().filter(|step| matches!(step.key, StepKey::Publish(_))) {
                for edge in &mut step.after {
                    let stage = stage_of(&keys[*edge as usize]).and_then(|stage| u32::try_from(stage).ok());
                    *edge = stage.unwrap_or(*edge);
                }
            }
        }
        Some(Mutation::PoolExceeded) => plan.pools.values_mut().for_each(|units| *units *= 4),
        Some(Mutation::StepLost) => {
            // A hand-back has nothing behind it, so that the numbers of others hold when the last one goes.
            if let Some(last) = keys.iter().rposition(|key| matches!(key, StepKey::Handback(_))) {
                let later = |edge: &u32| *edge as usize > last;
                plan.steps.remove(last);
                for step in &mut plan.steps {
                    step.after.iter_mut().filter(|edge| later(edge)).for_each(|edge| *edge -= 1);
                    step.after_ended.iter_mut().filter(|edge| later(edge)).for_each(|edge| *edge -= 1);
                }
            }
        }
        _ => return plan,
    }
    plan.seal()
}

impl Stage {
    fn view(&self, life: &Arc<Life>) -> View {
        View { world: Arc::clone(&self.world), life: Arc::clone(life) }
    }

    /// The repository as one process sees it.
    pub(crate) async fn repository(&self, life: &Arc<Life>) -> Result<Repository, muster_repo::RepoError> {
        let objects: Arc<dyn Objects> = Arc::new(ModelObjects::new(self.view(life)));
        Repository::open(objects).await
    }

    async fn engine(&self, run: &Run, life: &Arc<Life>) -> Result<Engine, EngineError> {
        let mut options = Options::new(life.name(), Digest::of(b"topology"));
        options.clock = self.world.clock();
        options.capture_wait = Duration::from_secs(20);
        let shards = if run.is_drill() { &self.sandboxes } else { &self.shards };
        let drivers: Drivers = shards.iter().map(|shard| (shard.name.clone(), shard.driver(life))).collect();
        Ok(Engine::new(self.repository(life).await?, drivers, options, Events::none()))
    }

    /// One engine, from its start to its end.
    async fn live(&self, run: &Run, life: &Arc<Life>, cancel: &Cancel, resumes: bool) -> End {
        let work = async {
            let engine = self.engine(run, life).await?;
            if resumes {
                engine.resume(&run.id, cancel).await
            } else {
                engine.apply(mutated(self.world.oddities.mutation, &run.plan), &run.id, cancel).await
            }
        };
        let end = tokio::select! {
            biased;
            () = life.died() => End::Died,
            ended = work => End::Ended(ended),
            () = tokio::time::sleep(LONGEST) => End::Stuck,
        };
        // Whatever of it still runs meets the world no more.
        life.kill();
        self.tally.ended(life.points(), matches!(end, End::Died), matches!(end, End::Ended(Ok(_))));
        self.ended(run, life, &end);
        end
    }

    fn ended(&self, run: &Run, life: &Life, end: &End) {
        let told = match end {
            End::Died => format!("dies at point {}", life.points()),
            End::Stuck => "is stuck".to_owned(),
            End::Ended(Ok(summary)) => format!(
                "ends: {} restored, {} failed{}",
                summary.sites_restored,
                summary.sites_failed,
                if summary.cancelled { ", stopped" } else { "" },
            ),
            End::Ended(Err(error)) => format!("ends: {error}"),
        };
        self.world.note(life.name(), &told);
        match end {
            End::Stuck => {
                self.world.audit().violation(format!(
                    "{}: {} hours and no end",
                    run.id,
                    LONGEST.as_secs() / 3600
                ));
            }
            End::Ended(Err(
                error @ (EngineError::LostStep { .. }
                | EngineError::Schedule(_)
                | EngineError::Journal(JournalError::Damaged { .. } | JournalError::Illegal { .. })),
            )) => self.world.audit().violation(format!("{}: {error}", life.name())),
            End::Ended(Ok(summary)) => self.world.audit().told(summary),
            _ => {}
        }
    }

    fn life(&self, run: &Run, dies_at: Option<u64>) -> Arc<Life> {
        Arc::new(self.named(run, dies_at))
    }

    fn named(&self, run: &Run, dies_at: Option<u64>) -> Life {
        let nth = self.engines.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Life::new(format!("{}/{nth}", run.id), dies_at)
    }

    /// One engine by its script, with its rival.
    async fn play(&self, run: &Run, script: &Script) -> Standing {
        tokio::time::sleep(script.pause).await;
        let life = Arc::new(self.named(run, script.dies_at).with_mark(script.rival_at));
        let cancel = Cancel::new();
        let resumes = self.world.audit().is_open(&run.id);
        let own = async {
            let end = self.live(run, &life, &cancel, resumes).await;
            standing(&end)
        };
        let stop = async {
            if let Some(after) = script.stops_after {
                tokio::time::sleep(after).await;
                cancel.cancel();
            }
        };
        let rival = async {
            match (script.rival_after, script.rival_at) {
                (Some(after), _) => tokio::time::sleep(after).await,
                (None, Some(_)) => life.marked().await,
                (None, None) => return,
            }
            let rival = self.life(run, script.rival_dies_at);
            if self.world.audit().is_open(&run.id) {
                self.live(run, &rival, &Cancel::new(), true).await;
            }
        };
        let (standing, (), ()) = tokio::join!(own, stop, rival);
        standing
    }

    /// Engines that fail and go, until the script is over.
    pub(crate) async fn operate(&self, run: &Run, script: &RunScript) -> Standing {
        for life in &script.lives {
            if self.world.audit().is_restored(&run.id) {
                break;
            }
            if self.play(run, life).await == Standing::Refused {
                self.world.audit().forget_plan(&run.id);
                return Standing::Refused;
            }
        }
        if script.abandons && self.world.audit().is_open(&run.id) && !self.world.audit().is_restored(&run.id)
        {
            self.abandon(run).await;
        }
        Standing::Open
    }

    async fn abandon(&self, run: &Run) {
        self.world.audit().abandoning(&run.id);
        let life = self.life(run, None);
        let work = async {
            let engine = self.engine(run, &life).await?;
            match run.is_drill() {
                true => engine.close_drill(&run.id, "the operator's will").await,
                false => engine.abandon(&run.id, "the operator's will").await,
            }
        };
        let end = work.await;
        life.kill();
        self.world.note(life.name(), &format!("abandons: {end:?}"));
    }

    /// Once nothing fails any more: a resume at a time.
    pub(crate) async fn bring_back(&self, run: &Run) -> Standing {
        if self.world.audit().is_abandoned(&run.id) || self.world.audit().is_restored(&run.id) {
            return Standing::Open;
        }
        let standing = self.play(run, &Script::default()).await;
        if standing == Standing::Refused {
            self.world.audit().forget_plan(&run.id);
        }
        standing
    }
}

fn standing(end: &End) -> Standing {
    match end {
        End::Ended(Err(EngineError::Refused { .. })) => Standing::Refused,
        _ => Standing::Open,
    }
}
