//! A run's objects: its plan and its journal.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use muster_types::format;
use muster_types::journal::JournalEntry;
use muster_types::plan::Plan;
use muster_types::{Digest, RunId};

use crate::document::{from_json, from_json_zstd, to_json, to_json_zstd};
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::objects::{Creation, Objects};
use crate::repository::Repository;

/// Entries read at once: they are small, and a run's journal has thousands.
const READS_AT_ONCE: usize = 16;

/// What became of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Appended {
    /// It is durable.
    Mine,
    /// Another engine's entry has the slot.
    Other(Box<JournalEntry>),
}

/// The objects of one run.
#[derive(Clone, Debug)]
pub struct RunObjects {
    repository: Repository,
    run: RunId,
}

impl RunObjects {
    /// Those of `run`.
    pub fn new(repository: &Repository, run: RunId) -> Self {
        Self { repository: repository.clone(), run }
    }

    /// The run.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// All runs of a repository, ascending by name.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn list(repository: &Repository) -> Result<Vec<RunId>, RepoError> {
        let names = repository.objects().list_folders(keys::RUNS).await?;
        Ok(names.into_iter().filter_map(|name| RunId::new(name).ok()).collect())
    }

    /// Stores the plan. Storing an equal one again is no error.
    ///
    /// # Errors
    /// A different plan under this run; what the object store answers.
    pub async fn put_plan(&self, plan: &Plan) -> Result<(), RepoError> {
        let key = keys::plan(&self.run);
        match self.repository.objects().create(&key, to_json_zstd(plan)?).await? {
            Creation::Mine => Ok(()),
            Creation::Other(theirs) if from_json_zstd::<Plan>(&key, &theirs)?.id == plan.id => Ok(()),
            Creation::Other(_) => Err(RepoError::new(
                RepoErrorKind::Misuse,
                format!("run `{}` has another plan already", self.run),
                "give the run another name, or `muster resume` the one that is there",
            )),
        }
    }

    /// The plan, if the run exists.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer plan.
    pub async fn get_plan(&self) -> Result<Option<Plan>, RepoError> {
        let key = keys::plan(&self.run);
        let whole = |body: &Bytes| {
            let plan: Plan = from_json_zstd(&key, body)?;
            if plan.content_id() != plan.id {
                return Err(RepoError::damaged(&key, "its content does not have the digest that is its id"));
            }
            Ok(plan)
        };
        read(self.repository.objects().as_ref(), &key, whole).await
    }

    /// Puts another plan in the place of that of a run that has ended.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn replace_plan(&self, plan: &Plan) -> Result<(), RepoError> {
        let key = keys::plan(&self.run);
        self.repository.objects().put(&key, to_json_zstd(plan)?).await?;
        self.repository.objects().remove_older_versions(&key).await.map(drop)
    }

    /// Appends a journal entry to the slot of its sequence number. After an error it is unknown whether it landed:
    /// only the same entry may be sent again.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn append(&self, entry: &JournalEntry) -> Result<Appended, RepoError> {
        debug_assert_eq!(entry.format, format::FORMAT, "entries are written in the current format");
        let key = keys::journal_entry(&self.run, entry.sequence);
        match self.repository.objects().create(&key, sealed(&to_json(entry)?)).await? {
            Creation::Mine => Ok(Appended::Mine),
            Creation::Other(theirs) => Ok(Appended::Other(Box::new(entry_of(&key, &theirs)?))),
        }
    }

    /// All journal entries behind number `after` (0: all), in order.
    ///
    /// # Errors
    /// A missing, damaged or newer entry; what the object store answers.
    pub async fn journal(&self, after: u64) -> Result<Vec<JournalEntry>, RepoError> {
        let folder = keys::journal(&self.run);
        let behind = (after > 0).then(|| keys::journal_entry(&self.run, after));
        let found = self.repository.objects().list(&folder, behind.as_deref()).await?;
        for (entry, sequence) in found.iter().zip(after + 1..) {
            let expected = keys::journal_entry(&self.run, sequence);
            if entry.key != expected {
                return Err(RepoError::not_found(&expected));
            }
        }
        let entries: Vec<JournalEntry> = futures::stream::iter(found)
            .map(|entry| async move {
                let objects = self.repository.objects().as_ref();
                let found = read(objects, &entry.key, |body| entry_of(&entry.key, body)).await?;
                found.ok_or_else(|| RepoError::not_found(&entry.key))
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(entries)
    }
}

/// Reads an object; one that came damaged is read once more, since it may have been harmed on its way only.
async fn read<T>(
    objects: &dyn Objects,
    key: &str,
    parse: impl Fn(&Bytes) -> Result<T, RepoError>,
) -> Result<Option<T>, RepoError> {
    let Some(body) = objects.get(key).await? else { return Ok(None) };
    match parse(&body) {
        Err(error) if matches!(error.kind, RepoErrorKind::Damaged { .. }) => {
            objects.get(key).await?.as_ref().map(parse).transpose()
        }
        parsed => parsed.map(Some),
    }
}

/// What an entry begins with: the digest of all that follows the comma behind it. A flipped digit would be valid JSON.
const SEAL: &str = "{\"digest\":\"";

fn sealed(json: &[u8]) -> Bytes {
    let rest = json.strip_prefix(b"{").unwrap_or(json);
    [format!("{SEAL}{}\",", Digest::of(rest)).as_bytes(), rest].concat().into()
}

/// An entry, checked against its digest. Those of before had none.
fn entry_of(key: &str, body: &[u8]) -> Result<JournalEntry, RepoError> {
    if let Some(behind) = body.strip_prefix(SEAL.as_bytes()) {
        let split = behind.windows(2).position(|two| two == b"\",").unwrap_or(behind.len());
        let (digest, rest) = behind.split_at(split);
        let rest = rest.get(2..).unwrap_or_default();
        if digest != Digest::of(rest).to_string().as_bytes() {
            return Err(RepoError::damaged(key, "its content does not have the digest that it begins with"));
        }
    }
    from_json(key, body)
}

#[cfg(test)]
mod tests {
    use muster_types::{Epoch, Timestamp};

    use super::*;

    #[test]
    fn every_flipped_bit_of_an_entry_is_noticed_or_harmless() {
        let entry = JournalEntry {
            format: format::FORMAT,
            run: RunId::new("r").unwrap(),
            sequence: 7,
            epoch: Epoch(3),
            writer: "host:1".to_owned(),
            attempt: 9,
            at: Timestamp::from_micros(1_650_000_000_000_000),
            records: Vec::new(),
            restraint: None,
        };
        let json = to_json(&entry).unwrap();
        let body = sealed(&json);
        assert_eq!(entry_of("k", &body).unwrap(), entry);
        assert_eq!(entry_of("k", &json).unwrap(), entry, "one without a digest");
        for bit in 0..body.len() * 8 {
            let mut flipped = body.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = entry_of("k", &flipped) {
                assert_eq!(read, entry, "bit {bit}");
            }
        }
    }
}
