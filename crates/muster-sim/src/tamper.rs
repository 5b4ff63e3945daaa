//! Journal entries altered on their way, for [`Mutation`]s of what is recorded.

use bytes::Bytes;
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::StepKey;

use crate::mutation::Mutation;

/// Whether a key, or the prefix of a listing, is of a run's journal.
pub(crate) fn is_journal(key: &str) -> bool {
    key.starts_with("runs/") && key.contains("/journal/")
}

/// The entry as an engine with this defect would write it.
pub(crate) fn entry(mutation: Option<Mutation>, key: &str, body: Bytes) -> Bytes {
    let alter: fn(Vec<Record>) -> Vec<Record> = match mutation {
        Some(Mutation::RecordDropped) => without_success,
        Some(Mutation::RecordDoubled) => doubled,
        Some(Mutation::BlockedUnnamed) => without_blocked,
        Some(Mutation::BlockedByAnother) => blocked_by_another,
        _ => return body,
    };
    if !is_journal(key) {
        return body;
    }
    let Ok(mut entry) = serde_json::from_slice::<JournalEntry>(&body) else { return body };
    entry.records = alter(entry.records);
    serde_json::to_vec(&entry).map_or(body, Bytes::from)
}

fn without_success(mut records: Vec<Record>) -> Vec<Record> {
    let found = records
        .iter()
        .position(|record| matches!(record, Record::Succeeded { step: StepKey::Verify(_), .. }));
    found.map(|found| records.remove(found));
    records
}

fn doubled(mut records: Vec<Record>) -> Vec<Record> {
    let found = records.iter().find(|record| matches!(record, Record::Succeeded { .. })).cloned();
    records.extend(found);
    records
}

fn without_blocked(mut records: Vec<Record>) -> Vec<Record> {
    records.retain(|record| !matches!(record, Record::Blocked { .. }));
    records
}

fn blocked_by_another(mut records: Vec<Record>) -> Vec<Record> {
    for record in &mut records {
        if let Record::Blocked { step, by, .. } = record {
            *by = step.clone();
        }
    }
    records
}
