//! The real pruning beside runs: at a moment so late that nothing but holds, plans and open runs keeps anything.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_types::retention::Retention;
use muster_upkeep::prune::prune;

use crate::actor::Actor;
use crate::dice::Dice;
use crate::life::Life;
use crate::stage::Stage;

/// No grace: what is condemned goes with the next pruning.
const POLICY: Retention =
    Retention { every_moment_days: 1, daily_days: 1, grace_hours: 0, day_seconds: Retention::DAY_SECONDS };

/// See the module.
pub(crate) struct Prune {
    times: u64,
    dies_at: Option<u64>,
}

impl Prune {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let dies_at = dice.chance(400_000).then(|| dice.between(1, 80));
        Self { times: dice.between(2, 6), dies_at }
    }
}

#[async_trait(?Send)]
impl Actor for Prune {
    fn name(&self) -> &'static str {
        "prune"
    }

    async fn act(&mut self, stage: &Stage) -> Option<Duration> {
        self.times = self.times.checked_sub(1)?;
        let life = Arc::new(Life::new(self.name(), self.dies_at.take()));
        let work = async {
            let repository = stage.repository(&life).await.map_err(|error| error.to_string())?;
            let pruned = prune(&repository, &POLICY, stage.world.now(), false).await;
            pruned.map_err(|error| error.to_string())
        };
        let told = tokio::select! {
            biased;
            () = life.died() => "died".to_owned(),
            pruned = work => match pruned {
                Ok(pruned) => format!("removed {}", pruned.removed.objects),
                Err(error) => error,
            },
        };
        life.kill();
        stage.world.note(self.name(), &told);
        let pause = stage.world.dice().span(Duration::from_millis(100), Duration::from_secs(3));
        Some(pause)
    }
}
