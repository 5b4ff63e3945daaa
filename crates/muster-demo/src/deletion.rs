//! The bad script: deletes sites one after another, product by product.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::record::{Intent, Outcome, Session, now_micros, statement};

/// The order of the script: apps and products, then users and licences, the site's own row last.
const ORDER: [Kind; 11] = [
    Kind::Diagrams,
    Kind::Timesheets,
    Kind::Automation,
    Kind::Statuspage,
    Kind::Opsgenie,
    Kind::Confluence,
    Kind::ServiceManagement,
    Kind::JiraSoftware,
    Kind::Identity,
    Kind::Licence,
    Kind::Metadata,
];

/// What was deleted, and when.
#[derive(Clone, Debug, Default)]
pub struct DeletionLog {
    /// In the order of the script.
    pub sites: Vec<DeletedSite>,
}

/// One deleted site.
#[derive(Clone, Debug)]
pub struct DeletedSite {
    /// Index of the site.
    pub index: usize,
    /// Its bare id.
    pub site: String,
    /// Right before the first transaction's commit, in microseconds since the Unix epoch.
    pub began_micros: i64,
    /// Right after the last one's.
    pub ended_micros: i64,
}

/// Transactions that delete one store: each a list of statements with the site's id as `?1`.
fn script(kind: Kind) -> &'static [&'static [&'static str]] {
    match kind {
        Kind::Diagrams => &[&["DELETE FROM diagram WHERE cloud_id = ?1"]],
        Kind::Timesheets => &[&["DELETE FROM timesheet_entry WHERE tenant = ?1"]],
        Kind::Automation => &[
            &[
                "DELETE FROM automation_run WHERE rule_id IN (SELECT rule_id FROM automation_rule WHERE tenant = ?1)",
            ],
            &["DELETE FROM automation_rule WHERE tenant = ?1"],
        ],
        Kind::Statuspage => &[&[
            "DELETE FROM status_component WHERE site = ?1",
            "DELETE FROM status_incident WHERE site = ?1",
        ]],
        Kind::Opsgenie => &[&["DELETE FROM ops_team WHERE site = ?1"]],
        Kind::Confluence => &[
            &[
                "DELETE FROM wiki_page WHERE space_id IN (SELECT space_id FROM wiki_space WHERE cloud_id = ?1)",
            ],
            &["DELETE FROM wiki_space WHERE cloud_id = ?1"],
        ],
        Kind::ServiceManagement => &[&["DELETE FROM jsm_queue WHERE tenant = ?1"]],
        Kind::JiraSoftware => &[
            &["DELETE FROM jsw_attachment WHERE issue_id IN (SELECT i.issue_id FROM jsw_issue AS i
                 JOIN jsw_project AS p ON p.project_id = i.project_id WHERE p.tenant = ?1)"],
            &[
                "DELETE FROM jsw_issue WHERE project_id IN (SELECT project_id FROM jsw_project WHERE tenant = ?1)",
            ],
            &["DELETE FROM jsw_project WHERE tenant = ?1"],
        ],
        Kind::Identity => &[
            &["DELETE FROM user_group WHERE site_id = ?1"],
            &["DELETE FROM user_account WHERE site_id = ?1"],
        ],
        Kind::Licence => &[&["DELETE FROM licence WHERE site_id = ?1"]],
        Kind::Metadata => &[&["DELETE FROM site WHERE site_id = ?1"]],
    }
}

impl Fleet {
    /// Deletes `victims` one after another, starting one every `pace` at most.
    ///
    /// # Errors
    /// If a shard cannot be written.
    pub fn delete_victims(&self, victims: &[usize], pace: Duration) -> Result<DeletionLog> {
        let mut sessions: Vec<Session> =
            self.shards.iter().map(|shard| shard.connect()).collect::<Result<_>>()?;
        victims.clone_into(&mut self.queue.write().unwrap_or_else(PoisonError::into_inner));
        let mut log = DeletionLog::default();
        for (place, index) in victims.iter().enumerate() {
            let began = Instant::now();
            self.queue_at.store(place + 1, Ordering::Release);
            log.sites.push(self.delete_site(&mut sessions, *index)?);
            std::thread::sleep(pace.saturating_sub(began.elapsed()));
        }
        Ok(log)
    }

    fn delete_site(&self, sessions: &mut [Session], index: usize) -> Result<DeletedSite> {
        // From here on nobody else writes to the site; what is under way ends before the first deletion or is refused.
        self.gone[index].store(true, Ordering::SeqCst);
        drop(self.turn(Some(index)).lock());
        let id = &self.sites[index].id;
        let (mut began_micros, mut ended_micros) = (None, now_micros());
        for kind in ORDER.into_iter().filter(|kind| self.has(index, *kind)) {
            let place = self.shard_of(index, kind);
            let shard = &self.shards[place];
            for transaction in script(kind) {
                let intent = Intent { site: Some(index), kind, deletion: true, roll_back: false };
                let outcome = shard.commit(
                    &mut sessions[place],
                    self.turn(Some(index)),
                    intent,
                    || false,
                    |_| Ok(transaction.iter().map(|sql| statement!(sql; id.clone())).collect()),
                )?;
                let times = shard
                    .ledger()
                    .entries
                    .iter()
                    .rev()
                    .find(|entry| entry.site == Some(index))
                    .map(|entry| (entry.commit_started, entry.commit_done));
                if let (Outcome::Committed, Some((started, done))) = (outcome, times) {
                    began_micros.get_or_insert(started);
                    ended_micros = done;
                }
            }
        }
        let began_micros = began_micros.unwrap_or(ended_micros);
        Ok(DeletedSite { index, site: id.clone(), began_micros, ended_micros })
    }
}
