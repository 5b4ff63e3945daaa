//! The seam for what lives beside restore runs: an actor is a process of its own over the shared world.
//!
//! Whatever joins a run's life finds its place here: an actor meets the world as a process with a
//! [`Life`](crate::life::Life), through the stage's repository and the shards' drivers, and the auditor hears of what it
//! changes through the models.

use std::time::Duration;

use async_trait::async_trait;

use crate::stage::Stage;

/// Someone who acts now and then.
#[async_trait(?Send)]
pub trait Actor {
    /// Its name, for the event log.
    fn name(&self) -> &'static str;

    /// Acts once; how long until the next time, or none when it is done.
    async fn act(&mut self, stage: &Stage) -> Option<Duration>;
}

/// Lets an actor act until it is done; dropping the future stops it.
pub(crate) async fn perform(actor: &mut dyn Actor, stage: &Stage) {
    while let Some(pause) = actor.act(stage).await {
        tokio::time::sleep(pause).await;
    }
}
