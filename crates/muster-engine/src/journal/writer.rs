//! Writing the journal: taking a run, and group commit.

use std::sync::Arc;
use std::time::Duration;

use muster_repo::runs::Appended;
use muster_repo::{Repository, RunObjects};
use muster_types::format::FORMAT;
use muster_types::journal::{JournalEntry, Record, Restraint};
use muster_types::plan::Plan;
use muster_types::{Epoch, RunId};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::{JournalError, RunHistory, RunState, read_run};
use crate::clock::Clock;
use crate::fault::{Faults, Point};

/// Records in one entry at most: an entry stays below about a megabyte.
const RECORDS_PER_ENTRY_MAX: usize = 1000;

/// Records that nobody waits for gather for so long: every entry costs the object store a write that is made durable, and
/// those who watch a run look a few times a second.
const LINGER: Duration = Duration::from_millis(100);

/// Entries of an engine that still holds the run, met while taking it over, at most: each costs one round trip, and an
/// engine that writes faster than this is better stopped first.
const TAKE_TRIES_MAX: u32 = 100;

/// Who writes.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Host and process, for people.
    pub by: String,
    /// Unique to this engine.
    pub id: String,
    /// The clock.
    pub clock: Clock,
}

/// A run that this engine holds.
#[derive(Debug)]
pub struct TakeOver {
    /// Plan, journal and state, this engine's own first entry included.
    pub history: RunHistory,
    objects: RunObjects,
    writer: Writer,
    attempts: u64,
}

impl TakeOver {
    /// Opens a new run: stores its plan and wins its first entry.
    ///
    /// # Errors
    /// [`JournalError::Exists`] when the run was opened before; the repository's own errors.
    pub async fn open(
        repository: &Repository,
        run: &RunId,
        plan: &Arc<Plan>,
        writer: &Writer,
    ) -> Result<Self, JournalError> {
        let objects = RunObjects::new(repository, run.clone());
        objects.put_plan(plan).await?;
        let state = RunState::new(&plan.steps);
        let history = RunHistory { run: run.clone(), plan: Arc::clone(plan), entries: Vec::new(), state };
        let mut taken = Self { history, objects, writer: writer.clone(), attempts: 0 };
        match taken.try_take().await? {
            None => Ok(taken),
            Some(_) => Err(JournalError::Exists { run: run.clone() }),
        }
    }

    /// Takes a run from whoever holds it: reads the journal to its end and wins the next entry with a higher epoch.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when another engine took it at the same moment; [`JournalError::Abandoned`]; a
    /// damaged journal; the repository's own errors.
    pub async fn take(repository: &Repository, run: &RunId, writer: &Writer) -> Result<Self, JournalError> {
        let history = read_run(repository, run).await?;
        let objects = RunObjects::new(repository, run.clone());
        let mut taken = Self { history, objects, writer: writer.clone(), attempts: 0 };
        for _ in 0..TAKE_TRIES_MAX {
            let epoch = taken.history.state.epoch();
            match taken.try_take().await? {
                None => return Ok(taken),
                // The engine before is still at work; what it wrote is part of what is taken over.
                Some(theirs) if theirs.epoch == epoch => taken.history.push(*theirs)?,
                Some(theirs) => return Err(fenced(run, &theirs)),
            }
        }
        let (epoch, by, at) = taken.history.state.takings().last().cloned().unwrap_or((
            Epoch(0),
            "another engine".to_owned(),
            writer.clock.now(),
        ));
        Err(JournalError::Fenced { run: run.clone(), by, epoch, at })
    }

    /// Tries the next entry once; another's entry is given back.
    async fn try_take(&mut self) -> Result<Option<Box<JournalEntry>>, JournalError> {
        if self.history.state.abandoned().is_some() {
            return Err(JournalError::Abandoned { run: self.history.run.clone() });
        }
        let at = self.writer.clock.now();
        let epoch = Epoch(self.history.state.epoch().0 + 1);
        let mut records = Vec::new();
        if self.history.state.opened_at().is_none() {
            let plan = self.history.plan.id.clone();
            records.push(Record::Opened { plan, at, operator: self.writer.by.clone() });
        }
        records.push(Record::Taken { epoch, by: self.writer.by.clone(), at });
        self.attempts += 1;
        let sequence = self.history.last_sequence() + 1;
        let entry = entry(&self.history.run, &self.writer, sequence, epoch, self.attempts, records);
        match self.objects.append(&entry).await? {
            Appended::Mine => {
                self.history.push(entry)?;
                Ok(None)
            }
            Appended::Other(theirs) => Ok(Some(theirs)),
        }
    }

    /// The epoch won.
    pub fn epoch(&self) -> Epoch {
        self.history.state.epoch()
    }

    /// Starts writing: the journal, and the future that does its work and must be polled.
    pub fn into_journal(
        self,
        faults: Faults,
    ) -> (Journal, RunHistory, impl Future<Output = Result<(), JournalError>> + Send) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let work = Work {
            run: self.history.run.clone(),
            epoch: self.epoch(),
            sequence: self.history.last_sequence(),
            attempts: self.attempts,
            objects: self.objects,
            writer: self.writer,
            faults,
            wanted: Arc::default(),
        };
        (Journal { sender, wanted: Arc::clone(&work.wanted) }, self.history, work.run(receiver))
    }
}

fn entry(
    run: &RunId,
    writer: &Writer,
    sequence: u64,
    epoch: Epoch,
    attempt: u64,
    records: Vec<Record>,
) -> JournalEntry {
    JournalEntry {
        format: FORMAT,
        run: run.clone(),
        sequence,
        epoch,
        writer: writer.id.clone(),
        attempt,
        at: writer.clock.now(),
        records,
        restraint: None,
    }
}

fn fenced(run: &RunId, theirs: &JournalEntry) -> JournalError {
    let taken = theirs.records.iter().find_map(|record| match record {
        Record::Taken { by, at, .. } => Some((by.clone(), *at)),
        _ => None,
    });
    let (by, at) = taken.unwrap_or_else(|| (theirs.writer.clone(), theirs.at));
    JournalError::Fenced { run: run.clone(), by, epoch: theirs.epoch, at }
}

struct Pending {
    records: Vec<Record>,
    restraint: Option<Restraint>,
    durable: oneshot::Sender<()>,
}

/// The writing end of a run's journal.
///
/// Records are written in the order of [`Journal::append`], those that gather while a write is in flight together. The next
/// write begins when somebody waits for it, or after a moment.
#[derive(Clone, Debug)]
pub struct Journal {
    sender: mpsc::UnboundedSender<Pending>,
    wanted: Arc<Notify>,
}

/// Resolves to `true` once the records are durable, to `false` if they never will be.
#[derive(Debug)]
pub struct Durable {
    durable: oneshot::Receiver<()>,
    wanted: Arc<Notify>,
}

impl Durable {
    /// Waits, and has the records written at once.
    pub async fn wait(self) -> bool {
        self.wanted.notify_one();
        self.durable.await.is_ok()
    }
}

impl Journal {
    /// Appends records.
    pub fn append(&self, records: Vec<Record>) -> Durable {
        self.append_restrained(records, None)
    }

    /// Appends records, with what holds steps back since them if that has changed.
    pub fn append_restrained(&self, records: Vec<Record>, restraint: Option<Restraint>) -> Durable {
        let (sender, durable) = oneshot::channel();
        // A closed channel drops the sender's half, which is the answer "never".
        let _ = self.sender.send(Pending { records, restraint, durable: sender });
        Durable { durable, wanted: Arc::clone(&self.wanted) }
    }
}

struct Work {
    run: RunId,
    epoch: Epoch,
    sequence: u64,
    attempts: u64,
    objects: RunObjects,
    writer: Writer,
    faults: Faults,
    /// Somebody waits. May also be left over from a wait that is over: then a write comes early.
    wanted: Arc<Notify>,
}

impl Work {
    /// Writes until every [`Journal`] is gone, or until an entry is lost to another engine.
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<Pending>) -> Result<(), JournalError> {
        while let Some(first) = receiver.recv().await {
            let (records, restraint, waiting) = self.gather(first, &mut receiver).await;
            self.write(records, restraint).await?;
            for durable in waiting {
                // Whoever asked may have lost interest.
                let _ = durable.send(());
            }
        }
        Ok(())
    }

    /// The records of the next entry and the last restraint, with who is to be told.
    async fn gather(
        &self,
        first: Pending,
        receiver: &mut mpsc::UnboundedReceiver<Pending>,
    ) -> (Vec<Record>, Option<Restraint>, Vec<oneshot::Sender<()>>) {
        let (mut records, mut waiting) = (first.records, vec![first.durable]);
        let mut restraint = first.restraint;
        let until = Instant::now() + LINGER;
        let mut wanted = false;
        while records.len() < RECORDS_PER_ENTRY_MAX {
            let next = tokio::select! {
                biased;
                next = receiver.recv() => next,
                // Once wanted, what has come goes along, and nothing is waited for.
                () = std::future::ready(()), if wanted => None,
                () = self.wanted.notified() => {
                    wanted = true;
                    continue;
                }
                () = tokio::time::sleep_until(until) => None,
            };
            let Some(next) = next else { break };
            records.extend(next.records);
            restraint = next.restraint.or(restraint);
            waiting.push(next.durable);
        }
        (records, restraint, waiting)
    }

    async fn write(
        &mut self,
        records: Vec<Record>,
        restraint: Option<Restraint>,
    ) -> Result<(), JournalError> {
        self.sequence += 1;
        self.attempts += 1;
        let mut entry = entry(&self.run, &self.writer, self.sequence, self.epoch, self.attempts, records);
        entry.restraint = restraint;
        self.faults.reach(Point::BeforeEntry).await;
        let appended = self.objects.append(&entry).await?;
        self.faults.reach(Point::AfterEntry).await;
        match appended {
            Appended::Mine => Ok(()),
            Appended::Other(theirs) => Err(fenced(&self.run, &theirs)),
        }
    }
}
