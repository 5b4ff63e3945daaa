//! Capture: moves what shards logged into the repository, so that proofs have to look for it there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_repo::{Chain, SegmentSpool};
use muster_types::{Boundary, Incarnation, Position, Timestamp};

use crate::actor::Actor;
use crate::life::Life;
use crate::shard::Shard;
use crate::stage::Stage;

/// See the module.
pub(crate) struct Capture;

impl Capture {
    async fn shard(stage: &Stage, life: &Arc<Life>, shard: &Shard) -> Result<(), String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let repository = stage.repository(life).await.map_err(|error| told(&error))?;
        let incarnation = Incarnation::new("0001-simulated").map_err(|error| told(&error))?;
        let mut chain =
            Chain::open(&repository, &shard.name, &incarnation).await.map_err(|error| told(&error))?;
        let nothing = Boundary { position: Position(0), at: Timestamp::EPOCH };
        let after = chain.head().map_or(nothing, |head| head.boundary);
        let (mut changes, upto) = {
            let mut state = shard.state();
            state.captured_upto = after.position.0;
            let behind = |logged: &&muster_engine::driver::LoggedChange| {
                logged.change.stamp.key.position > after.position
            };
            (state.log.iter().filter(behind).cloned().collect::<Vec<_>>(), state.position())
        };
        if after.position.0 == upto {
            return Ok(());
        }
        let dir = tempfile::tempdir().map_err(|error| told(&error))?;
        let mut spool = SegmentSpool::new(&dir.path().join("segment"));
        for table in &shard.tables {
            spool.table(table);
        }
        changes.sort_by_key(|logged| {
            (logged.site.clone(), logged.table.clone(), logged.mark.clone(), logged.change.stamp.key)
        });
        for logged in &changes {
            let number = shard.tables.iter().position(|table| table.def.name == logged.table);
            let number = number.ok_or("a change of an unknown table")?;
            let spooled = spool.change(logged.site.as_ref(), number, logged.mark.as_ref(), &logged.change);
            spooled.map_err(|error| told(&error))?;
        }
        let at = Timestamp::from_micros(i64::try_from(upto).unwrap_or(i64::MAX));
        let boundary = Boundary { position: Position(upto), at };
        let spooled = spool.finish().map_err(|error| told(&error))?;
        let appended = chain.append(spooled, after, boundary, (0, 0), "capture").await;
        appended.map_err(|error| told(&error))?;
        let mut state = shard.state();
        state.log.retain(|logged| logged.change.stamp.key.position.0 > upto);
        state.captured_upto = upto;
        Ok(())
    }
}

#[async_trait(?Send)]
impl Actor for Capture {
    fn name(&self) -> &'static str {
        "capture"
    }

    async fn act(&mut self, stage: &Stage) -> Option<Duration> {
        let life = Arc::new(Life::new(self.name(), None));
        for shard in &stage.shards {
            if let Err(error) = Self::shard(stage, &life, shard).await {
                stage.world.note(self.name(), &error);
            }
        }
        let pause = stage.world.dice().span(Duration::from_millis(200), Duration::from_secs(3));
        Some(pause)
    }
}
