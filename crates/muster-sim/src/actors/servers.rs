//! Two servers that follow one schedule: drills and upkeep begin so. The runner, its agenda and its chains are the real
//! ones; what a job does takes some time and nothing else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_serve::{Job, JobRunner, Schedule, Work};
use muster_types::Timestamp;
use tokio::sync::watch;

use crate::actor::Actor;
use crate::dice::Dice;
use crate::life::Life;
use crate::stage::Stage;

/// A server is taken for dead after this long.
const LEASE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Servers {
    rounds: u64,
    dies_at: Option<u64>,
}

impl Servers {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let dies_at = dice.chance(600_000).then(|| dice.between(3, 60));
        Self { rounds: dice.between(1, 2), dies_at }
    }
}

struct Takes(Duration);

#[async_trait]
impl Work for Takes {
    async fn run(&self, _occurrence: Timestamp) -> Result<String, String> {
        tokio::time::sleep(self.0).await;
        Ok("done".to_owned())
    }
}

impl Servers {
    /// One server until it is stopped or dies.
    async fn serve(stage: &Stage, name: String, dies_at: Option<u64>, lasts: Duration) {
        let life = Arc::new(Life::new(name.clone(), dies_at));
        let work = async {
            let Ok(repository) = stage.repository(&life).await else { return };
            let clock = stage.world.clock();
            let Ok(schedule) = Schedule::parse("* * * * *", "UTC", 0, stage.world.now()) else { return };
            let job = Job { name: "drill".to_owned(), schedule };
            let runner = JobRunner::new(&repository, name, LEASE, move || clock.now(), Arc::new(|_| {}));
            let (stop, stopped) = watch::channel(false);
            let takes: Arc<dyn Work> = Arc::new(Takes(Duration::from_secs(15)));
            let stopping = async {
                tokio::time::sleep(lasts).await;
                // The runner may be gone.
                let _ = stop.send(true);
            };
            tokio::join!(runner.run(vec![(job, takes)], stopped), stopping);
        };
        tokio::select! {
            biased;
            () = life.died() => {}
            () = work => {}
        }
        life.kill();
        stage.world.note(life.name(), "is gone");
    }
}

#[async_trait(?Send)]
impl Actor for Servers {
    fn name(&self) -> &'static str {
        "servers"
    }

    async fn act(&mut self, stage: &Stage) -> Option<Duration> {
        self.rounds = self.rounds.checked_sub(1)?;
        let round = self.rounds;
        let lasts = stage.world.dice().span(Duration::from_secs(30), Duration::from_secs(200));
        tokio::join!(
            Self::serve(stage, format!("server-a{round}"), self.dies_at.take(), lasts),
            Self::serve(stage, format!("server-b{round}"), None, lasts * 2),
        );
        Some(Duration::from_secs(1))
    }
}
