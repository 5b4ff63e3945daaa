//! Chains of scheduled jobs: one server works on an occurrence, and none is left out in silence.

use std::collections::BTreeMap;

use muster_types::Timestamp;
use muster_types::jobs::{JobDecision, JobRecord};

#[derive(Debug, Default)]
struct Chain {
    sequence: u64,
    /// Who is at work, on what, for which time.
    at_work: Option<(String, Timestamp, u32)>,
    last_done: Option<Timestamp>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Jobs(BTreeMap<String, Chain>);

impl Jobs {
    /// What is wrong with a record that landed.
    pub(super) fn stored(&mut self, key: &str, body: &[u8]) -> Option<String> {
        let record: JobRecord = match serde_json::from_slice(body) {
            Ok(record) => record,
            Err(error) => return Some(format!("it is no record: {error}")),
        };
        let job = key.trim_start_matches("jobs/").split('/').next().unwrap_or_default();
        let chain = self.0.entry(job.to_owned()).or_default();
        let is_next = record.sequence == chain.sequence + 1;
        chain.sequence = record.sequence;
        if !is_next {
            return Some("the chain has a gap, or a slot was written over".to_owned());
        }
        chain.decided(&record)
    }
}

impl Chain {
    fn decided(&mut self, record: &JobRecord) -> Option<String> {
        match &record.decision {
            JobDecision::Begun => None,
            JobDecision::Claimed { occurrence, attempt, .. } => {
                let was = self.at_work.replace((record.server.clone(), *occurrence, *attempt));
                let repeats = self.last_done.is_some_and(|done| *occurrence <= done);
                let wrong = match was {
                    Some((_, of, tried)) => of != *occurrence || *attempt != tried + 1,
                    None => *attempt != 1,
                };
                (repeats || wrong).then(|| format!("occurrence {occurrence} is worked on twice"))
            }
            JobDecision::Released { occurrence, attempt } => match &self.at_work {
                Some((server, of, tried)) if (server, of, tried) == (&record.server, occurrence, attempt) => {
                    None
                }
                _ => Some(format!("{} gives back what it does not have", record.server)),
            },
            JobDecision::Done { occurrence, attempt, .. } => {
                let was = self.at_work.take();
                self.last_done = Some(*occurrence);
                let fits = was.is_some_and(|(_, of, tried)| (of, tried) == (*occurrence, *attempt));
                (!fits).then(|| format!("occurrence {occurrence} ended, and nobody was at work on it"))
            }
        }
    }
}
