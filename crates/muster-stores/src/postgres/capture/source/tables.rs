//! The tables as they are now, and what changed about them without a word in the log.

use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::{Kind, ShardName, Timestamp};

use super::PostgresSource;
use crate::capture::CaptureError;
use crate::postgres::capture::error::explain;
use crate::postgres::capture::layout::{self, Layout};
use crate::postgres::capture::poll::Poll;

impl PostgresSource {
    pub(super) async fn read_layout(&mut self) -> Result<Layout, CaptureError> {
        let (name, declared) = (self.name.clone(), self.declared.clone());
        let (config, client) = self.client().await?;
        let found = layout::read(client, &name, &declared).await;
        found.map_err(|error| explain(&config, "read its tables", &error))
    }

    /// What changed since the last acknowledged segment without a word in the log.
    pub(super) async fn compare_with_known(
        &mut self,
        layout: &Layout,
        poll: &mut Poll<'_>,
    ) -> Result<(), CaptureError> {
        let known = self.known_tables().await?;
        for (table, captured) in layout.tables.iter().enumerate() {
            let reason = match known.get(captured.name()) {
                None => Some("it is captured from now on"),
                Some(before) => {
                    captured.signature.change_since(before, poll.was_truncated(table), poll.created())
                }
            };
            if let Some(reason) = reason {
                poll.read_again(table, reason);
            }
        }
        for name in known.keys().filter(|name| layout.by_name(name).is_none()) {
            if !poll.has_left(name) {
                poll.add_event(self.gone_event(layout, name, poll.reached().at));
            }
        }
        Ok(())
    }

    fn gone_event(&self, layout: &Layout, name: &str, at: Timestamp) -> TableEvent {
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
        let kind = self.kind_of(layout, name);
        TableEvent { table: name.to_owned(), kind, event, at, position: None, reason }
    }

    /// The kind of a table that was captured.
    pub(super) fn kind_of(&self, layout: &Layout, name: &str) -> Kind {
        let declared = self.declared.get(name).map(|config| config.kind.clone());
        declared.unwrap_or_else(|| any_kind(layout))
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
