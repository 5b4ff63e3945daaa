//! Steps of a group that run together.
//!
//! # Invariants
//! - Every step has an answer, and it is its own: one store that cannot be read, verified or published costs no other.

use std::collections::VecDeque;
use std::sync::Arc;

use muster_repo::rows::{self, TableStream};
use muster_types::ShardName;
use muster_types::journal::{Outcome, TableDigest};
use tokio::sync::mpsc;

use super::context::{Context, StepError, StepResult};
use super::job::{self, Job, TableDigests};
use super::stage::{BATCHES_IN_FLIGHT, Read};
use crate::driver::{DriverError, ErrorClass, GroupRows, PublishWork, RowBatch, StoreDriver, StoreWork};
use crate::events::Work;

/// Tables that are read ahead of the one that is being loaded: they are small, and each takes a thread a moment to begin.
const TABLES_AHEAD: usize = 2;

/// A step's number in the plan, and what became of it.
type Numbered = (u32, StepResult);

/// Does jobs that were started together; one after the other where they have nothing in common.
pub(super) async fn run(context: &Context, jobs: Vec<(u32, Result<Job, StepError>)>) -> Vec<Numbered> {
    let mut ended = Vec::with_capacity(jobs.len());
    let (mut steps, mut sound) = (Vec::new(), Vec::new());
    for (step, job) in jobs {
        match job {
            Ok(job) => {
                steps.push(step);
                sound.push(job);
            }
            Err(error) => ended.push((step, Err(error))),
        }
    }
    let results = match Group::of(context, &sound) {
        Some(group) => group.run(context, sound).await,
        None => {
            let mut results = Vec::with_capacity(sound.len());
            for job in sound {
                results.push(job.run(context).await);
            }
            results
        }
    };
    ended.extend(steps.into_iter().zip(results));
    ended
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Stage,
    Verify,
    Publish,
}

/// What jobs of one group have in common, and the store of each.
struct Group<'a> {
    verb: Verb,
    shard: &'a ShardName,
    driver: &'a Arc<dyn StoreDriver>,
    works: Vec<StoreWork>,
}

impl<'a> Group<'a> {
    /// None where they are not of one verb and shard, and for a single one.
    fn of(context: &'a Context, jobs: &[Job]) -> Option<Self> {
        let of_one = |job: &Job| {
            let (verb, store) = match job {
                Job::Stage(store) => (Verb::Stage, store),
                Job::Verify { store, .. } => (Verb::Verify, store),
                Job::Publish { store, .. } => (Verb::Publish, store),
                _ => return None,
            };
            Some(((verb, &context.store(store).ok()?.shard), context.work(store).ok()?))
        };
        let all: Vec<_> = jobs.iter().map(of_one).collect::<Option<_>>()?;
        let (verb, shard) = all.first()?.0;
        if all.len() < 2 || all.iter().any(|(common, _)| *common != (verb, shard)) {
            return None;
        }
        let works = all.into_iter().map(|(_, work)| work).collect();
        Some(Self { verb, shard, driver: context.driver(shard).ok()?, works })
    }

    async fn run(self, context: &Context, jobs: Vec<Job>) -> Vec<StepResult> {
        match self.verb {
            Verb::Stage => self.stage(context).await,
            Verb::Verify => self.verify(context, jobs).await,
            Verb::Publish => self.publish(jobs).await,
        }
    }

    /// What was staged is compared for all at once; a store of which it is not what it should be is looked at alone. What
    /// another attempt may mend is not waited for once a store.
    async fn verify(self, context: &Context, jobs: Vec<Job>) -> Vec<StepResult> {
        let found = self.found(&jobs).await;
        let mut results: Vec<StepResult> = Vec::with_capacity(jobs.len());
        for ((job, found), work) in jobs.into_iter().zip(found).zip(&self.works) {
            let whole = match (&job, &found) {
                (Job::Verify { staged, .. }, Ok(found)) => found == staged,
                _ => false,
            };
            // Where nobody is there, it is not looked for once a store.
            let away = match results.last() {
                Some(Err(error)) if error.class == ErrorClass::Unavailable => Some(error.clone()),
                _ => None,
            };
            results.push(match (away, found) {
                (Some(away), _) => Err(away),
                (None, Ok(found)) if whole => job::verified(&**self.driver, work, &found).await,
                (None, Err(error)) if error.class != ErrorClass::StagingLost => Err(error.into()),
                (None, _) => job.run(context).await,
            });
        }
        results
    }

    /// What is staged of each: what was given, where the driver says so of all.
    async fn found(&self, jobs: &[Job]) -> Vec<Result<TableDigests, DriverError>> {
        let own = |job: &Job| match job {
            Job::Verify { staged, inherited: false, .. } => Some(staged.clone()),
            _ => None,
        };
        let Some(given) = jobs.iter().map(own).collect::<Option<Vec<_>>>() else {
            return self.driver.digest_staged_group(&self.works).await;
        };
        let known = self.driver.is_as_staged_group(&self.works).await;
        if known.iter().all(|known| matches!(known, Ok(true))) {
            return given.into_iter().map(Ok).collect();
        }
        let away = |error: &DriverError| error.class == ErrorClass::Unavailable;
        if known.iter().all(|known| known.as_ref().is_err_and(away)) {
            return known.into_iter().map(|known| known.map(|_| TableDigests::new())).collect();
        }
        self.driver.digest_staged_group(&self.works).await
    }

    /// A store whose staging is lost is staged again by its next attempt, which is one alone.
    async fn publish(self, jobs: Vec<Job>) -> Vec<StepResult> {
        let member = |(work, job): (StoreWork, Job)| match job {
            Job::Publish { staged, migrated, .. } => PublishWork {
                work: work.migrated(migrated.as_deref()),
                expected: job::expected(&staged, migrated.as_deref()),
            },
            _ => PublishWork { work, expected: TableDigests::new() },
        };
        let members: Vec<PublishWork> = self.works.into_iter().zip(jobs).map(member).collect();
        let published = self.driver.publish_group(&members).await;
        published.into_iter().map(|published| Ok(Outcome::Published(published?))).collect()
    }

    /// The digests in the outcomes are computed from the repository, not from what was loaded.
    async fn stage(self, context: &Context) -> Vec<StepResult> {
        let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
        let mut reading = Reading::new(context, self.shard, &self.works);
        let (loaded, closed) =
            tokio::join!(self.driver.stage_group(&self.works, receiver), reading.read(sender));
        let mut results = Vec::with_capacity(self.works.len());
        for ((store, loaded), work) in reading.stores.into_iter().zip(loaded).zip(&self.works) {
            let Read { tables, rows, bytes } = store.read;
            // A loader that fails closes the channel, which is then the reader's error: the loader's is the cause.
            let error = match (store.withdrawn, loaded) {
                (Some(error), _) => Some(error),
                (None, Err(error)) => Some(error.into()),
                (None, Ok(())) => closed.then(|| super::stage::closed(work)),
            };
            results.push(match error {
                None => Ok(Outcome::Staged { rows, bytes, tables }),
                Some(error) => {
                    context.events.take_back(rows, bytes);
                    Err(error)
                }
            });
        }
        results
    }
}

/// What was read of a store.
#[derive(Default)]
struct StoreRead {
    read: Read,
    /// Why it cannot be read to its end.
    withdrawn: Option<StepError>,
}

/// Reads the stores of a group table by table, so that a driver can load each table in one stream.
struct Reading<'a> {
    context: &'a Context,
    shard: &'a ShardName,
    works: &'a [StoreWork],
    stores: Vec<StoreRead>,
}

impl<'a> Reading<'a> {
    fn new(context: &'a Context, shard: &'a ShardName, works: &'a [StoreWork]) -> Self {
        let stores = works.iter().map(|_| StoreRead::default()).collect();
        Self { context, shard, works, stores }
    }

    /// True when the loader stopped listening.
    async fn read(&mut self, sender: mpsc::Sender<GroupRows>) -> bool {
        let tables = self.works.iter().map(|work| work.tables.len()).max().unwrap_or(0);
        let stores = self.works.len();
        let parts = (0..tables).flat_map(|table| (0..stores).map(move |store| (store, table)));
        let mut ahead: VecDeque<(usize, usize, TableStream)> = VecDeque::new();
        for (store, table) in parts {
            ahead.extend(self.open(store, table).map(|stream| (store, table, stream)));
            if ahead.len() > TABLES_AHEAD
                && let Some((store, table, stream)) = ahead.pop_front()
                && !self.pass_on(store, table, stream, &sender).await
            {
                return true;
            }
        }
        for (store, table, stream) in ahead {
            if !self.pass_on(store, table, stream, &sender).await {
                return true;
            }
        }
        false
    }

    fn open(&self, store: usize, table: usize) -> Option<TableStream> {
        if self.stores[store].withdrawn.is_some() {
            return None;
        }
        let work = &self.works[store];
        // A group's stores have the same tables; one that has fewer is at its end.
        let definition = work.tables.get(table)?;
        let input = self.context.store(&work.store).ok()?.tables.get(table)?;
        let (reader, objects) = (&self.context.rows.reader, &self.context.plan.objects);
        Some(rows::open(reader, definition, input, objects, self.context.options.fold_bytes))
    }

    /// False when nobody listens any more.
    async fn pass_on(
        &mut self,
        store: usize,
        table: usize,
        mut stream: TableStream,
        sender: &mpsc::Sender<GroupRows>,
    ) -> bool {
        let (events, state) = (&self.context.events, &mut self.stores[store]);
        if state.withdrawn.is_some() {
            return true;
        }
        while let Some(rows) = stream.next().await {
            let count = rows.len() as u64;
            self.context.paces.admit(self.shard, &rows).await;
            let batch = RowBatch { table, rows };
            if sender.send(GroupRows::Batch { store, batch }).await.is_err() {
                return false;
            }
            state.read.rows += count;
            events.add(Work { rows_staged: count, ..Work::default() });
        }
        match stream.finish().await {
            Ok(read) => {
                state.read.bytes += read.bytes_read;
                events.add(Work { bytes: read.bytes_read, ..Work::default() });
                let name = self.works[store].tables[table].def.name.clone();
                let digest = TableDigest { rows: read.rows, digest: read.digest };
                state.read.tables.insert(name, digest);
                true
            }
            Err(error) => {
                state.withdrawn = Some(error.into());
                sender.send(GroupRows::Withdrawn { store }).await.is_ok()
            }
        }
    }
}
