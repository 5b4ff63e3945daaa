//! The model of an object store with faults, and of the client in front of it.
//!
//! Create-if-absent is Muster's own ([`settle`]): the model gives it single requests that go wrong. Reads resume where a
//! broken answer ended and are tried again for a while, as the real client does.

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use muster_repo::create::{Attempt, ConditionalStore, settle};
use muster_repo::{Creation, ObjectEntry, Objects, RepoError, RepoErrorKind};

use crate::every::Ambiguity;
use crate::mutation::Mutation;
use crate::tamper;
use crate::world::{Stored, View, World, lock};

/// Tries of one request by the client; with the pauses between them, ten seconds, as the real client has patience.
const TRIES: u32 = 8;

/// Entries younger than this may be missing from a stale listing.
const STALE_FOR: Duration = Duration::from_secs(2);

/// The object store as one process sees it.
#[derive(Clone, Debug)]
pub(crate) struct ModelObjects {
    view: View,
}

/// What one request met.
enum Met {
    Answer,
    /// Nothing was done.
    Nothing(&'static str),
    /// It was done, and nobody says so.
    Silence(&'static str),
    Full,
}

fn unavailable(doing: impl fmt::Display, why: &str) -> RepoError {
    RepoError::new(RepoErrorKind::Unavailable, format!("{doing}: {why}"), "run the command again")
}

fn full(key: &str) -> RepoError {
    RepoError::new(RepoErrorKind::Full, format!("writing `{key}`: no space left"), "free space")
}

impl ModelObjects {
    pub(crate) fn new(view: View) -> Self {
        Self { view }
    }

    fn world(&self) -> &World {
        &self.view.world
    }

    /// Draws what becomes of a request; `writes`: it changes something.
    fn meet(&self, writes: bool) -> Met {
        let (world, faults) = (self.world(), &self.world().faults.store);
        if world.is_within(&faults.away) {
            return Met::Nothing("nobody answers");
        }
        if world.strikes(faults.throttled) {
            return Met::Nothing("503 SlowDown");
        }
        if world.strikes(faults.lost_request) {
            return Met::Nothing("the connection was reset");
        }
        if writes && world.is_within(&faults.full) {
            return Met::Full;
        }
        if writes && world.strikes(faults.lost_answer) {
            return Met::Silence("500 after it was done");
        }
        Met::Answer
    }

    /// One request: there, the effect, and back.
    async fn request<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        writes: bool,
        effect: impl FnOnce(&World) -> T + Send + 'static,
    ) -> Result<Result<T, &'static str>, RepoError> {
        let met = self.meet(writes);
        let latency = self.world().faults.store.latency;
        let (there, back) = (self.world().way(latency), self.world().way(latency));
        let (view, key) = (self.view.clone(), key.to_owned());
        let work = async move {
            tokio::time::sleep(there).await;
            let answer = match met {
                Met::Nothing(why) => Ok(Err(why)),
                Met::Full => Err(full(&key)),
                Met::Answer => Ok(Ok(effect(&view.world))),
                Met::Silence(why) => {
                    effect(&view.world);
                    Ok(Err(why))
                }
            };
            let told = match &answer {
                Ok(Ok(_)) => "done",
                Ok(Err(why)) => why,
                Err(_) => "full",
            };
            view.note(&format!("{verb} {key}: {told}"));
            tokio::time::sleep(back).await;
            answer
        };
        self.view.ask(work).await
    }

    /// A request that is tried again for a while.
    async fn insist<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        writes: bool,
        effect: impl Fn(&World) -> T + Clone + Send + 'static,
    ) -> Result<T, RepoError> {
        let mut pause = Duration::from_millis(50);
        for attempt in 1.. {
            match self.request(verb, key, writes, effect.clone()).await? {
                Ok(answer) => return Ok(answer),
                Err(why) if attempt == TRIES => return Err(unavailable(format!("{verb} `{key}`"), why)),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        Err(unavailable(verb, "no tries are left"))
    }

    /// What arrives of a body before it breaks off, and whether a bit is another.
    fn through_the_air(&self, key: &str, part: &Bytes) -> Bytes {
        let (world, faults) = (self.world(), &self.world().faults.store);
        let some = |world: &World| {
            let most = part.len().saturating_sub(1) as u64;
            usize::try_from(world.dice().between(0, most)).unwrap_or(0)
        };
        if part.is_empty() {
            return part.clone();
        }
        if world.strikes(faults.reset) || world.strikes(faults.short) {
            return part.slice(..some(world));
        }
        if is_data(key) && world.strikes(faults.flipped) {
            let mut bytes = part.to_vec();
            let place = some(world);
            bytes[place] ^= 1 << world.dice().between(0, 7);
            self.view.note(&format!("a bit of {key} flips"));
            return bytes.into();
        }
        part.clone()
    }

    /// Reads from `offset`, `want` bytes or all, in as many requests as it takes.
    async fn read(&self, key: &str, offset: u64, want: Option<u64>) -> Result<Option<Bytes>, RepoError> {
        let mut body = BytesMut::new();
        for _ in 0..TRIES {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(body.len());
            let name = key.to_owned();
            let look = move |world: &World| {
                let objects = world.objects();
                let whole = &objects.get(&name)?.body;
                let end =
                    want.map_or(whole.len(), |want| usize::try_from(offset + want).unwrap_or(usize::MAX));
                Some((end <= whole.len()).then(|| whole.slice(from.min(end)..end)))
            };
            let Some(found) = self.insist("get", key, false, look).await? else { return Ok(None) };
            let Some(part) = found else {
                return Err(RepoError::damaged(key, "the object ends before the end of this range"));
            };
            let came = self.through_the_air(key, &part);
            body.extend_from_slice(&came);
            if came.len() == part.len() {
                return Ok(Some(body.freeze()));
            }
        }
        Err(unavailable(format!("reading `{key}`"), "every answer broke off"))
    }

    async fn write(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        let (name, who) = (key.to_owned(), self.view.life.name().to_owned());
        let effect = move |world: &World| store(world, &who, &name, &body);
        self.insist("put", key, true, effect).await
    }
}

/// Data is checked by digests of its chunks.
fn is_data(key: &str) -> bool {
    key.ends_with(".zst") && !key.ends_with(".json.zst")
}

fn store(world: &World, who: &str, key: &str, body: &Bytes) {
    let created = world.elapsed();
    world.objects().insert(key.to_owned(), Stored { body: body.clone(), created });
    world.audit().stored(who, key, body);
}

struct Slot<'a> {
    objects: &'a ModelObjects,
    key: &'a str,
    /// What the first try meets.
    first: Mutex<Option<Ambiguity>>,
}

impl<'a> Slot<'a> {
    fn new(objects: &'a ModelObjects, key: &'a str) -> Self {
        let first = if tamper::is_journal(key) { objects.world().journal_write() } else { None };
        Self { objects, key, first: Mutex::new(first) }
    }

    /// A try with an ambiguous answer.
    async fn try_ambiguous(&self, ambiguity: Ambiguity, body: Bytes) -> Attempt {
        let view = self.objects.view.clone();
        let (key, who) = (self.key.to_owned(), view.life.name().to_owned());
        let lands = move |world: &World| {
            if !world.objects().contains_key(&key) {
                store(world, &who, &key, &body);
            }
        };
        match ambiguity {
            Ambiguity::LandedAndFailed => lands(&view.world),
            Ambiguity::Lost => {}
            Ambiguity::MeetsItself => {
                tokio::spawn(async move {
                    // Behind the look at it, before it is sent again.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    lands(&view.world);
                });
            }
        }
        Attempt::Unknown(unavailable(format!("creating `{}`", self.key), "500"))
    }

    /// Whether the slot is written over though it is taken.
    fn overwrites(&self) -> bool {
        let world = self.objects.world();
        (world.is_mutated(Mutation::SlotOverwritten) && tamper::is_journal(self.key))
            || (world.is_mutated(Mutation::JobClaimedTwice) && self.key.starts_with("jobs/"))
    }
}

impl ConditionalStore for Slot<'_> {
    async fn try_create(&self, body: Bytes) -> Result<Attempt, RepoError> {
        let world = self.objects.world();
        let unknown = |why: &str| Attempt::Unknown(unavailable(format!("creating `{}`", self.key), why));
        if world.strikes(world.faults.store.conflict) {
            return Ok(Attempt::Refused);
        }
        let ambiguity = lock(&self.first).take();
        if let Some(ambiguity) = ambiguity {
            return Ok(self.try_ambiguous(ambiguity, body).await);
        }
        let (key, who) = (self.key.to_owned(), self.objects.view.life.name().to_owned());
        let overwrites = self.overwrites();
        let effect = move |world: &World| {
            let is_free = overwrites || !world.objects().contains_key(&key);
            if is_free {
                store(world, &who, &key, &body);
            }
            is_free
        };
        Ok(match self.objects.request("create", self.key, true, effect).await? {
            Ok(true) => Attempt::Done,
            Ok(false) => Attempt::Refused,
            Err(why) => unknown(why),
        })
    }

    async fn read_back(&self) -> Result<Option<Bytes>, RepoError> {
        self.objects.get(self.key).await
    }
}

#[async_trait]
impl Objects for ModelObjects {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        let body = tamper::entry(self.world().oddities.mutation, key, body);
        if self.world().is_mutated(Mutation::EffectBeforeRecord) && tamper::is_journal(key) {
            let (late, key) = (self.clone(), key.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                settle(&Slot::new(&late, &key), &key, body).await
            });
            return Ok(Creation::Mine);
        }
        settle(&Slot::new(self, key), key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        self.write(key, body).await
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        // At once: files of a run are small, and virtual time stands still meanwhile.
        let body = std::fs::read(path).map_err(|error| {
            RepoError::new(RepoErrorKind::Local, format!("`{}`: {error}", path.display()), "look at it")
        })?;
        self.write(key, body.into()).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        self.read(key, 0, None).await
    }

    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        self.read(key, offset, Some(bytes)).await?.ok_or_else(|| RepoError::not_found(key))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        let name = key.to_owned();
        let look = move |world: &World| world.objects().get(&name).map(|stored| stored.body.len() as u64);
        self.insist("size", key, false, look).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        let stale = tamper::is_journal(prefix) && self.world().strikes(self.world().faults.store.stale_list);
        let hidden = self.view.life.name() == "prune"
            && self.world().is_mutated(Mutation::PruneForgetsRuns)
            && prefix.starts_with("plans/");
        let (from, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        let look = move |world: &World| {
            let now = world.elapsed();
            let is_seen = |stored: &Stored| !hidden && (!stale || stored.created + STALE_FOR <= now);
            let objects = world.objects();
            let found = objects.range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded));
            let found = found.take_while(|(key, _)| key.starts_with(&from));
            let found = found.filter(|(key, stored)| **key > after && is_seen(stored));
            found
                .map(|(key, stored)| ObjectEntry { key: key.clone(), bytes: stored.body.len() as u64 })
                .collect()
        };
        self.insist("list", prefix, false, look).await
    }

    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        let name = key.to_owned();
        let effect = move |world: &World| {
            world.objects().remove(&name);
            world.audit().deleted(&name);
        };
        self.insist("delete", key, true, effect).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        let hidden = self.view.life.name() == "prune"
            && self.world().is_mutated(Mutation::PruneForgetsRuns)
            && prefix == "runs/";
        let from = prefix.to_owned();
        let look = move |world: &World| {
            let mut names: Vec<String> = Vec::new();
            for key in world
                .objects()
                .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
                .map(|(key, _)| key)
            {
                let Some(inner) = key.strip_prefix(&from) else { break };
                if let Some((name, _)) = inner.split_once('/')
                    && names.last().is_none_or(|last| last != name)
                    && !hidden
                {
                    names.push(name.to_owned());
                }
            }
            names
        };
        self.insist("folders", prefix, false, look).await
    }
}
