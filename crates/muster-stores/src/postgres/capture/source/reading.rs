//! Polls: the log read up to a boundary, with what has to be looked up or read again.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_types::{Boundary, Position, Timestamp};

use super::PostgresSource;
use super::tables::{altered_unless, undeclared_event, unnamed};
use crate::capture::{CaptureError, ChangeSink, Polled};
use crate::postgres::capture::error::explain;
use crate::postgres::capture::layout::Layout;
use crate::postgres::capture::poll::{HEARTBEAT, Poll};
use crate::postgres::capture::snapshot::Snapshot;
use crate::postgres::capture::state::State;
use crate::postgres::capture::stream::{Item, Stream};
use crate::postgres::capture::{lookup, random_number, slot};

/// How long the slot's former session may take to end.
const SESSION_END: Duration = Duration::from_secs(10);

/// How a poll is read whole.
pub(super) struct Whole {
    pub(super) watermark: bool,
    /// The tables at its beginning are not known to be those at its end.
    pub(super) coarse: bool,
}

/// What a poll reads up to.
enum Target {
    Heartbeat(String),
    /// Transactions before this place.
    Before(Position),
}

impl PostgresSource {
    /// Ends our own session and waits until the slot knows of it.
    pub(super) async fn end_stream(&mut self) -> Result<(), CaptureError> {
        match self.stream.take() {
            Some(stream) => {
                drop(stream);
                self.wait_until_free(SESSION_END).await
            }
            None => Ok(()),
        }
    }

    /// Waits for a session that has the slot: one that was ended just now is still seen for a moment.
    pub(super) async fn wait_until_free(&mut self, limit: Duration) -> Result<(), CaptureError> {
        let until = tokio::time::Instant::now() + limit;
        while self.status().await?.slot.is_some_and(|slot| slot.active_pid.is_some()) {
            if tokio::time::Instant::now() > until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(super) async fn open_stream(&mut self, acknowledged: Position) -> Result<(), CaptureError> {
        if self.stream.as_ref().is_some_and(Stream::is_whole) {
            return Ok(());
        }
        self.stream = None;
        self.wait_until_free(SESSION_END).await?;
        let name = self.name.clone();
        let (config, _) = self.client().await?;
        self.stream = Some(Stream::open(&config, &name, &name, acknowledged).await?);
        Ok(())
    }

    pub(super) fn stream(&mut self) -> Result<&mut Stream, CaptureError> {
        self.stream.as_mut().ok_or_else(Self::session_lost)
    }

    pub(super) fn session_lost() -> CaptureError {
        CaptureError::transient("the change log's session was lost", "capture connects anew")
    }

    pub(super) async fn heartbeat(&mut self) -> Result<String, CaptureError> {
        let nonce = format!("{:016x}", random_number());
        let (config, client) = self.client().await?;
        let sql = "SELECT pg_logical_emit_message(true, $1, $2)";
        let sent = client.execute(sql, &[&HEARTBEAT, &nonce]).await;
        sent.map_err(|error| explain(&config, "write a heartbeat into its log", &error))?;
        Ok(nonce)
    }

    pub(super) async fn poll_now(
        &mut self,
        after: Boundary,
        watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        let state = self.read_state().await?;
        let status = self.status().await?;
        self.check_range(&state, &status, after)?;
        let idle =
            self.quiet_at == Some(status.end.0) && self.stream.as_ref().is_some_and(Stream::is_drained);
        if idle
            && !watermark
            && let Some((_, layout)) = self.layout.as_ref().filter(|(at, _)| *at == after.position)
        {
            return Ok(Polled { boundary: after, changes: 0, undeclared: unnamed(layout), more: false });
        }
        self.open_stream(state.acknowledged).await?;
        let nonce = self.heartbeat().await?;
        let layouts = self.layouts(after.position, nonce).await?;
        self.poll_between(layouts, after, watermark, sink).await
    }

    /// Reads everything with the tables as they are at its end; what has another shape in the log is read again whole.
    /// Where DDL lies between, or `coarse` says so, only the end is a recovery point.
    pub(super) async fn poll_whole(
        &mut self,
        newest: Layout,
        nonce: &str,
        (after, from): (Boundary, Boundary),
        options: Whole,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        let watch = self.watch(&newest).await?;
        let mut poll = Poll::new(&newest, from, watch, sink);
        if options.coarse {
            poll.be_coarse();
        }
        self.read_until(&newest, &mut poll, &Target::Heartbeat(nonce.to_owned())).await?;
        self.compare_with_known(&newest, &mut poll).await?;
        self.settle(&newest, &mut poll).await?;
        let (polled, _) = self.conclude(&newest, poll, after, options.watermark).await?;
        self.note_layout(&polled, newest);
        Ok(polled)
    }

    /// Reads again what the log does not tell, and hands everything on.
    pub(super) async fn conclude(
        &mut self,
        layout: &Layout,
        mut poll: Poll<'_>,
        after: Boundary,
        watermark: bool,
    ) -> Result<(Polled, (BTreeSet<usize>, BTreeSet<usize>)), CaptureError> {
        let snapshot = match poll.rereads().is_empty() {
            true => None,
            false => Some(self.read_up_to_a_state(layout, &mut poll, after).await?),
        };
        let reached = poll.reached();
        let boundary = match &snapshot {
            // Its time is that of the last commit in it: one behind it may be older than the moment it was taken.
            Some(taken) => Boundary { at: reached.at, ..taken.boundary },
            None => reached,
        };
        let undeclared = unnamed(layout);
        let new: Vec<String> = undeclared.iter().filter(|name| !self.told.contains(*name)).cloned().collect();
        for name in &new {
            poll.add_event(undeclared_event(layout, name, boundary.at));
        }
        let (dropped, emptied) = poll.whole_tables();
        let whole = (dropped.clone(), emptied.clone());
        if poll.is_empty() && !watermark {
            return Ok((Polled { boundary: after, changes: 0, undeclared, more: false }, whole));
        }
        let finished = poll.finish(boundary)?;
        let changes = finished.changes;
        if let Some(taken) = &snapshot {
            let tables: Vec<usize> = finished.again.iter().map(|(table, _)| *table).collect();
            let (sink, again) = (finished.sink, finished.again);
            taken
                .read(layout, &tables, |site, table, row| sink.reread_row(site, again[table].1, row))
                .await?;
        }
        self.told.extend(new);
        Ok((Polled { boundary, changes, undeclared, more: false }, whole))
    }

    /// Takes a state to read tables again from, and reads the log up to it.
    async fn read_up_to_a_state(
        &mut self,
        layout: &Layout,
        poll: &mut Poll<'_>,
        after: Boundary,
    ) -> Result<Snapshot, CaptureError> {
        let (config, _) = self.client().await?;
        let taken = Snapshot::take(&config, layout, &self.name, self.snapshot_max).await?;
        altered_unless(taken.fingerprint == layout.fingerprint, &self.shard)?;
        // Something has to lie behind the state, so that its place is passed.
        self.heartbeat().await?;
        let target = Target::Before(Position(taken.boundary.position.0 + 1));
        self.open_stream(after.position).await?;
        self.read_until(layout, poll, &target).await?;
        self.settle(layout, poll).await?;
        Ok(taken)
    }

    fn check_range(&self, state: &State, status: &slot::Status, after: Boundary) -> Result<(), CaptureError> {
        if state.acknowledged > after.position {
            return Err(CaptureError::new(
                format!(
                    "shard `{}`: changes up to {} were acknowledged and are gone, and those behind {} are asked for",
                    self.shard, state.acknowledged, after.position
                ),
                "run `muster capture --once`, which begins a new incarnation with a snapshot where the log cannot go on",
            ));
        }
        if status.end < after.position {
            return Err(CaptureError::new(
                format!(
                    "shard `{}` is at position {}, before {} where the log ends: it was rewound",
                    self.shard, status.end, after.position
                ),
                "run `muster capture --once`, which begins a new incarnation with a snapshot",
            ));
        }
        Ok(())
    }

    async fn read_until(
        &mut self,
        layout: &Layout,
        poll: &mut Poll<'_>,
        target: &Target,
    ) -> Result<(), CaptureError> {
        loop {
            let item = self.stream()?.next().await?;
            if let Target::Before(position) = target
                && poll.is_at(&item, *position)
            {
                self.stream()?.put_back(item);
                return Ok(());
            }
            if let Some(committed) = poll.take(item)? {
                self.quiet_at = Some(committed.end);
                if let (Target::Heartbeat(nonce), Some(found)) = (target, &committed.heartbeat)
                    && nonce == found
                {
                    return Ok(());
                }
            }
            if poll.is_over_budget() {
                self.make_room(layout, poll).await?;
            }
        }
    }

    /// Hands on what can be, looking up owners in the live tables where that is needed.
    pub(super) async fn make_room(
        &mut self,
        layout: &Layout,
        poll: &mut Poll<'_>,
    ) -> Result<(), CaptureError> {
        poll.flush()?;
        if poll.is_half_full() {
            self.look_up(layout, poll).await?;
            poll.flush()?;
        }
        if poll.is_half_full() {
            poll.give_up_waiting();
        }
        Ok(())
    }

    /// Asks the live tables for the owners that the log does not tell.
    async fn look_up(&mut self, layout: &Layout, poll: &mut Poll<'_>) -> Result<(), CaptureError> {
        loop {
            let wanted = poll.wanted();
            if wanted.is_empty() {
                return Ok(());
            }
            let (config, client) = self.client().await?;
            let found = lookup::links(client, layout, wanted).await;
            for (node, link) in found.map_err(|error| explain(&config, "look up owners of rows", &error))? {
                poll.provide(node, link);
            }
        }
    }

    /// Finds the owners of all changes, and holds them against what the log brings up to after they were read.
    pub(super) async fn settle(&mut self, layout: &Layout, poll: &mut Poll<'_>) -> Result<(), CaptureError> {
        self.look_up(layout, poll).await?;
        while std::mem::take(&mut poll.owners.unverified) {
            match self.stream()?.ahead() {
                Some(items) => items.for_each(|item| poll.verify(item)),
                None => {
                    poll.distrust_look_ups();
                    break;
                }
            }
            self.verify_ahead(poll).await?;
            if poll.owners.unclear {
                poll.distrust_look_ups();
                break;
            }
            // What the log says may hang on rows that were not looked up yet.
            self.look_up(layout, poll).await?;
        }
        poll.settle();
        Ok(())
    }

    /// Reads on to the present, beyond the poll's end.
    async fn verify_ahead(&mut self, poll: &mut Poll<'_>) -> Result<(), CaptureError> {
        let nonce = self.heartbeat().await?;
        let mut ours = false;
        loop {
            let item = self.stream()?.read_ahead().await?;
            poll.verify(&item);
            match item {
                Item::Message { prefix, content } if prefix == HEARTBEAT => {
                    ours = content == nonce.as_bytes();
                }
                Item::Commit { end } if ours => {
                    self.quiet_at = Some(end);
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    pub(super) async fn change_at_now(
        &mut self,
        position: Position,
    ) -> Result<Option<Timestamp>, CaptureError> {
        let state = self.read_state().await?;
        self.end_stream().await?;
        self.open_stream(state.acknowledged).await?;
        let nonce = self.heartbeat().await?;
        let (mut found, mut ours) = (None, false);
        loop {
            match self.stream()?.next().await? {
                Item::Begin { position: at, at: time } if at == position => found = Some(time),
                Item::Begin { position: at, .. } if at > position => break,
                Item::Message { prefix, content } if prefix == HEARTBEAT => {
                    ours = content == nonce.as_bytes();
                }
                Item::Commit { .. } if ours => break,
                _ => {}
            }
        }
        // The next poll reads from the beginning.
        self.end_stream().await?;
        Ok(found)
    }
}
