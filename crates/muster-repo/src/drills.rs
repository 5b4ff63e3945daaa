//! The objects of drills: that each began, and what came of it. Both are created if absent.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use muster_types::drill::{DrillBegun, DrillRecord};
use muster_types::{DrillId, Timestamp};

use crate::document::{from_json, to_json};
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// Records fetched at once: enough to hide a round trip of tens of milliseconds, few enough for any server.
const READS_AT_ONCE: usize = 16;

/// The drills of a repository.
#[derive(Clone, Debug)]
pub struct DrillObjects {
    repository: Repository,
}

impl DrillObjects {
    /// Those of `repository`.
    pub fn new(repository: &Repository) -> Self {
        Self { repository: repository.clone() }
    }

    /// Notes that a drill begins, before it makes anything.
    ///
    /// # Errors
    /// Another drill of that id; what the object store answers.
    pub async fn begin(&self, begun: &DrillBegun) -> Result<(), RepoError> {
        self.create(&keys::drill_begun(&begun.id), to_json(begun)?, &begun.id).await
    }

    /// What was noted when a drill began.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer note.
    pub async fn begun(&self, drill: &DrillId) -> Result<Option<DrillBegun>, RepoError> {
        let key = keys::drill_begun(drill);
        let body = self.repository.objects().get(&key).await?;
        body.map(|body| from_json(&key, &body)).transpose()
    }

    /// Records what came of a drill.
    ///
    /// # Errors
    /// Another record of that drill; what the object store answers.
    pub async fn record(&self, record: &DrillRecord) -> Result<(), RepoError> {
        let key = keys::drill_record(&digits(record.began_at), &record.id);
        self.create(&key, to_json(record)?, &record.id).await
    }

    /// The records of drills that began at or behind `since`, in the order of their beginning.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn records(&self, since: Timestamp) -> Result<Vec<DrillRecord>, RepoError> {
        let objects = self.repository.objects();
        let after = format!("{}{}", keys::DRILLS, digits(since));
        let entries = objects.list(keys::DRILLS, Some(&after)).await?;
        // Letters of other folders sort behind digits.
        let keys =
            entries.into_iter().map(|entry| entry.key).filter(|key| !key.starts_with(keys::DRILLS_BEGUN));
        let records: Vec<DrillRecord> = futures::stream::iter(keys.collect::<Vec<_>>())
            .map(|key| async move {
                let body = objects.get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
                from_json(&key, &body)
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(records.into_iter().filter(|record| record.began_at >= since).collect())
    }

    /// The records that are not among `known`, each with its key, in the order of their beginning.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn records_beside<T>(
        &self,
        known: &BTreeMap<String, T>,
    ) -> Result<Vec<(String, DrillRecord)>, RepoError> {
        let objects = self.repository.objects();
        let entries = objects.list(keys::DRILLS, None).await?;
        let keys = entries.into_iter().map(|entry| entry.key);
        let new = keys.filter(|key| !key.starts_with(keys::DRILLS_BEGUN) && !known.contains_key(key));
        futures::stream::iter(new.collect::<Vec<_>>())
            .map(|key| async move {
                let body = objects.get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
                let record = from_json(&key, &body)?;
                Ok((key, record))
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn create(&self, key: &str, body: bytes::Bytes, drill: &DrillId) -> Result<(), RepoError> {
        match self.repository.objects().create(key, body).await? {
            Creation::Mine => Ok(()),
            Creation::Other(_) => Err(RepoError::new(
                RepoErrorKind::Misuse,
                format!("there is a drill `{drill}` already"),
                "run the drill again: its id is drawn anew",
            )),
        }
    }
}

/// `YYYYMMDDThhmmssZ`: such keys sort by time.
fn digits(at: Timestamp) -> String {
    let text = at.to_string();
    let kept = text.chars().take_while(|letter| *letter != '.' && *letter != 'Z');
    let mut digits: String = kept.filter(|letter| letter.is_ascii_digit() || *letter == 'T').collect();
    digits.push('Z');
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_time() {
        let text = |micros| digits(Timestamp::from_micros(micros));
        assert_eq!(text(1_649_144_280_000_000), "20220405T073800Z");
        assert_eq!(text(1_649_144_280_999_999), "20220405T073800Z");
        assert!(text(1_649_144_280_000_000) < text(1_649_144_281_000_000));
    }
}
