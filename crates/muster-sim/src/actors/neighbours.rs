//! Living sites that write beside the victims.

use std::time::Duration;

use async_trait::async_trait;

use crate::actor::Actor;
use crate::fleet::neighbours;
use crate::stage::Stage;

/// See the module.
pub(crate) struct Neighbours;

#[async_trait(?Send)]
impl Actor for Neighbours {
    fn name(&self) -> &'static str {
        "neighbours"
    }

    async fn act(&mut self, stage: &Stage) -> Option<Duration> {
        let sites = neighbours().ok()?;
        let mut dice = stage.world.dice();
        let site = dice.pick(&sites)?.clone();
        let number = usize::try_from(dice.between(0, stage.shards.len() as u64 - 1)).ok()?;
        let (removes, pause) =
            (dice.chance(300_000), dice.span(Duration::from_millis(20), Duration::from_millis(2_000)));
        drop(dice);
        stage.shards.get(number)?.neighbour_writes(&site, removes);
        Some(pause)
    }
}
