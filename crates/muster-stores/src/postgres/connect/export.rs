//! A state of a database that other sessions can read, at a known place of its log.
//!
//! # Invariants
//! - The state comes from a temporary slot: it holds every commit before the slot's consistent point C and no other, so
//!   that its position is C - 1.
//! - The server itself gives up waiting for open transactions: a client that is gone would leave its session waiting,
//!   with its slot, for as long as they stay open.

use std::fmt;
use std::time::Duration;

use muster_types::Position;
use pgwire_replication::{Lsn, PgWireError, ReplicationClient};
use tokio_postgres::error::SqlState;

use super::{ConnectError, PostgresConfig, split_sqlstate};
use crate::postgres::random_number;

/// How much longer than the server the client waits, so that it is the server's answer that counts.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// See the module. Other sessions can take the state over until this value is dropped.
pub struct ExportedState {
    /// The last place of the log that is in it.
    pub position: Position,
    /// For SET TRANSACTION SNAPSHOT.
    pub name: String,
    /// The slot goes with its session.
    _session: ReplicationClient,
}

/// Why there is no state.
#[derive(Debug)]
pub enum ExportError {
    /// No session.
    Connect(ConnectError),
    /// A transaction was open for longer than this.
    Waited(Duration),
    /// The server refused, or the session broke.
    Answer(PgWireError),
    /// The server's answer is not understood.
    Unclear,
}

impl fmt::Debug for ExportedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExportedState({}, {})", self.name, self.position.0)
    }
}

impl ExportedState {
    /// Exports the state of now. Waits for each transaction that is open for at most `wait`.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn take(config: &PostgresConfig, wait: Duration) -> Result<Self, ExportError> {
        let (mut session, _) =
            config.replication("none", "none", Lsn::ZERO).await.map_err(ExportError::Connect)?;
        let limit = wait.as_millis().clamp(1, i32::MAX as u128);
        let asked = async {
            session.simple_query(&format!("SET lock_timeout = {limit}")).await?;
            let slot = format!("muster_state_{:016x}", random_number());
            let sql =
                format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')");
            session.simple_query(&sql).await
        };
        let answered = tokio::time::timeout(wait.saturating_add(ANSWER_WAIT), asked).await;
        let rows = answered.map_err(|_| ExportError::Waited(wait))?.map_err(|error| match &error {
            PgWireError::Server(text) if is_lock_timeout(text) => ExportError::Waited(wait),
            _ => ExportError::Answer(error),
        })?;
        let text = |column: usize| {
            let field = rows.first()?.get(column)?.as_ref()?;
            std::str::from_utf8(field).ok().map(str::to_owned)
        };
        let point = text(1).and_then(|text| Lsn::parse(&text).ok()).map(|point| point.as_u64());
        let (point, name) = point.zip(text(2)).ok_or(ExportError::Unclear)?;
        Ok(Self { position: Position(point.saturating_sub(1)), name, _session: session })
    }
}

fn is_lock_timeout(text: &str) -> bool {
    split_sqlstate(text).1 == SqlState::LOCK_NOT_AVAILABLE.code()
}
