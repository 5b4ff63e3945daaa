//! One shard's capture: from the state that the shard remembers to durable segments.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::scratch::Scratch;
use muster_repo::snapshot::new_snapshot_id;
use muster_repo::{
    Chain, ChainError, ChainHead, RepoError, Repository, SegmentSpool, SnapshotWriter, SpooledSegment,
};
use muster_stores::capture::{CaptureError, CaptureSource, Polled, ShardState};
use muster_types::{Boundary, Incarnation, Position, ShardName, Timestamp};

use crate::error::CaptureFailure;
use crate::event::{CaptureEvent, Events};
use crate::gone;
use crate::sink;

mod reconcile;

/// Makes the capture side of a shard; called again after a crash of it.
pub type SourceFactory = Arc<dyn Fn() -> Box<dyn CaptureSource> + Send + Sync>;

/// What a cycle recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The last recovery point in the log.
    pub boundary: Boundary,
    /// Changes of this cycle.
    pub changes: u64,
    /// A segment was written.
    pub appended: bool,
    /// Tables that are in the shard and not captured.
    pub undeclared: Vec<String>,
    /// It was released, and is captured no longer.
    pub released: bool,
    /// The last poll ended early: more is there to be read at once.
    more: bool,
}

/// The log of the current incarnation, and where to go on.
struct Open {
    incarnation: Incarnation,
    chain: Chain,
    /// The state that the next poll continues from.
    base: Boundary,
    has_snapshot: bool,
}

/// One shard's capture.
pub struct ShardCapture {
    shard: ShardName,
    repository: Repository,
    factory: SourceFactory,
    source: Option<Box<dyn CaptureSource>>,
    open: Option<Open>,
    /// Unique to this process and shard: tells one's own segments from another's.
    writer: String,
    spool: Option<PathBuf>,
    events: Events,
    last_appended: Option<Instant>,
    /// Where the log ended when it was looked for.
    log_end: Option<(Incarnation, u64)>,
    /// That it is released was told, and whether it was gone then.
    told_released: Option<bool>,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl ShardCapture {
    /// Capture of `shard` into `repository`. Files are spooled in `spool`, or in the system's folder for such.
    pub fn new(
        repository: Repository,
        shard: ShardName,
        factory: SourceFactory,
        spool: Option<PathBuf>,
        events: Events,
    ) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let nonce = new_snapshot_id(Position(0)).as_str().rsplit('-').next().unwrap_or_default().to_owned();
        let writer = format!("capture, process {} on `{}`, {nonce}", std::process::id(), host.trim());
        Self {
            shard,
            repository,
            factory,
            source: None,
            open: None,
            writer,
            spool,
            events,
            last_appended: None,
            log_end: None,
            told_released: None,
        }
    }

    /// The shard.
    pub fn shard(&self) -> &ShardName {
        &self.shard
    }

    /// The name under which this capture writes segments.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// How long ago the last segment was written.
    pub fn idle(&self) -> Option<std::time::Duration> {
        self.last_appended.map(|at| at.elapsed())
    }

    /// One cycle: a snapshot if the incarnation has none or one is asked for, then a poll, a segment, and the
    /// acknowledgement. With `watermark` the segment is written even if nothing changed.
    ///
    /// # Errors
    /// [`CaptureFailure`]; the next cycle starts from what shard and repository say then.
    pub async fn cycle(&mut self, snapshot: bool, watermark: bool) -> Result<Recorded, CaptureFailure> {
        let result = self.try_cycle(snapshot, watermark).await;
        if result.is_err() {
            self.open = None;
            // What it has read and nobody recorded must be read again: only a new one begins where the log ends.
            self.source = None;
        }
        result
    }

    async fn try_cycle(&mut self, snapshot: bool, watermark: bool) -> Result<Recorded, CaptureFailure> {
        let state = match self.blocking(|source| source.state()).await {
            Err(CaptureFailure::Shard { error, .. }) => {
                let gone = error.gone;
                match self.released().await? {
                    Some(last) => return self.record_released(last, gone).await,
                    None if gone => return Err(self.record_gone(error, watermark).await),
                    None => return Err(self.shard_failure(error)),
                }
            }
            other => other?,
        };
        let mut open = match self.open.take() {
            Some(open) => self.still_ours(open, &state).await?,
            None => self.reconcile(&state).await?,
        };
        if snapshot || !open.has_snapshot {
            let boundary = self.snapshot(&open, &state).await?;
            if open.chain.head().is_none() {
                open.base = boundary;
            }
            open.has_snapshot = true;
        }
        let mut recorded = self.record(open, watermark).await?;
        // Every poll that ends early ends behind where it began: the present is reached.
        while recorded.more {
            let Some(open) = self.open.take() else { break };
            let next = self.record(open, watermark).await?;
            recorded = Recorded {
                changes: recorded.changes + next.changes,
                appended: recorded.appended || next.appended,
                ..next
            };
        }
        Ok(recorded)
    }

    /// Where the repository's log of the shard ends: incarnation and number of its last segment; none if it cannot be read.
    pub(crate) async fn log_end(&mut self) -> Option<(Incarnation, u64)> {
        let incarnation = self.repository.incarnations(&self.shard).await.ok()?.pop()?.incarnation;
        let known =
            self.log_end.take().filter(|(known, _)| *known == incarnation).map_or(1, |(_, last)| last);
        let chain = Chain::open_from(&self.repository, &self.shard, &incarnation, known).await.ok()?;
        self.log_end = Some((incarnation, chain.head().map_or(0, |head| head.sequence)));
        self.log_end.clone()
    }

    /// The last recovery point of a shard that was released, and is not captured again since.
    async fn released(&self) -> Result<Option<Boundary>, CaptureFailure> {
        let failed = |error| self.repository_failure(error);
        let known = self.repository.incarnations(&self.shard).await.map_err(failed)?.pop();
        let Some(incarnation) = known.map(|document| document.incarnation) else { return Ok(None) };
        match self.repository.released(&self.shard, &incarnation).await.map_err(failed)? {
            Some(_) => last_boundary(&self.repository, &self.shard, &incarnation).await.map_err(failed),
            None => Ok(None),
        }
    }

    /// Nothing is captured, and that is meant; only that the database was dropped is news.
    async fn record_released(&mut self, last: Boundary, gone: bool) -> Result<Recorded, CaptureFailure> {
        if gone {
            self.try_record_gone(false).await?;
        }
        if self.told_released != Some(gone) {
            self.told_released = Some(gone);
            (self.events)(CaptureEvent::Released { shard: self.shard.clone(), boundary: last, gone });
        }
        let undeclared = Vec::new();
        Ok(Recorded { boundary: last, changes: 0, appended: false, undeclared, released: true, more: false })
    }

    /// A site's database is not there: its log says so. Fails all the same, so that somebody hears of it.
    async fn record_gone(&mut self, error: CaptureError, watermark: bool) -> CaptureFailure {
        match self.try_record_gone(watermark).await {
            Ok(()) => self.shard_failure(error),
            Err(failure) => failure,
        }
    }

    async fn try_record_gone(&mut self, watermark: bool) -> Result<(), CaptureFailure> {
        let query = CatalogQuery { sites: Sites::Some([].into()), shards: Some(vec![self.shard.clone()]) };
        let read = catalog::read(&self.repository, &query, now()).await;
        let catalog = read.map_err(|error| self.repository_failure(error))?;
        let history = catalog.shards.get(&self.shard).and_then(|shard| shard.incarnations.last());
        let Some(history) = history else { return Ok(()) };
        let tables = gone::tables_there(history);
        let mut chain = Chain::open(&self.repository, &self.shard, &history.incarnation)
            .await
            .map_err(|error| self.repository_failure(error))?;
        let snapshot = history.snapshots.last().map(|snapshot| snapshot.boundary);
        let Some(base) = chain.head().map(|head| head.boundary).or(snapshot) else { return Ok(()) };
        if tables.is_empty() && !watermark {
            return Ok(());
        }
        let folder = self.spool_folder()?;
        let mut spool = SegmentSpool::new(&folder.path().join("segment"));
        let boundary = gone::note(&mut spool, tables, base, now());
        let spooled =
            spool.finish().map_err(|error| self.shard_failure(crate::error::spool_error(&error)))?;
        let appended = chain.append(spooled, base, boundary, (0, 0), &self.writer).await;
        appended.map_err(|error| match error {
            ChainError::Lost { .. } => self.lost(error),
            ChainError::Repo(error) => self.repository_failure(error),
        })?;
        self.last_appended = Some(Instant::now());
        Ok(())
    }

    /// Fails when another capture has taken the log on since the last cycle.
    async fn still_ours(&mut self, mut open: Open, state: &ShardState) -> Result<Open, CaptureFailure> {
        let head = open.chain.head().map(|head| (head.sequence, head.digest));
        let same = state.incarnation == open.incarnation && state.broken.is_none();
        if same && state.head == head && state.last >= open.base.position {
            return Ok(open);
        }
        // The slot behind our head tells whose segment follows it, if there is one.
        let empty = SpooledSegment::empty();
        match open.chain.append(empty, open.base, open.base, (0, 0), &self.writer).await {
            Err(error @ ChainError::Lost { .. }) => Err(self.lost(error)),
            Err(ChainError::Repo(error)) => Err(self.repository_failure(error)),
            Ok(_) => self.reconcile(state).await,
        }
    }

    async fn snapshot(&mut self, open: &Open, state: &ShardState) -> Result<Boundary, CaptureFailure> {
        let started = Instant::now();
        let folder = self.spool_folder()?;
        let (dir, shard, incarnation) =
            (folder.path().to_owned(), self.shard.clone(), open.incarnation.clone());
        let (id, base) = (new_snapshot_id(state.last), open.base);
        let snapshot = id.clone();
        let (writer, boundary) = self
            .blocking(move |source| {
                let writer = SnapshotWriter::new(&dir, shard, incarnation, id, source.session());
                let mut sink = sink::Snapshot(writer);
                let boundary = source.snapshot(base, &mut sink)?;
                sink.0.seal().map_err(|error| crate::error::spool_error(&error))?;
                Ok((sink.0, boundary))
            })
            .await?;
        let rows = writer.rows();
        writer.finish(&self.repository, boundary).await.map_err(|error| self.repository_failure(error))?;
        let seconds = started.elapsed().as_secs_f64();
        let shard = self.shard.clone();
        (self.events)(CaptureEvent::Snapshot { shard, snapshot, boundary, rows, seconds });
        Ok(boundary)
    }

    /// Poll, segment, acknowledgement.
    async fn record(&mut self, mut open: Open, watermark: bool) -> Result<Recorded, CaptureFailure> {
        let folder = self.spool_folder()?;
        let (file, base) = (folder.path().join("segment"), open.base);
        let (spooled, polled, offset) = self
            .blocking(move |source| {
                let mut sink = sink::Segment(SegmentSpool::new(&file));
                let polled = source.poll(base, watermark, &mut sink)?;
                let spooled = sink.0.finish().map_err(|error| crate::error::spool_error(&error))?;
                Ok((spooled, polled, source.clock_offset_micros()?))
            })
            .await?;
        if !polled.undeclared.is_empty() {
            let (shard, tables) = (self.shard.clone(), polled.undeclared.clone());
            (self.events)(CaptureEvent::Undeclared { shard, tables });
        }
        let Polled { boundary, changes, undeclared, more } = polled;
        let append = watermark || !spooled.is_empty() || boundary.position > base.position;
        if append {
            let appended = open.chain.append(spooled, base, boundary, offset, &self.writer).await;
            let head = appended.map_err(|error| match error {
                ChainError::Lost { .. } => self.lost(error),
                ChainError::Repo(error) => self.repository_failure(error),
            })?;
            self.acknowledge(&head).await?;
            self.last_appended = Some(Instant::now());
            (self.events)(CaptureEvent::Appended {
                shard: self.shard.clone(),
                sequence: head.sequence,
                boundary,
                changes,
                lag_seconds: now().seconds_since(boundary.at).max(0.0),
            });
            open.base = boundary;
        }
        let boundary = open.base;
        self.open = Some(open);
        Ok(Recorded { boundary, changes, appended: append, undeclared, released: false, more })
    }

    async fn acknowledge(&mut self, head: &ChainHead) -> Result<(), CaptureFailure> {
        let (upto, head) = (head.boundary.position, (head.sequence, head.digest));
        self.blocking(move |source| source.acknowledge(upto, head)).await
    }

    /// Runs blocking work of the source on a thread for such.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn CaptureSource) -> Result<T, CaptureError> + Send + 'static,
    ) -> Result<T, CaptureFailure> {
        let mut source = self.source.take().unwrap_or_else(|| (self.factory)());
        let done = tokio::task::spawn_blocking(move || {
            let result = work(source.as_mut());
            (source, result)
        });
        let (source, result) = done.await.map_err(|error| {
            self.shard_failure(CaptureError::transient(
                format!("the thread that reads the shard ended early: {error}"),
                "this is a defect of Muster: report it; capture tries again",
            ))
        })?;
        self.source = Some(source);
        result.map_err(|error| self.shard_failure(error))
    }

    fn spool_folder(&self) -> Result<Scratch, CaptureFailure> {
        Scratch::new(self.spool.as_deref()).map_err(|error| {
            self.shard_failure(CaptureError::transient(
                format!("cannot make a folder for spool files: {error}"),
                "free space, or name another folder (TMPDIR)",
            ))
        })
    }

    fn shard_failure(&self, error: CaptureError) -> CaptureFailure {
        CaptureFailure::Shard { shard: self.shard.clone(), error }
    }

    fn repository_failure(&self, error: RepoError) -> CaptureFailure {
        CaptureFailure::Repository { shard: self.shard.clone(), error }
    }

    fn lost(&self, error: ChainError) -> CaptureFailure {
        CaptureFailure::Lost { shard: self.shard.clone(), error }
    }
}

/// The last recovery point of an incarnation.
pub(crate) async fn last_boundary(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
) -> Result<Option<Boundary>, RepoError> {
    match Chain::open(repository, shard, incarnation).await?.head() {
        Some(head) => Ok(Some(head.boundary)),
        None => last_snapshot(repository, shard, incarnation).await,
    }
}

/// The last recovery point of an incarnation's snapshots.
async fn last_snapshot(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
) -> Result<Option<Boundary>, RepoError> {
    let query = CatalogQuery { sites: Sites::Some([].into()), shards: Some(vec![shard.clone()]) };
    let catalog = catalog::read(repository, &query, now()).await?;
    let history = catalog.shards.get(shard).into_iter().flat_map(|shard| &shard.incarnations);
    let ours = history.filter(|history| history.incarnation == *incarnation);
    Ok(ours.flat_map(|history| &history.snapshots).map(|snapshot| snapshot.boundary).max())
}
