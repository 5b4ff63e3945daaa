//! Which layout the log is to be read with, and what the shard remembers of it.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::Position;

use super::PostgresSource;
use crate::capture::{CaptureError, Polled};
use crate::postgres::capture::error::explain;
use crate::postgres::capture::layout::{self, Layout, Signature};
use crate::postgres::capture::poll::Watch;
use crate::postgres::capture::{install, state};

/// Looks at tables that are altered again and again: two statements of a migration may lie between, not a hundred.
const LOOKS_MAX: u32 = 20;

/// The tables at both ends of a poll.
pub(super) struct Layouts {
    /// At its beginning, where that is known and not the same as `newest`.
    pub(super) before: Option<Layout>,
    /// At its end.
    pub(super) newest: Layout,
    /// `newest` is known to hold at its beginning, too.
    pub(super) same: bool,
    /// Of the heartbeat that stands behind every change of a table that `newest` has.
    pub(super) nonce: String,
}

impl PostgresSource {
    /// The tables behind `after` and now. Takes what is known of them: a poll that fails leaves nothing.
    pub(super) async fn layouts(&mut self, after: Position, nonce: String) -> Result<Layouts, CaptureError> {
        let before = self.layout_at(after).await?;
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        let failed = |error| explain(&config, "look at its tables", &error);
        let now = layout::fingerprint(client, &name).await.map_err(failed)?;
        let before = match before {
            Some(before) if before.fingerprint == now && before.is_published() => {
                return Ok(Layouts { before: None, newest: before, same: true, nonce });
            }
            other => other,
        };
        let (newest, nonce) = self.newest_layout().await?;
        let nothing = BTreeSet::new();
        let same = before.as_ref().is_some_and(|before| newest.continues(before, &nothing, &nothing));
        Ok(Layouts { before: before.filter(|_| !same), newest, same, nonce })
    }

    /// The tables as they are, new ones published, and a heartbeat behind whatever made them so.
    async fn newest_layout(&mut self) -> Result<(Layout, String), CaptureError> {
        let name = self.name.clone();
        for _ in 0..LOOKS_MAX {
            let mut layout = self.read_layout().await?;
            let (config, client) = self.client().await?;
            let published = install::publish(client, &name, &layout).await;
            if published.map_err(|error| explain(&config, "bring its publication in line", &error))? {
                layout = self.read_layout().await?;
            }
            let nonce = self.heartbeat().await?;
            if self.is_current(&layout).await? {
                return Ok((layout, nonce));
            }
        }
        Err(CaptureError::transient(
            format!("shard `{}`: its tables are altered all the time", self.shard),
            "capture tries again",
        ))
    }

    /// The tables are still as `layout` has them.
    async fn is_current(&mut self, layout: &Layout) -> Result<bool, CaptureError> {
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        let now = layout::fingerprint(client, &name).await;
        Ok(now.map_err(|error| explain(&config, "look at its tables", &error))? == layout.fingerprint)
    }

    /// Parent rows that were looked up just now are those that `before` knew. Of tables that were `emptied`, and nothing
    /// else, the log tells which these are.
    pub(super) async fn look_ups_hold(
        &mut self,
        before: &Layout,
        newest: &Layout,
        emptied: Option<&BTreeSet<usize>>,
    ) -> Result<bool, CaptureError> {
        let nothing = BTreeSet::new();
        if self.is_current(newest).await? {
            return Ok(newest.looks_up_like(before, emptied.unwrap_or(&nothing)));
        }
        Ok(self.read_layout().await?.looks_up_like(before, &nothing))
    }

    async fn layout_at(&mut self, at: Position) -> Result<Option<Layout>, CaptureError> {
        for known in [self.layout.take(), self.snapshot_layout.take()] {
            if let Some((position, layout)) = known
                && position == at
            {
                return Ok(Some(layout));
            }
        }
        let (config, client) = self.client().await?;
        let found = state::read_layout(client, at).await;
        let found = found.map_err(|error| explain(&config, "read its capture state", &error))?;
        // Of another topology it says nothing.
        Ok(found.filter(|layout| layout.declared == layout::declaration(&self.declared)))
    }

    /// What the last acknowledged segment knew.
    pub(super) async fn known_tables(&mut self) -> Result<BTreeMap<String, Signature>, CaptureError> {
        if let Some(known) = &self.known {
            return Ok(known.clone());
        }
        let (config, client) = self.client().await?;
        let found = state::read_known(client).await;
        let found = found.map_err(|error| explain(&config, "read its capture state", &error))?;
        self.known = Some(found.clone());
        Ok(found)
    }

    /// `layout` holds at the end of what was delivered.
    pub(super) fn note_layout(&mut self, polled: &Polled, layout: Layout) {
        let position = polled.boundary.position;
        self.delivered = Some((position, state::known_of(&layout)));
        self.layout = Some((position, layout));
    }

    /// What a poll from tables as `known` to those of `newest` holds DDL against.
    pub(super) async fn watch(&mut self, newest: &Layout) -> Result<Watch, CaptureError> {
        let known = self.known_tables().await?;
        let leaving = known.iter().filter(|(_, signature)| newest.by_oid(signature.oid()).is_none());
        let leaving =
            leaving.map(|(name, signature)| (signature.oid(), (name.clone(), self.kind_of(newest, name))));
        let parts = |signature: &Signature| signature.parts().chain([signature.oid()]).collect::<Vec<_>>();
        let now = newest.tables.iter().map(|table| &table.signature);
        Ok(Watch {
            leaving: leaving.collect(),
            concerned: known.values().chain(now).flat_map(parts).collect(),
            declared: self.declared.clone(),
            judged: false,
            pending: false,
        })
    }

    /// What the shard has to remember once everything up to `upto` is durable: JSON, if it is new, and what tells it from
    /// others.
    pub(super) fn layout_to_remember(&self, upto: Position) -> (Option<String>, Option<String>) {
        let Some((_, layout)) = self.layout.as_ref().filter(|(position, _)| *position == upto) else {
            return (None, None);
        };
        let identity = layout.identity();
        if self.remembered.as_ref() == Some(&identity) {
            return (None, Some(identity));
        }
        // A struct of numbers and texts has no value that JSON cannot hold.
        (serde_json::to_string(layout).ok(), Some(identity))
    }

    /// Lets the shard remember the layout at `at`.
    pub(super) async fn remember_layout(&mut self, at: Position) -> Result<(), CaptureError> {
        let (text, identity) = self.layout_to_remember(at);
        let (config, client) = self.client().await?;
        let written = state::write_layout(client, at, text.as_deref()).await;
        written.map_err(|error| explain(&config, "note its tables", &error))?;
        self.remembered = identity;
        Ok(())
    }
}
