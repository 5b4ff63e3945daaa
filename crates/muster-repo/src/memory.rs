//! An object store in memory, for tests and the simulator, and a wrapper that injects faults.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::create::{Attempt, ConditionalStore, settle};
use crate::error::{RepoError, RepoErrorKind};
use crate::objects::{Creation, ObjectEntry, Objects};

/// How one conditional write goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFault {
    /// Not written, and no answer.
    LostRequest,
    /// Written, and no answer.
    LostAnswer,
    /// Not written: another conditional write is said to be under way.
    Conflict,
}

/// Requests answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Whole reads.
    pub gets: u64,
    /// Ranged reads.
    pub ranges: u64,
    /// Bytes of ranged reads.
    pub range_bytes: u64,
    /// Writes and conditional writes.
    pub writes: u64,
    /// Listings.
    pub lists: u64,
    /// Removals.
    pub deletes: u64,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    requests: Requests,
    attempt_faults: VecDeque<AttemptFault>,
}

/// Objects in memory.
#[derive(Default)]
pub struct MemoryObjects {
    state: Mutex<State>,
}

impl MemoryObjects {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test leaves the map whole: every change of it is one insertion.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All keys, ascending.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Requests answered so far.
    pub fn requests(&self) -> Requests {
        self.state().requests
    }

    /// The next conditional writes go wrong like this, one each.
    pub fn fail_creates(&self, faults: impl IntoIterator<Item = AttemptFault>) {
        self.state().attempt_faults.extend(faults);
    }

    /// Changes the bytes of an object behind Muster's back; `false` if it is absent.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        let Some(body) = state.objects.get_mut(key) else { return false };
        let mut bytes = body.to_vec();
        change(&mut bytes);
        *body = bytes.into();
        true
    }

    /// Removes an object behind Muster's back; `false` if it was absent.
    pub fn remove(&self, key: &str) -> bool {
        self.state().objects.remove(key).is_some()
    }
}

struct Slot<'a> {
    objects: &'a MemoryObjects,
    key: &'a str,
}

impl ConditionalStore for Slot<'_> {
    async fn try_create(&self, body: Bytes) -> Result<Attempt, RepoError> {
        let mut state = self.objects.state();
        state.requests.writes += 1;
        let lost = || Attempt::Unknown(unavailable("creating", self.key));
        let fault = state.attempt_faults.pop_front();
        match fault {
            Some(AttemptFault::LostRequest) => return Ok(lost()),
            Some(AttemptFault::Conflict) => return Ok(Attempt::Refused),
            Some(AttemptFault::LostAnswer) | None => {}
        }
        let written = !state.objects.contains_key(self.key);
        if written {
            state.objects.insert(self.key.to_owned(), body);
        }
        Ok(match (fault, written) {
            (Some(_), _) => lost(),
            (None, true) => Attempt::Done,
            (None, false) => Attempt::Refused,
        })
    }

    async fn read_back(&self) -> Result<Option<Bytes>, RepoError> {
        self.objects.get(self.key).await
    }
}

fn unavailable(verb: &str, key: &str) -> RepoError {
    RepoError::new(RepoErrorKind::Unavailable, format!("{verb} `{key}`: a fault on purpose"), "none needed")
}

#[async_trait]
impl Objects for MemoryObjects {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        settle(&Slot { objects: self, key }, key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        let mut state = self.state();
        state.requests.writes += 1;
        state.objects.insert(key.to_owned(), body);
        Ok(())
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        let body = tokio::fs::read(path).await.map_err(|error| RepoError::local(path, "read", &error))?;
        self.put(key, body.into()).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        let mut state = self.state();
        state.requests.gets += 1;
        Ok(state.objects.get(key).cloned())
    }

    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        let mut state = self.state();
        state.requests.ranges += 1;
        state.requests.range_bytes += bytes;
        let body = state.objects.get(key).ok_or_else(|| RepoError::not_found(key))?;
        let end = offset.checked_add(bytes).filter(|&end| end <= body.len() as u64);
        match (usize::try_from(offset), end.and_then(|end| usize::try_from(end).ok())) {
            (Ok(start), Some(end)) => Ok(body.slice(start..end)),
            _ => Err(RepoError::damaged_range(
                key,
                offset,
                bytes,
                "the object ends before the end of this range",
            )),
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        Ok(self.state().objects.get(key).map(|body| body.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        let mut state = self.state();
        state.requests.lists += 1;
        let from = after.map_or(Bound::Included(prefix), |after| match after < prefix {
            true => Bound::Included(prefix),
            false => Bound::Excluded(after),
        });
        let found = state.objects.range::<str, _>((from, Bound::Unbounded));
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, body)| ObjectEntry { key: key.clone(), bytes: body.len() as u64 }).collect())
    }

    async fn list_between(
        &self,
        prefix: &str,
        after: &str,
        upto: &str,
    ) -> Result<Vec<ObjectEntry>, RepoError> {
        let mut state = self.state();
        state.requests.lists += 1;
        let range = (Bound::Excluded(after.max(prefix)), Bound::Included(upto));
        if after >= upto {
            return Ok(Vec::new());
        }
        let found = state.objects.range::<str, _>(range).filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, body)| ObjectEntry { key: key.clone(), bytes: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        let mut state = self.state();
        state.requests.deletes += 1;
        state.objects.remove(key);
        Ok(())
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        let mut state = self.state();
        state.requests.lists += 1;
        let mut names: Vec<String> = Vec::new();
        let mut from = prefix.to_owned();
        // From folder to folder: a folder may hold a million keys.
        while let Some((key, _)) =
            state.objects.range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded)).next()
        {
            let Some(inner) = key.strip_prefix(prefix) else { break };
            match inner.split_once('/') {
                Some((name, _)) => {
                    // `0` is the character behind `/`.
                    from = format!("{prefix}{name}0");
                    names.push(name.to_owned());
                }
                None => from = format!("{key}\0"),
            }
        }
        Ok(names)
    }
}

/// A request, as a fault rule sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method of [`Objects`].
    pub method: &'static str,
    /// The key or prefix.
    pub key: &'a str,
}

/// What a fault rule does to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Before(RepoError),
    /// It takes effect, and fails nevertheless.
    After(RepoError),
}

type Rule = dyn Fn(Request<'_>) -> Option<Fault> + Send + Sync;

/// Objects that fail as a rule says.
pub struct Faulty {
    inner: Arc<dyn Objects>,
    rule: Box<Rule>,
}

impl Faulty {
    /// Wraps `inner`; `rule` is asked before each request.
    pub fn new(
        inner: Arc<dyn Objects>,
        rule: impl Fn(Request<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, rule: Box::new(rule) }
    }

    async fn judge<T>(
        &self,
        method: &'static str,
        key: &str,
        request: impl Future<Output = Result<T, RepoError>> + Send,
    ) -> Result<T, RepoError> {
        match (self.rule)(Request { method, key }) {
            None => request.await,
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => {
                request.await?;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Objects for Faulty {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        self.judge("create", key, self.inner.create(key, body)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        self.judge("put", key, self.inner.put(key, body)).await
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        self.judge("put_file", key, self.inner.put_file(key, path)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        self.judge("get", key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        self.judge("get_range", key, self.inner.get_range(key, offset, bytes)).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        self.judge("size", key, self.inner.size(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        self.judge("list", prefix, self.inner.list(prefix, after)).await
    }

    async fn list_between(
        &self,
        prefix: &str,
        after: &str,
        upto: &str,
    ) -> Result<Vec<ObjectEntry>, RepoError> {
        self.judge("list_between", prefix, self.inner.list_between(prefix, after, upto)).await
    }

    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        self.judge("delete", key, self.inner.delete(key)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        self.judge("list_folders", prefix, self.inner.list_folders(prefix)).await
    }
}
