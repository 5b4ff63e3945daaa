//! One shard's capture: from the state that the shard remembers to durable segments.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::snapshot::new_snapshot_id;
use muster_repo::{
    Chain, ChainError, ChainHead, IncarnationDocument, RepoError, Repository, SegmentSpool, SnapshotWriter,
    SpooledSegment,
};
use muster_stores::capture::{CaptureError, CaptureSource, Polled, ShardState};
use muster_types::{Boundary, Incarnation, Position, ShardName, Timestamp};
use tempfile::TempDir;

use crate::error::CaptureFailure;
use crate::event::{CaptureEvent, Events};
use crate::gone;
use crate::sink;

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

    /// Brings shard and repository to one view: where the log goes on, or that a new incarnation must begin.
    async fn reconcile(&mut self, state: &ShardState) -> Result<Open, CaptureFailure> {
        let known = self
            .repository
            .incarnations(&self.shard)
            .await
            .map_err(|error| self.repository_failure(error))?;
        let latest = known.last().map(|document| document.incarnation.clone());
        if latest.as_ref() != Some(&state.incarnation) {
            let reason = match (&latest, known.iter().any(|found| found.incarnation == state.incarnation)) {
                (None, _) => "capture began".to_owned(),
                (Some(latest), true) => {
                    format!(
                        "the shard is in incarnation {}, before {latest}: it was rewound",
                        state.incarnation
                    )
                }
                (Some(_), false) => "capture was installed anew".to_owned(),
            };
            return self.begin(&known, state, &reason).await;
        }
        if let Some(reason) = &state.broken {
            return self.begin(&known, state, reason).await;
        }
        let from = state.head.map_or(1, |(sequence, _)| sequence);
        let mut chain = Chain::open_from(&self.repository, &self.shard, &state.incarnation, from).await;
        if let Ok(found) = &chain
            && found.head().is_none()
            && from > 1
        {
            chain = Chain::open(&self.repository, &self.shard, &state.incarnation).await;
        }
        let chain = chain.map_err(|error| self.repository_failure(error))?;
        match (chain.head(), state.head) {
            (None, None) => self.resume_unwritten(chain, &known, state).await,
            (Some(head), named) => {
                let mut reason = rewound(state, &head, named);
                if reason.is_none() && head.gone {
                    reason = Some("its database was noted as gone, and is there".to_owned());
                }
                if reason.is_none() && named != Some((head.sequence, head.digest)) {
                    reason = self.written_over(&head).await?;
                }
                match reason {
                    Some(reason) => self.begin(&known, state, &reason).await,
                    None => self.resume(chain, head, state).await,
                }
            }
            (None, Some((sequence, _))) => {
                let reason = format!("the shard has acknowledged segment {sequence}, and the log is gone");
                self.begin(&known, state, &reason).await
            }
        }
    }

    /// After a crash before its acknowledgement, the shard still has what the head was read from. A shard that was
    /// rewound to before the head looks alike once writers have given the same positions to other changes; their times
    /// tell.
    async fn written_over(&mut self, head: &ChainHead) -> Result<Option<String>, CaptureFailure> {
        let change = head.last_change.map(|last| (last.key.position, last.at));
        let commit = head.last_commit.map(|last| (last.position, last.at));
        let Some((position, at)) = change.max(commit) else { return Ok(None) };
        let found = self.blocking(move |source| source.change_at(position)).await?;
        Ok((found != Some(at)).then(|| {
            format!(
                "what is at position {position} is not what segment {} of the log holds: the shard was rewound and \
                 written since",
                head.sequence
            )
        }))
    }

    /// An incarnation without segments: perhaps there is a snapshot.
    async fn resume_unwritten(
        &mut self,
        chain: Chain,
        known: &[IncarnationDocument],
        state: &ShardState,
    ) -> Result<Open, CaptureFailure> {
        let snapshot = self.last_snapshot(&state.incarnation).await?;
        if snapshot.is_some_and(|boundary| boundary.position > state.last) {
            let reason = "the shard is behind its snapshot: it was rewound";
            return self.begin(known, state, reason).await;
        }
        let base = snapshot.unwrap_or(Boundary {
            position: state.acknowledged,
            at: stamps_begin(known.last().and_then(|document| document.after)),
        });
        Ok(Open { incarnation: state.incarnation.clone(), chain, base, has_snapshot: snapshot.is_some() })
    }

    async fn resume(
        &mut self,
        chain: Chain,
        head: ChainHead,
        state: &ShardState,
    ) -> Result<Open, CaptureFailure> {
        if state.head != Some((head.sequence, head.digest)) {
            self.acknowledge(&head).await?;
            (self.events)(CaptureEvent::Resumed { shard: self.shard.clone(), boundary: head.boundary });
        }
        // Segments are only written behind a snapshot.
        Ok(Open { incarnation: state.incarnation.clone(), chain, base: head.boundary, has_snapshot: true })
    }

    async fn last_snapshot(&self, incarnation: &Incarnation) -> Result<Option<Boundary>, CaptureFailure> {
        let last = last_snapshot(&self.repository, &self.shard, incarnation).await;
        last.map_err(|error| self.repository_failure(error))
    }

    async fn begin(
        &mut self,
        known: &[IncarnationDocument],
        state: &ShardState,
        reason: &str,
    ) -> Result<Open, CaptureFailure> {
        let IncarnationDocument { incarnation, after, reason, .. } =
            self.next_incarnation(known, state, reason).await?;
        let begun = incarnation.clone();
        self.blocking(move |source| source.begin_incarnation(&begun)).await?;
        let chain = Chain::open(&self.repository, &self.shard, &incarnation)
            .await
            .map_err(|error| self.repository_failure(error))?;
        (self.events)(CaptureEvent::IncarnationBegun {
            shard: self.shard.clone(),
            incarnation: incarnation.clone(),
            reason,
            after,
        });
        let base = Boundary { position: Position(0), at: stamps_begin(after) };
        Ok(Open { incarnation, chain, base, has_snapshot: false })
    }

    /// A new incarnation, or the latest one if it holds nothing because the shard failed to begin it.
    async fn next_incarnation(
        &mut self,
        known: &[IncarnationDocument],
        state: &ShardState,
        reason: &str,
    ) -> Result<IncarnationDocument, CaptureFailure> {
        let mut after = None;
        if let Some(latest) = known.last() {
            after = self.last_boundary(&latest.incarnation).await?;
            if after.is_none() && latest.incarnation != state.incarnation {
                return Ok(latest.clone());
            }
            // Nothing of it was recorded: what was known before it is still the last.
            after = after.or(latest.after);
        }
        let begun = self.repository.begin_incarnation(&self.shard, now(), reason, after).await;
        begun.map_err(|error| self.repository_failure(error))
    }

    async fn last_boundary(&self, incarnation: &Incarnation) -> Result<Option<Boundary>, CaptureFailure> {
        let last = last_boundary(&self.repository, &self.shard, incarnation).await;
        last.map_err(|error| self.repository_failure(error))
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

    fn spool_folder(&self) -> Result<TempDir, CaptureFailure> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("muster-capture-");
        let made = match &self.spool {
            Some(folder) => std::fs::create_dir_all(folder).and_then(|()| builder.tempdir_in(folder)),
            None => builder.tempdir(),
        };
        made.map_err(|error| {
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

/// Stamps go on from those of the history before.
fn stamps_begin(after: Option<Boundary>) -> Timestamp {
    after.map_or(Timestamp::EPOCH, |after| after.at)
}

/// Why the shard cannot be what the log's head was read from.
fn rewound(
    state: &ShardState,
    head: &ChainHead,
    named: Option<(u64, muster_types::Digest)>,
) -> Option<String> {
    if state.last < head.boundary.position {
        return Some(format!(
            "the shard is at position {}, before {} where the log ends: it was rewound",
            state.last, head.boundary.position
        ));
    }
    let is_head = named == Some((head.sequence, head.digest));
    // A crash between a durable segment and its acknowledgement leaves the one before.
    let before = (head.sequence > 1).then_some(head.sequence - 1).zip(head.predecessor);
    if is_head || named == before {
        return None;
    }
    Some(match named {
        Some((sequence, _)) => format!(
            "the shard has acknowledged segment {sequence}, which does not lead to {} where the log ends: it was rewound",
            head.sequence
        ),
        None => format!(
            "the shard has acknowledged nothing, and the log is at segment {}: it was rewound",
            head.sequence
        ),
    })
}
