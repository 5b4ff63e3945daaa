//! Where a capture goes on: shard and repository are brought to one view.
//!
//! Another capture may be at work on the same shard. Read in any order, one of the two is older than the other then, and
//! a shard that goes on looks like one that was rewound. So a new incarnation begins only if the log was the same
//! before and behind the reading of the shard that it does not fit to.

use muster_repo::{Chain, ChainHead, IncarnationDocument};
use muster_stores::capture::ShardState;
use muster_types::{Boundary, Digest, Incarnation, Position, Timestamp};

use super::{Open, ShardCapture, last_boundary, last_snapshot, now};
use crate::error::CaptureFailure;
use crate::event::CaptureEvent;

/// What the repository holds of a shard.
struct Log {
    known: Vec<IncarnationDocument>,
    head: Option<(u64, Digest)>,
    snapshot: Option<Boundary>,
}

impl Log {
    fn same_as(&self, other: &Self) -> bool {
        let names = |log: &Self| -> Vec<Incarnation> {
            log.known.iter().map(|document| document.incarnation.clone()).collect()
        };
        (names(self), self.head, self.snapshot) == (names(other), other.head, other.snapshot)
    }
}

/// What fits to a state of the shard.
enum Verdict {
    /// Its log goes on behind the head.
    GoesOn(Chain, ChainHead),
    /// Its log has no segment yet.
    Unwritten(Chain),
    /// They do not fit, for this reason.
    Begins(String),
}

impl ShardCapture {
    /// Where the log goes on, or that a new incarnation must begin.
    pub(super) async fn reconcile(&mut self, state: &ShardState) -> Result<Open, CaptureFailure> {
        let (verdict, log) = self.judge(state).await?;
        if !matches!(verdict, Verdict::Begins(_)) {
            return self.open(verdict, &log, state).await;
        }
        let state = self.blocking(|source| source.state()).await?;
        let (verdict, again) = self.judge(&state).await?;
        if matches!(verdict, Verdict::Begins(_)) && !again.same_as(&log) {
            return Err(CaptureFailure::Raced { shard: self.shard.clone() });
        }
        self.open(verdict, &again, &state).await
    }

    async fn open(
        &mut self,
        verdict: Verdict,
        log: &Log,
        state: &ShardState,
    ) -> Result<Open, CaptureFailure> {
        match verdict {
            Verdict::GoesOn(chain, head) => self.resume(chain, head, state).await,
            Verdict::Unwritten(chain) => Ok(unwritten(chain, log, state)),
            Verdict::Begins(reason) => self.begin(&log.known, state, &reason).await,
        }
    }

    /// Reads the log, and whether the state fits to it.
    async fn judge(&mut self, state: &ShardState) -> Result<(Verdict, Log), CaptureFailure> {
        let known = self.repository.incarnations(&self.shard).await;
        let known = known.map_err(|error| self.repository_failure(error))?;
        let mut log = Log { known, head: None, snapshot: None };
        if let Some(reason) = installed_elsewhere(&log.known, state) {
            return Ok((Verdict::Begins(reason), log));
        }
        let chain = self.chain(state).await?;
        log.head = chain.head().map(|head| (head.sequence, head.digest));
        let Some(head) = chain.head() else {
            log.snapshot = self.last_snapshot(&state.incarnation).await?;
            return Ok((first(chain, &log, state), log));
        };
        let mut reason = state.broken.clone().or_else(|| rewound(state, &head, state.head));
        if reason.is_none() && head.gone {
            reason = Some("its database was noted as gone, and is there".to_owned());
        }
        if reason.is_none() && state.head != log.head {
            reason = self.written_over(&head).await?;
        }
        Ok((reason.map_or(Verdict::GoesOn(chain, head), Verdict::Begins), log))
    }

    /// The log of the shard's incarnation, from where the shard has it, if it is there.
    async fn chain(&self, state: &ShardState) -> Result<Chain, CaptureFailure> {
        let from = state.head.map_or(1, |(sequence, _)| sequence);
        let mut chain = Chain::open_from(&self.repository, &self.shard, &state.incarnation, from).await;
        if let Ok(found) = &chain
            && found.head().is_none()
            && from > 1
        {
            chain = Chain::open(&self.repository, &self.shard, &state.incarnation).await;
        }
        chain.map_err(|error| self.repository_failure(error))
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
}

/// The latest incarnation of the repository is not the one that the shard is in.
fn installed_elsewhere(known: &[IncarnationDocument], state: &ShardState) -> Option<String> {
    let latest = match known.last() {
        None => return Some("capture began".to_owned()),
        Some(latest) if latest.incarnation == state.incarnation => return None,
        Some(latest) => &latest.incarnation,
    };
    Some(match known.iter().any(|found| found.incarnation == state.incarnation) {
        true => format!("the shard is in incarnation {}, before {latest}: it was rewound", state.incarnation),
        false => "capture was installed anew".to_owned(),
    })
}

/// An incarnation without segments: perhaps there is a snapshot.
fn first(chain: Chain, log: &Log, state: &ShardState) -> Verdict {
    if let Some(reason) = &state.broken {
        return Verdict::Begins(reason.clone());
    }
    if let Some((sequence, _)) = state.head {
        return Verdict::Begins(format!(
            "the shard has acknowledged segment {sequence}, and the log is gone"
        ));
    }
    if log.snapshot.is_some_and(|boundary| boundary.position > state.last) {
        return Verdict::Begins("the shard is behind its snapshot: it was rewound".to_owned());
    }
    if log.snapshot.is_some_and(|boundary| state.acknowledged > boundary.position) {
        let reason = "the shard has let go of changes behind its snapshot: another capture began it, too";
        return Verdict::Begins(reason.to_owned());
    }
    Verdict::Unwritten(chain)
}

fn unwritten(chain: Chain, log: &Log, state: &ShardState) -> Open {
    let base = log.snapshot.unwrap_or(Boundary {
        position: state.acknowledged,
        at: stamps_begin(log.known.last().and_then(|document| document.after)),
    });
    Open { incarnation: state.incarnation.clone(), chain, base, has_snapshot: log.snapshot.is_some() }
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
