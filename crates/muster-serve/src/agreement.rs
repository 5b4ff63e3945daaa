//! What one server sees, brought into the chain of alarms that the servers of a repository share.
//!
//! # Invariants
//! - A record that won its slot is told, once, by the server that wrote it, however often the object store failed between the
//!   two; only a server that dies there takes it along.
//! - A record whose fate is unknown is sent again as it was until it is known, before any other.

use muster_repo::{AlarmChain, RepoError, Repository};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, AlarmRecord, Condition, Edge};

use crate::alarms::Alarms;

/// One server's side of the chain.
#[derive(Debug)]
pub struct Agreement {
    server: String,
    alarms: Alarms,
    chain: AlarmChain,
    /// Sent, and not answered: it may be in the chain.
    unanswered: Option<AlarmRecord>,
}

impl Agreement {
    /// Of the server with this name; it has seen nothing yet.
    pub fn new(repository: &Repository, server: &str) -> Self {
        Self {
            server: server.to_owned(),
            alarms: Alarms::default(),
            chain: AlarmChain::of(repository),
            unanswered: None,
        }
    }

    /// Takes what a look at `names` showed; what changed for this server.
    pub fn saw(&mut self, names: &[AlarmName], found: Vec<Condition>) -> Vec<Edge> {
        self.alarms.saw(names, found)
    }

    /// What stands, as this server sees it.
    pub fn standing(&self) -> impl Iterator<Item = &Condition> + Clone {
        self.alarms.standing()
    }

    /// Writes what has changed for the repository; `tell` is given each record that won its slot.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record. To be called again after the next look.
    pub async fn write(
        &mut self,
        now: Timestamp,
        mut tell: impl FnMut(&AlarmRecord),
    ) -> Result<(), RepoError> {
        if let Some(record) = self.unanswered.clone() {
            self.append(record, &mut tell).await?;
        }
        self.chain.refresh().await?;
        while let Some(record) = self.alarms.record(self.chain.last(), &self.server, now) {
            if self.append(record, &mut tell).await? {
                break;
            }
        }
        Ok(())
    }

    async fn append(
        &mut self,
        record: AlarmRecord,
        tell: &mut impl FnMut(&AlarmRecord),
    ) -> Result<bool, RepoError> {
        self.unanswered = Some(record.clone());
        let won = self.chain.append(record.clone()).await?;
        self.unanswered = None;
        if won {
            self.alarms.wrote(&record);
            tell(&record);
        }
        Ok(won)
    }
}
