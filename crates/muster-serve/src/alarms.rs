//! What is wrong, as one server sees it, held against what the servers of the repository have agreed on.
//!
//! Looks say which conditions there are; [`Alarms`] says which edges to write into the chain of alarms. Whoever wins the
//! slot tells the edges, so that each is told once.
//!
//! # Invariants
//! - Pure: from looks and records.
//! - A server writes an edge where its own view has just changed, or where it has seen otherwise than the chain for
//!   [`LOOKS_MAX`] looks: two servers whose looks differ by a moment do not raise and clear against each other, and what a
//!   server raised that died is cleared by those that live.
//! - A look replaces everything that is known under the names that it looks at, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, AlarmRecord, Change, Condition, Edge};
use muster_types::format::FORMAT;

/// So many looks in a row that differ from the chain are no matter of moments.
pub const LOOKS_MAX: u32 = 4;

/// Alarms of one name that stand one by one; of more, the last says how many: a chain's record stays small where all
/// shards of a large fleet fail at once.
const OF_NAME_MAX: usize = 50;

type Key = (AlarmName, String);

/// One server's view.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    seen: BTreeMap<Key, Condition>,
    /// Names that were looked at.
    known: BTreeSet<AlarmName>,
    /// Where the view has changed, and it is not yet written.
    changed: BTreeSet<Key>,
    /// For how many looks the view has differed from the chain.
    differs: BTreeMap<Key, u32>,
}

impl Alarms {
    /// Takes what a look at `names` showed; what changed since the last one.
    pub fn saw(&mut self, names: &[AlarmName], found: Vec<Condition>) -> Vec<Edge> {
        let found: BTreeMap<Key, Condition> =
            bounded(found).into_iter().map(|condition| (key(&condition), condition)).collect();
        let of_names = |(name, _): &Key| names.contains(name);
        for (key, looks) in &mut self.differs {
            *looks += u32::from(of_names(key));
        }
        let mut edges = Vec::new();
        let gone: Vec<Key> =
            self.seen.keys().filter(|key| of_names(key) && !found.contains_key(*key)).cloned().collect();
        for key in gone {
            self.changed.insert(key.clone());
            edges.extend(self.seen.remove(&key).map(|alarm| Edge { change: Change::Cleared, alarm }));
        }
        for (key, mut condition) in found {
            match self.seen.get(&key) {
                // It has been so since it was first seen.
                Some(known) => condition.since = known.since,
                None => {
                    self.changed.insert(key.clone());
                    edges.push(Edge { change: Change::Raised, alarm: condition.clone() });
                }
            }
            self.seen.insert(key, condition);
        }
        self.known.extend(names);
        edges
    }

    /// What stands, as this server sees it.
    pub fn standing(&self) -> impl Iterator<Item = &Condition> + Clone {
        self.seen.values()
    }

    /// A record of this server won its slot.
    pub fn wrote(&mut self, record: &AlarmRecord) {
        for edge in &record.edges {
            self.changed.remove(&key(&edge.alarm));
        }
    }

    /// The record to write behind `last`; none where the chain says what this server sees.
    pub fn record(
        &mut self,
        last: Option<&AlarmRecord>,
        server: &str,
        now: Timestamp,
    ) -> Option<AlarmRecord> {
        let agreed: BTreeMap<Key, &Condition> = last
            .iter()
            .flat_map(|last| &last.standing)
            .map(|condition| (key(condition), condition))
            .collect();
        let differing: BTreeSet<Key> = self
            .seen
            .keys()
            .chain(agreed.keys())
            .filter(|key| self.known.contains(&key.0))
            .filter(|key| self.seen.contains_key(*key) != agreed.contains_key(*key))
            .cloned()
            .collect();
        self.differs.retain(|key, _| differing.contains(key));
        self.changed.retain(|key| differing.contains(key));
        let mut edges = Vec::new();
        for key in differing {
            let looks = *self.differs.entry(key.clone()).or_default();
            if !self.changed.contains(&key) && looks < LOOKS_MAX {
                continue;
            }
            edges.extend(match self.seen.get(&key) {
                Some(alarm) => Some(Edge { change: Change::Raised, alarm: alarm.clone() }),
                None => {
                    agreed.get(&key).map(|alarm| Edge { change: Change::Cleared, alarm: (*alarm).clone() })
                }
            });
        }
        if edges.is_empty() {
            return None;
        }
        let standing = after(agreed, &edges);
        let sequence = last.map_or(1, |last| last.sequence + 1);
        Some(AlarmRecord { format: FORMAT, sequence, server: server.to_owned(), at: now, edges, standing })
    }
}

fn key(condition: &Condition) -> Key {
    (condition.name, condition.subject.clone())
}

/// What stands behind the edges.
fn after(agreed: BTreeMap<Key, &Condition>, edges: &[Edge]) -> Vec<Condition> {
    let mut standing: BTreeMap<Key, Condition> =
        agreed.into_iter().map(|(key, condition)| (key, condition.clone())).collect();
    for edge in edges {
        match edge.change {
            Change::Raised => standing.insert(key(&edge.alarm), edge.alarm.clone()),
            Change::Cleared => standing.remove(&key(&edge.alarm)),
        };
    }
    standing.into_values().collect()
}

/// Not more of one name than a record has room for.
fn bounded(mut found: Vec<Condition>) -> Vec<Condition> {
    found.sort_by(|a, b| a.key().cmp(&b.key()));
    let mut kept = Vec::with_capacity(found.len());
    for group in found.chunk_by(|a, b| a.name == b.name) {
        kept.extend(group.iter().take(OF_NAME_MAX).cloned());
        if let Some(first) = group.get(OF_NAME_MAX) {
            let more = group.len() - OF_NAME_MAX;
            let (subject, text) = ("others".to_owned(), format!("{more} more, {first} the first of them"));
            kept.push(Condition { subject, text, ..first.clone() });
        }
    }
    kept
}
