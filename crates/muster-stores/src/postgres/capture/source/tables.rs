//! The tables as they are now, and what changed about them without a word in the log.

use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::{Kind, ShardName, Timestamp};

use super::PostgresSource;
use crate::capture::CaptureError;
use crate::postgres::capture::error::explain;
use crate::postgres::capture::layout::{self, Layout};
use crate::postgres::capture::poll::Poll;
use crate::postgres::capture::{install, state};

impl PostgresSource {
    pub(super) async fn read_layout(&mut self) -> Result<Layout, CaptureError> {
        let (name, declared) = (self.name.clone(), self.declared.clone());
        let (config, client) = self.client().await?;
        let found = layout::read(client, &name, &declared).await;
        found.map_err(|error| explain(&config, "read its tables", &error))
    }

    /// The tables as they are now, read again if anything about them has changed; new ones are published.
    pub(super) async fn current_layout(&mut self) -> Result<Layout, CaptureError> {
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        let now = layout::fingerprint(client, &name).await;
        let now = now.map_err(|error| explain(&config, "look at its tables", &error))?;
        if let Some(layout) = self.layout.take()
            && layout.fingerprint == now
        {
            return Ok(layout);
        }
        let layout = self.read_layout().await?;
        let (config, client) = self.client().await?;
        let published = install::publish(client, &name, &layout).await;
        if published.map_err(|error| explain(&config, "bring its publication in line", &error))? {
            return self.read_layout().await;
        }
        Ok(layout)
    }

    /// What changed since the last acknowledged segment without a word in the log.
    pub(super) async fn compare_with_known(
        &mut self,
        layout: &Layout,
        poll: &mut Poll<'_>,
    ) -> Result<(), CaptureError> {
        let known = match self.known.take() {
            Some(known) => known,
            None => {
                let (config, client) = self.client().await?;
                let found = state::read_known(client).await;
                found.map_err(|error| explain(&config, "read its capture state", &error))?
            }
        };
        for (table, captured) in layout.tables.iter().enumerate() {
            let reason = match known.get(captured.name()) {
                None => Some("it is captured from now on"),
                Some(before) => captured.signature.change_since(before, poll.was_truncated(table)),
            };
            if let Some(reason) = reason {
                poll.read_again(table, reason);
            }
        }
        for name in known.keys().filter(|name| layout.by_name(name).is_none()) {
            poll.add_event(self.gone_event(layout, name, poll.reached().at));
        }
        self.known = Some(known);
        Ok(())
    }

    fn gone_event(&self, layout: &Layout, name: &str, at: Timestamp) -> TableEvent {
        let declared = self.declared.get(name).map(|config| config.kind.clone());
        let (event, reason) = match layout.refused.get(name) {
            Some(reason) => (TableEventKind::Undeclared, format!("it cannot be captured any more: {reason}")),
            None if layout.misnamed.contains_key(name) => {
                (TableEventKind::Undeclared, format!("it is of no site any more: {}", layout.misnamed[name]))
            }
            None if layout.undeclared.iter().any(|table| table == name) => {
                (TableEventKind::Undeclared, "the topology does not declare it any more".to_owned())
            }
            None => (TableEventKind::Dropped, "it is gone".to_owned()),
        };
        let kind = declared.unwrap_or_else(|| any_kind(layout));
        TableEvent { table: name.to_owned(), kind, event, at, position: None, reason }
    }
}

pub(super) fn altered_unless(same: bool, shard: &ShardName) -> Result<(), CaptureError> {
    if same {
        return Ok(());
    }
    Err(CaptureError::transient(
        format!("shard `{shard}`: its tables were altered while capture looked at them"),
        "capture tries again",
    ))
}

/// Tables that are there and not captured.
pub(super) fn unnamed(layout: &Layout) -> Vec<String> {
    layout.undeclared.iter().chain(layout.refused.keys()).cloned().collect()
}

/// The kind of an undeclared table is not known; the event is filed under that of the shard's first table.
fn any_kind(layout: &Layout) -> Kind {
    let any = layout.tables.first().map(|table| table.table.kind.clone());
    #[expect(clippy::expect_used, reason = "a fixed, valid name")]
    any.unwrap_or_else(|| "metadata".parse().expect("a valid kind"))
}

pub(super) fn undeclared_event(layout: &Layout, name: &str, at: Timestamp) -> TableEvent {
    let reason = match layout.refused.get(name) {
        Some(reason) => format!("it cannot be captured: {reason}"),
        None => match layout.misnamed.get(name) {
            Some(reason) => format!("it is of no site: {reason}"),
            None => "it is in the shard, and the topology does not declare it".to_owned(),
        },
    };
    let event = TableEventKind::Undeclared;
    TableEvent { table: name.to_owned(), kind: any_kind(layout), event, at, position: None, reason }
}
