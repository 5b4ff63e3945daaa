//! What becomes of each object of the repository.

use std::collections::{BTreeMap, BTreeSet};

use muster_plan::retention::{self, Needed};
use muster_repo::catalog::{self, CatalogQuery, Covering, Sites};
use muster_repo::{ObjectEntry, RepoErrorKind, Repository, keys, topologies};
use muster_types::catalog::{Catalog, IncarnationHistory};
use muster_types::retention::{Floor, Retention};
use muster_types::{Incarnation, PlanId, ShardName, Timestamp};

use super::PruneError;
use super::needs::{self, Claims};

/// Slots of a log that always stay: capture finds its head and the one before it, or is one segment behind.
const SLOTS_KEPT: u64 = 16;

/// What becomes of an object, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep(String),
    /// Nothing needs it.
    Go(&'static str),
}

/// The fates of all objects, as of one moment.
#[derive(Debug)]
pub(super) struct Judgement {
    entries: Vec<(ObjectEntry, Fate)>,
    /// Where the log of each history begins that is not needed whole.
    pub(super) floors: Vec<Floor>,
    pub(super) left_alone: Vec<String>,
    pub(super) expired_plans: Vec<PlanId>,
}

/// One history, with what stands for its log.
struct History<'a> {
    history: &'a IncarnationHistory,
    needed: &'a Needed,
    covering: Vec<Covering>,
    /// Folder of its snapshots, log and compacted segments.
    folder: String,
    /// The last segment.
    head: u64,
    /// The first of the slots that stay.
    slots_from: u64,
    /// The first segment that proofs of open runs read from the chain.
    chain_from: u64,
    /// Data that indexes of the chain name.
    data: BTreeSet<&'a str>,
}

impl Judgement {
    pub(super) async fn read(
        repository: &Repository,
        policy: &Retention,
        now: Timestamp,
    ) -> Result<Self, PruneError> {
        // Listed first: what a later catalog does not know of was left by something that ended.
        let listed = repository.objects().list(keys::SHARDS, None).await?;
        let claims = needs::read(repository, now).await?;
        let sites = claims.holds.iter().filter_map(|hold| hold.site.clone()).collect();
        let query = CatalogQuery { sites: Sites::Some(sites), shards: None };
        let survey = catalog::survey(repository, &query, now).await?;
        let damaged: Vec<&str> = survey.damages.iter().filter_map(key_of).collect();
        let needed = retention::needs(&survey.catalog, policy, &claims.holds, now);
        let mut judgement = Self {
            entries: Vec::with_capacity(listed.len()),
            floors: Vec::new(),
            left_alone: Vec::new(),
            expired_plans: claims.expired_plans.clone(),
        };
        let mut by_shard: BTreeMap<ShardName, Vec<ObjectEntry>> = BTreeMap::new();
        for entry in listed {
            match shard_of(&entry.key) {
                Some(shard) => by_shard.entry(shard).or_default().push(entry),
                None => judgement.entries.push((entry, Fate::Keep("not Muster's".to_owned()))),
            }
        }
        for (shard, entries) in by_shard {
            let histories =
                Histories::read(repository, &survey.catalog, &needed, (&shard, &claims), &entries).await?;
            judgement.shard(&shard, entries, &histories, (&damaged, &claims));
        }
        judgement.topologies(repository, (policy, now), &claims).await?;
        Ok(judgement)
    }

    /// Versions of the topology: the newest stays, and each that was it at a promised moment, or that a plan names.
    async fn topologies(
        &mut self,
        repository: &Repository,
        (policy, now): (&Retention, Timestamp),
        claims: &Claims,
    ) -> Result<(), PruneError> {
        let listed = repository.objects().list(keys::TOPOLOGIES, None).await?;
        let sizes: BTreeMap<&str, u64> =
            listed.iter().map(|entry| (entry.key.as_str(), entry.bytes)).collect();
        let versions = topologies::all(repository).await?;
        let followers = versions.iter().skip(1).map(|follower| Some(follower.stored_at)).chain([None]);
        for (version, until) in versions.iter().zip(followers) {
            let key = keys::topology(version.version);
            // One that is newer than the listing counts the next time.
            let Some(bytes) = sizes.get(key.as_str()).copied() else { continue };
            let fate = match until {
                None => Fate::Keep("the newest topology".to_owned()),
                Some(_) if claims.topologies.contains(&version.digest) => {
                    Fate::Keep("the topology of a saved plan or an open run".to_owned())
                }
                Some(until) if until >= policy.daily_since(now) => {
                    Fate::Keep("the topology at a promised moment".to_owned())
                }
                Some(_) => Fate::Go("a topology of no promised moment"),
            };
            self.entries.push((ObjectEntry { key, bytes }, fate));
        }
        Ok(())
    }

    fn shard(
        &mut self,
        shard: &ShardName,
        entries: Vec<ObjectEntry>,
        histories: &Histories<'_>,
        (damaged, claims): (&[&str], &Claims),
    ) {
        let prefix = format!("{}{shard}/", keys::SHARDS);
        let harm =
            damaged.iter().find(|key| key.starts_with(&prefix)).map(|key| format!("`{key}` is damaged"));
        let harm = harm.or_else(|| histories.harm(&entries));
        if let Some(harm) = harm {
            self.left_alone.push(format!("shard {shard}: {harm}; mend it or remove it, then prune again"));
            let keep = |entry| (entry, Fate::Keep("the shard is left alone".to_owned()));
            self.entries.extend(entries.into_iter().map(keep));
            return;
        }
        for history in &histories.list {
            let first = history.needed.first_segment().unwrap_or(history.head + 1).min(history.slots_from);
            let floor = Floor { shard: shard.clone(), incarnation: history.incarnation(), first };
            if first > 1 {
                self.floors.push(floor);
            }
        }
        for entry in entries {
            let fate = match claims.objects.get(&entry.key) {
                Some(who) => Fate::Keep(who.clone()),
                None => histories.fate(&entry.key),
            };
            self.entries.push((entry, fate));
        }
    }

    /// Key, bytes and reason of what may go.
    pub(super) fn unneeded(&self) -> impl Iterator<Item = (&String, u64, &'static str)> {
        self.entries.iter().filter_map(|(entry, fate)| match fate {
            Fate::Go(reason) => Some((&entry.key, entry.bytes, *reason)),
            Fate::Keep(_) => None,
        })
    }

    /// Bytes and reason of what stays.
    pub(super) fn kept(&self) -> impl Iterator<Item = (u64, &str)> {
        self.entries.iter().filter_map(|(entry, fate)| match fate {
            Fate::Keep(reason) => Some((entry.bytes, reason.as_str())),
            Fate::Go(_) => None,
        })
    }

    /// The floors of `condemned` that hold still: none lies above what is needed now.
    pub(super) fn floors_above<'a>(&self, condemned: impl Iterator<Item = &'a Floor>) -> Vec<Floor> {
        let mut floors: BTreeMap<(ShardName, Incarnation), u64> = BTreeMap::new();
        for floor in condemned {
            let now = self
                .floors
                .iter()
                .find(|now| now.shard == floor.shard && now.incarnation == floor.incarnation);
            let Some(now) = now else { continue };
            let first = floors.entry((floor.shard.clone(), floor.incarnation.clone())).or_default();
            *first = (*first).max(now.first.min(floor.first));
        }
        let floor = |((shard, incarnation), first)| Floor { shard, incarnation, first };
        floors.into_iter().map(floor).collect()
    }

    /// A number that tells lists of one moment apart.
    pub(super) fn salt(&self) -> u32 {
        let keys = self.unneeded().flat_map(|(key, _, _)| key.bytes());
        keys.fold(2_166_136_261, |salt: u32, byte| (salt ^ u32::from(byte)).wrapping_mul(16_777_619))
    }
}

fn key_of(error: &muster_repo::RepoError) -> Option<&str> {
    match &error.kind {
        RepoErrorKind::Damaged { key, .. } | RepoErrorKind::NotFound { key } => Some(key),
        _ => None,
    }
}

fn shard_of(key: &str) -> Option<ShardName> {
    let (shard, _) = key.strip_prefix(keys::SHARDS)?.split_once('/')?;
    ShardName::new(shard).ok()
}

/// Whether an object is a document that names others: it goes before them.
pub(super) fn names_others(key: &str) -> bool {
    let page = key.rsplit('/').next().is_some_and(|name| name.starts_with("page-"));
    key.ends_with(".json.zst") && !page
}

/// The histories of one shard.
struct Histories<'a> {
    prefix: String,
    list: Vec<History<'a>>,
}

impl<'a> Histories<'a> {
    async fn read(
        repository: &Repository,
        catalog: &'a Catalog,
        needs: &'a retention::Needs,
        (shard, claims): (&ShardName, &Claims),
        entries: &[ObjectEntry],
    ) -> Result<Self, PruneError> {
        let prefix = format!("{}{shard}/", keys::SHARDS);
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut list = Vec::new();
        let histories = catalog.shards.get(shard).map_or(&[][..], |shard| &shard.incarnations);
        let needed = needs.get(shard).map_or(&[][..], Vec::as_slice);
        let present = histories.len().saturating_sub(1);
        for (number, (history, needed)) in histories.iter().zip(needed).enumerate() {
            let head = history.segments.last().map_or(0, |segment| segment.sequence);
            let behind = |since: Timestamp| {
                history
                    .segments
                    .iter()
                    .find(|segment| segment.boundary.at >= since)
                    .map(|segment| segment.sequence)
            };
            let mut covering = catalog::covering(repository, shard, &history.incarnation).await?;
            // One that is newer than the listing counts the next time.
            covering.retain(|found| listed.contains(found.root.as_str()));
            list.push(History {
                history,
                needed,
                covering,
                folder: format!("{prefix}{}/", history.incarnation),
                head,
                // Nobody writes to a history that has ended.
                slots_from: if number == present {
                    (head + 1).saturating_sub(SLOTS_KEPT).max(1)
                } else {
                    head + 1
                },
                chain_from: claims.chain_since.and_then(behind).unwrap_or(head + 1),
                data: history
                    .segments
                    .iter()
                    .filter_map(|segment| Some(segment.data.as_ref()?.key.as_str()))
                    .collect(),
            });
        }
        Ok(Self { prefix, list })
    }

    /// Why the shard must be left alone.
    fn harm(&self, entries: &[ObjectEntry]) -> Option<String> {
        let sizes: BTreeMap<&str, u64> =
            entries.iter().map(|entry| (entry.key.as_str(), entry.bytes)).collect();
        for history in &self.list {
            let hole = history.history.segments.windows(2).find_map(|pair| {
                let missing = pair[0].sequence + 1;
                // What is left of a sweep that ended early lies below what is needed.
                let needed = history.needed.needs_any(missing, pair[1].sequence - 1).is_some();
                (missing != pair[1].sequence && needed).then_some(missing)
            });
            if let Some(missing) = hole {
                return Some(format!("segment {missing} of {} is missing", history.folder));
            }
            let wrong = |object: &&muster_types::snapshot::ObjectInfo| {
                sizes.get(object.key.as_str()) != Some(&object.bytes)
            };
            let needed = history
                .covering
                .iter()
                .filter(|found| history.needed.needs_any(found.first, found.last).is_some());
            if let Some(object) = needed.flat_map(|found| &found.objects).find(wrong) {
                return Some(format!("`{}` is missing, or has another size", object.key));
            }
        }
        None
    }

    fn fate(&self, key: &str) -> Fate {
        let history =
            self.list.iter().find_map(|history| Some((history, key.strip_prefix(&history.folder)?)));
        match history {
            Some((history, name)) => history.fate(key, name),
            None if key.starts_with(&format!("{}incarnations/", self.prefix)) => {
                Fate::Keep("the beginning of a history".to_owned())
            }
            None => Fate::Keep("not Muster's".to_owned()),
        }
    }
}

impl History<'_> {
    fn incarnation(&self) -> Incarnation {
        self.history.incarnation.clone()
    }

    /// What becomes of the object `name` of this history's folder.
    fn fate(&self, key: &str, name: &str) -> Fate {
        match name.split_once('/') {
            Some(("snapshots", rest)) => self.snapshot(rest),
            Some(("log", rest)) => self.segment(key, rest),
            Some(("compacted", rest)) => self.compacted(key, rest),
            Some(("floors", _)) => Fate::Keep("the floor of a log".to_owned()),
            _ => Fate::Keep("not Muster's".to_owned()),
        }
    }

    fn snapshot(&self, rest: &str) -> Fate {
        let Some((id, _)) = rest.split_once('/') else { return Fate::Keep("not Muster's".to_owned()) };
        let number = self.history.snapshots.iter().position(|snapshot| snapshot.snapshot.as_str() == id);
        let Some(number) = number else { return Fate::Go("left by a snapshot that did not end") };
        match self.needed.snapshots.get(&number).and_then(|reasons| reasons.first()) {
            Some(reason) => Fate::Keep(reason.to_string()),
            None => Fate::Go("no promised moment needs this snapshot"),
        }
    }

    fn segment(&self, key: &str, rest: &str) -> Fate {
        let Some(sequence) = rest.get(..20).and_then(|digits| digits.parse::<u64>().ok()) else {
            return Fate::Keep("not Muster's".to_owned());
        };
        if sequence > self.head {
            return Fate::Keep("under way".to_owned());
        }
        if sequence >= self.slots_from {
            return Fate::Keep("the last slots of a log".to_owned());
        }
        if sequence >= self.chain_from {
            return Fate::Keep("the proofs of an open run".to_owned());
        }
        let Some(reason) = self.needed.needs_any(sequence, sequence) else {
            return Fate::Go("no promised moment needs this part of the log");
        };
        if self.covering.iter().any(|found| found.first <= sequence && sequence <= found.last) {
            return Fate::Go("a compacted segment stands for it");
        }
        let is_index = rest.get(20..) == Some(".json.zst");
        if is_index || self.data.contains(key) {
            return Fate::Keep(reason.to_string());
        }
        Fate::Go("left by a writer that lost its slot")
    }

    fn compacted(&self, key: &str, rest: &str) -> Fate {
        let of =
            |found: &&Covering| found.root == key || found.objects.iter().any(|object| object.key == key);
        match self.covering.iter().find(of) {
            Some(found) => match self.needed.needs_any(found.first, found.last) {
                Some(reason) => Fate::Keep(reason.to_string()),
                None => Fate::Go("no promised moment needs this part of the log"),
            },
            None if rest.starts_with("data/") => Fate::Go("data of no compacted segment that counts"),
            None => Fate::Go("a compacted segment of a higher level stands for it"),
        }
    }
}
