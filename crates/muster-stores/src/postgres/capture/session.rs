//! The replication session, whose messages are taken over in batches.
//!
//! The client reads the socket in a task of its own and hands every message over through a channel. A reader that waited
//! there on another thread would have to be woken for each, which costs more than all else that is done for it. So a task
//! beside the client waits, where waking is no system call, and brings along whatever came meanwhile.
//!
//! # Invariants
//! - A batch is never held back for more to come: it ends where nothing more is ready.
//! - Memory is bounded: one batch, and as many messages in the client's channel.

use std::collections::VecDeque;
use std::time::Duration;

use pgwire_replication::{Lsn, PgWireError, ReplicationClient, ReplicationEvent};

use crate::postgres::connect::REPLICATION_MESSAGES_MAX;

/// Bytes of a batch, where messages are large; the last one may exceed it.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A server that works on a large transaction still says that it is there every half `wal_sender_timeout`.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Why there are no further messages.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nothing came for [`SILENCE_MAX`].
    Silent,
    /// The server closed the session.
    Closed,
    /// It broke.
    Failed(PgWireError),
}

/// See the module.
pub(super) struct Session {
    /// None once the session has ended.
    client: Option<ReplicationClient>,
    /// Messages that the client gave so far.
    received: u64,
    batch: VecDeque<ReplicationEvent>,
    /// What came behind the batch.
    ended: Option<Ended>,
}

impl Session {
    /// Takes over a client that streams.
    pub(super) fn of(client: ReplicationClient) -> Self {
        Self { client: Some(client), received: 0, batch: VecDeque::new(), ended: None }
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Result<ReplicationEvent, Ended> {
        loop {
            if let Some(message) = self.batch.pop_front() {
                return Ok(message);
            }
            if let Some(ended) = self.ended.take() {
                return Err(ended);
            }
            let client = self.client.take().ok_or(Ended::Closed)?;
            let filled = tokio::spawn(fill(client, self.received, std::mem::take(&mut self.batch))).await;
            // Only a panic ends it otherwise.
            let filled = filled.map_err(|error| Ended::Failed(PgWireError::Task(error.to_string())))?;
            self.client = filled.ended.is_none().then_some(filled.client);
            (self.received, self.batch, self.ended) = (filled.received, filled.batch, filled.ended);
        }
    }

    /// More may come.
    pub(super) fn is_running(&self) -> bool {
        self.client.as_ref().is_some_and(ReplicationClient::is_running)
    }

    /// Tells the server that everything before `position` is done with.
    pub(super) fn acknowledge(&self, position: Lsn) {
        if let Some(client) = &self.client {
            client.update_applied_lsn(position);
        }
    }
}

struct Filled {
    client: ReplicationClient,
    received: u64,
    batch: VecDeque<ReplicationEvent>,
    ended: Option<Ended>,
}

/// Waits for a message, and takes those that are there with it.
async fn fill(client: ReplicationClient, received: u64, batch: VecDeque<ReplicationEvent>) -> Filled {
    let mut filled = Filled { client, received, batch, ended: None };
    match tokio::time::timeout(SILENCE_MAX, filled.client.recv()).await {
        Ok(came) => filled.take(came),
        Err(_) => filled.ended = Some(Ended::Silent),
    }
    let metrics = filled.client.metrics();
    let mut bytes = filled.batch.back().map_or(0, size);
    // What was forwarded and not received waits in the channel: taking it does not block.
    while filled.ended.is_none()
        && filled.batch.len() < REPLICATION_MESSAGES_MAX
        && bytes < BATCH_BYTES_MAX
        && metrics.events_forwarded() > filled.received
    {
        let came = filled.client.recv().await;
        filled.take(came);
        bytes += filled.batch.back().map_or(0, size);
    }
    filled
}

impl Filled {
    fn take(&mut self, came: Result<Option<ReplicationEvent>, PgWireError>) {
        match came {
            Ok(Some(message)) => {
                self.received += 1;
                self.batch.push_back(message);
            }
            Ok(None) => self.ended = Some(Ended::Closed),
            Err(error) => self.ended = Some(Ended::Failed(error)),
        }
    }
}

fn size(message: &ReplicationEvent) -> usize {
    match message {
        ReplicationEvent::XLogData { data, .. } => data.len(),
        ReplicationEvent::Message { content, .. } => content.len(),
        _ => 0,
    }
}
