//! Polls that end where a DDL changes what the log's rows mean.
//!
//! What lies before is read with the tables as they were, and every commit of it is a recovery point. What lies behind
//! the DDL is the next poll's.
//!
//! # Invariants
//! - While the tables at the beginning are not those of now, nothing reaches the sink before the poll's end: if it turns
//!   out that the log does not tell everything, all of it is read once more, with the tables of now.

use muster_types::{Boundary, Position};

use super::PostgresSource;
use super::layouts::Layouts;
use super::reading::Whole;
use crate::capture::{CaptureError, ChangeSink, Polled};
use crate::postgres::capture::ddl::{DDL, Ddl, Effect};
use crate::postgres::capture::layout::Layout;
use crate::postgres::capture::poll::Poll;
use crate::postgres::capture::stream::Item;

/// Where an exact reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// At the heartbeat.
    Now,
    /// Before a transaction whose DDL ends the layout.
    Ddl,
    /// Where memory is full.
    Full,
}

/// What came of an exact reading.
enum Exact {
    /// With the tables at its end, if they are not those of now.
    Polled(Polled, Option<Box<Layout>>),
    /// It begins with such a DDL; nothing lies before it but what nobody needs, up to here.
    AtDdl(Boundary),
    /// It cannot be exact.
    Impossible(String),
}

/// One exact reading.
struct Reading<'l> {
    layout: &'l Layout,
    newest: &'l Layout,
    nonce: &'l str,
    after: Boundary,
    watermark: bool,
}

impl Reading<'_> {
    /// The tables at its beginning are not those of now.
    fn is_pending(&self) -> bool {
        !std::ptr::eq(self.layout, self.newest)
    }
}

impl PostgresSource {
    /// A poll whose ends have these tables.
    pub(super) async fn poll_between(
        &mut self,
        layouts: Layouts,
        after: Boundary,
        watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        let Layouts { before, newest, same, nonce } = layouts;
        let layout = before.as_ref().unwrap_or(&newest);
        let (mut from, mut coarse) = (after, false);
        if before.is_some() || same {
            let reading = Reading { layout, newest: &newest, nonce: &nonce, after, watermark };
            match self.poll_exactly(&reading, sink).await? {
                Exact::Polled(polled, layout) => {
                    let layout = layout.map_or(newest, |layout| *layout);
                    self.note_layout(&polled, layout);
                    return Ok(polled);
                }
                Exact::AtDdl(reached) => from = reached,
                Exact::Impossible(reason) => {
                    tracing::info!(
                        "shard `{}`: only the end of this poll is a recovery point: {reason}",
                        self.shard
                    );
                    coarse = true;
                    self.end_stream().await?;
                    self.open_stream(after.position).await?;
                }
            }
        }
        self.poll_whole(newest, &nonce, (after, from), Whole { watermark, coarse }, sink).await
    }

    async fn poll_exactly(
        &mut self,
        reading: &Reading<'_>,
        sink: &mut dyn ChangeSink,
    ) -> Result<Exact, CaptureError> {
        let Reading { layout, newest, after, .. } = *reading;
        let mut watch = self.watch(newest).await?;
        (watch.judged, watch.pending) = (true, reading.is_pending());
        let mut poll = Poll::new(layout, after, watch, sink);
        let reached = match self.read_exactly(reading, &mut poll).await? {
            Ok(reached) => reached,
            Err(reason) => return Ok(Exact::Impossible(reason)),
        };
        if reached == Reached::Ddl && poll.is_empty() {
            return Ok(Exact::AtDdl(poll.reached()));
        }
        if reading.is_pending() {
            if let Some(reason) = self.obstacle(reading, reached, &mut poll).await? {
                return Ok(Exact::Impossible(reason));
            }
        } else {
            self.compare_with_known(layout, &mut poll).await?;
            self.settle(layout, &mut poll).await?;
        }
        let is_newest = reached == Reached::Now || !reading.is_pending();
        let (mut polled, (dropped, emptied)) = self.conclude(layout, poll, after, reading.watermark).await?;
        polled.more = reached != Reached::Now;
        let at_end = (!is_newest).then(|| Box::new(layout.clone().behind(&dropped, &emptied)));
        Ok(Exact::Polled(polled, at_end))
    }

    /// Finds the owners of all changes; gives why not everything is told by the log and the live tables.
    async fn obstacle(
        &mut self,
        reading: &Reading<'_>,
        reached: Reached,
        poll: &mut Poll<'_>,
    ) -> Result<Option<String>, CaptureError> {
        let Reading { layout, newest, .. } = *reading;
        if let Err(error) = self.settle(layout, poll).await {
            // The tables that rows would be looked up in may be gone. A lost connection meets the next attempt, too.
            return Ok(Some(format!("owners of rows cannot be looked up any more: {error}")));
        }
        if let Some((table, reason)) = poll.rereads().iter().next() {
            return Ok(Some(format!("`{}` has to be read again: {reason}", layout.tables[*table].name())));
        }
        let (dropped, emptied) = poll.whole_tables();
        let truncated = (reached == Reached::Now).then_some(emptied);
        if poll.owners.looked_up && !self.look_ups_hold(layout, newest, truncated).await? {
            return Ok(Some("a table was altered that owns rows of others".to_owned()));
        }
        if reached == Reached::Now && !newest.continues(layout, dropped, emptied) {
            return Ok(Some("its tables changed without a DDL in the log".to_owned()));
        }
        Ok(None)
    }

    /// Reads up to the heartbeat, or to a DDL behind which the layout does not fit; or gives why that cannot be.
    async fn read_exactly(
        &mut self,
        reading: &Reading<'_>,
        poll: &mut Poll<'_>,
    ) -> Result<Result<Reached, String>, CaptureError> {
        let pending = reading.is_pending();
        let mut judged = true;
        loop {
            if poll.is_between() {
                let (ends, whole) = self.judge_next(reading.layout, poll).await?;
                if ends {
                    return Ok(Ok(Reached::Ddl));
                }
                judged = whole;
            }
            let item = self.stream()?.next().await?;
            if !judged && self.effect(&item, reading.layout, poll) != Effect::None {
                if pending {
                    return Ok(Err("a large transaction has DDL in it".to_owned()));
                }
                poll.be_coarse();
            }
            if let Some(committed) = poll.take(item)? {
                self.quiet_at = Some(committed.end);
                if committed.heartbeat.as_deref() == Some(reading.nonce) {
                    return Ok(Ok(Reached::Now));
                }
            }
            match (poll.is_over_budget(), pending, poll.is_between()) {
                (false, ..) => {}
                (true, true, true) => return Ok(Ok(Reached::Full)),
                (true, true, false) => {
                    return Ok(Err("a transaction near DDL does not fit into memory".to_owned()));
                }
                (true, false, _) => self.make_room(reading.layout, poll).await?,
            }
        }
    }

    /// Whether the next transaction ends the layout, and whether that is sure.
    async fn judge_next(&mut self, layout: &Layout, poll: &Poll<'_>) -> Result<(bool, bool), CaptureError> {
        let reached = poll.reached().position;
        let declared = |name: &str| self.declared.get(name).is_some();
        let stream = self.stream.as_mut().ok_or_else(PostgresSource::session_lost)?;
        let ahead = stream.next_transaction().await?;
        if ahead.position.is_none_or(|position: Position| position <= reached) {
            return Ok((false, true));
        }
        let mut ends = false;
        for item in ahead.items {
            ends |= effect_of(item, layout, &declared, poll) == Effect::Reshapes;
        }
        Ok((ends, ahead.whole))
    }

    fn effect(&self, item: &Item, layout: &Layout, poll: &Poll<'_>) -> Effect {
        effect_of(item, layout, &|name| self.declared.get(name).is_some(), poll)
    }
}

fn effect_of(item: &Item, layout: &Layout, declared: &impl Fn(&str) -> bool, poll: &Poll<'_>) -> Effect {
    match item {
        Item::Message { prefix, content } if prefix == DDL => {
            Ddl::read(content).effect(layout, declared, |table| poll.was_truncated(table))
        }
        _ => Effect::None,
    }
}
