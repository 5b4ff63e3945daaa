//! Whether the incarnation can be gone on with, and the beginning of a new one.

use std::time::Duration;

use muster_types::{Incarnation, Position};

use super::PostgresSource;
use crate::capture::CaptureError;
use crate::postgres::capture::error::explain;
use crate::postgres::capture::state::{self, State};
use crate::postgres::capture::{install, slot};

/// A capture that follows notices at its next poll that it is removed: some seconds, unless polls are rare.
const FOLLOWER_END: Duration = Duration::from_secs(30);

impl PostgresSource {
    pub(super) async fn status(&mut self) -> Result<slot::Status, CaptureError> {
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        slot::status(client, &name).await.map_err(|error| explain(&config, "look at its slot", &error))
    }

    /// Why the incarnation cannot be gone on with, if so.
    pub(super) async fn broken(
        &mut self,
        state: &State,
        status: &slot::Status,
    ) -> Result<Option<String>, CaptureError> {
        if state.incarnation.as_str() == state::UNBEGUN {
            return Ok(None);
        }
        if let Some(reason) = &state.lost {
            return Ok(Some(reason.clone()));
        }
        if let Some(reason) = slot::broken(status, state.server, &self.name, state.acknowledged) {
            return Ok(Some(reason));
        }
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        let there = install::has_publication(client, &name).await;
        if !there.map_err(|error| explain(&config, "look for its publication", &error))? {
            return Ok(Some(format!("publication `{name}` is gone")));
        }
        self.give_up_if_full(status).await
    }

    /// Drops a slot that holds back too much: the shard's disk goes first.
    async fn give_up_if_full(&mut self, status: &slot::Status) -> Result<Option<String>, CaptureError> {
        let held = status.slot.as_ref().map_or(0, |slot| slot.held_bytes);
        if held <= self.wal_bytes_max {
            return Ok(None);
        }
        let reason = format!(
            "slot `{}` held back {held} bytes of log, more than the {} that it may: it was given up",
            self.name, self.wal_bytes_max
        );
        tracing::error!("shard `{}`: {reason}", self.shard);
        self.drop_slot().await?;
        let (config, client) = self.client().await?;
        let noted = state::give_up(client, &reason).await;
        noted.map_err(|error| explain(&config, "note that its slot was given up", &error))?;
        Ok(Some(reason))
    }

    /// Ends our own session first; another capture's is not ended.
    pub(super) async fn drop_slot(&mut self) -> Result<(), CaptureError> {
        self.end_stream().await?;
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        slot::drop(client, &name).await.map_err(|error| explain(&config, "drop its slot", &error))
    }

    /// [`Self::drop_slot`] once nobody streams from it any more.
    pub(super) async fn free_slot(&mut self) -> Result<(), CaptureError> {
        self.stream = None;
        self.wait_until_free(FOLLOWER_END).await?;
        if let Some(pid) = self.status().await?.slot.and_then(|slot| slot.active_pid) {
            return Err(CaptureError::new(
                format!(
                    "shard `{}`: process {pid} of the server still streams from slot `{}` after {} s",
                    self.shard,
                    self.name,
                    FOLLOWER_END.as_secs()
                ),
                "stop the capture that follows it, or end the session (SELECT pg_terminate_backend(PID)); then run the command \
                 again",
            ));
        }
        self.drop_slot().await
    }

    pub(super) async fn begin_now(&mut self, incarnation: &Incarnation) -> Result<(), CaptureError> {
        self.read_state().await?;
        self.drop_slot().await?;
        let status = self.status().await?;
        if let Some(other) = status.slot {
            return Err(CaptureError::new(
                format!(
                    "shard `{}`: slot `{}` belongs to database `{}`",
                    self.shard,
                    self.name,
                    other.database.unwrap_or_default()
                ),
                "give the shard another name in the topology, or drop that slot if its database is no longer captured",
            ));
        }
        let layout = self.read_layout().await?;
        let (name, wait) = (self.name.clone(), self.begin_wait);
        let (config, client) = self.client().await?;
        let failed = |error| explain(&config, "begin an incarnation", &error);
        install::publish(client, &name, &layout).await.map_err(failed)?;
        let Some(confirmed) = slot::create(client, &name, wait).await.map_err(failed)? else {
            return Err(self.transactions_stay_open().await?);
        };
        let acknowledged = Position(confirmed.0 - 1);
        state::begin(client, incarnation, &name, acknowledged, status.server).await.map_err(failed)?;
        let layout = self.read_layout().await?;
        let known = state::known_of(&layout);
        let (config, client) = self.client().await?;
        let written = state::write_known(client, &known).await;
        written.map_err(|error| explain(&config, "begin an incarnation", &error))?;
        self.known = Some(known);
        self.layout = Some((acknowledged, layout));
        (self.snapshot_layout, self.delivered, self.quiet_at, self.remembered) = (None, None, None, None);
        self.remember_layout(acknowledged).await
    }

    async fn transactions_stay_open(&mut self) -> Result<CaptureError, CaptureError> {
        let (shard, wait) = (self.shard.clone(), self.begin_wait.as_secs());
        let (config, client) = self.client().await?;
        let oldest = slot::oldest_transaction(client).await;
        let oldest = oldest.map_err(|error| explain(&config, "look at open transactions", &error))?;
        let oldest = oldest.unwrap_or_else(|| "one that has ended just now".to_owned());
        Ok(CaptureError::transient(
            format!(
                "shard `{shard}`: a new incarnation waits for transactions that stay open for more than {wait} s; the \
                 oldest is {oldest}"
            ),
            "wait for it, or end it with pg_terminate_backend (ROLLBACK PREPARED for a prepared one); capture tries again",
        ))
    }
}
