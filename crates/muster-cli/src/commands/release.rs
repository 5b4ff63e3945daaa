//! `muster capture release`: databases of one site are captured no longer.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use muster_capture::{Events, Released};
use muster_types::SiteId;

use crate::commands::capture::{installed, say};
use crate::context::Context;
use crate::exit;
use crate::topology_place::TopologyPlace;

pub(crate) async fn run(place: &TopologyPlace, site: &str) -> Result<ExitCode> {
    let site: SiteId = site.parse().map_err(exit::input)?;
    let topology = crate::context::topology(place).await?;
    let shards = muster_capture::databases_of(&topology, &site);
    if shards.is_empty() {
        return Err(exit::input(format!(
            "{site} has no database of its own: no shard of the topology has `site = \"{}\"`, and no family lists it; \
             where sites share a shard, there is nothing to release",
            site.as_str()
        )));
    }
    let context = Context::open_or_create(place).await?;
    let events: Events = Arc::new(|event| say(&event));
    let done = muster_capture::release(&context.repository, &topology, &shards, &events).await;
    installed(&done, told)
}

fn told(released: &Released) -> String {
    match released {
        Released { ends_at: None, .. } => {
            "was never captured, and nothing of Muster is in it; it can be dropped".to_owned()
        }
        Released { ends_at: Some(at), before: false } => format!(
            "released: it can be dropped; its recovery points end at {at}, and `muster detect` lists the site once its \
             database is gone"
        ),
        Released { ends_at: Some(at), before: true } => {
            format!("was released before: it can be dropped; its recovery points end at {at}")
        }
    }
}
