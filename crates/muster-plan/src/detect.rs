//! Which sites lost what, and when: read from the index of the change log, without reading a row.
//!
//! A site is *lost* when, over the window, changes that Muster did not make took its directory row, or more than a
//! share of its rows. Changes net out: a row that was deleted and inserted again, in any shard, is not lost, nor is a
//! row that went to another site. What Muster's own publishes and roll-backs removed is listed apart.
//!
//! Per store the *onset* is the start of the fall that it did not come back from; the store's recovery point is the
//! last one before it. Rows that were deleted earlier in the window, in ordinary work, do not move the onset.
//!
//! # The fall
//! It is found for the site first, since the stores of a site are deleted together, and one row less says nothing
//! about a store of three. The losses of all stores stand on one timeline; the fall ends with the last loss that left
//! the site with the fewest rows, and from there an earlier loss is part of it if one of these holds:
//!
//! - it is 0.2 s or less before: one action, cut by a poll or spread over stores; so is a deletion whose poll gave the store
//!   as many rows;
//! - it is at most [`DetectOptions::burst_gap_seconds`] before, and alike: a quarter of the action that follows, a
//!   twentieth of all (and several rows, that is four), or it emptied its store;
//! - it is at most two minutes before and emptied a store of several rows, or took half of one's rows, twenty at
//!   least: a script that goes product by product and pauses. Ordinary work does not do that; whatever it does in the
//!   pauses is passed over;
//! - it took the directory row for good;
//! - the site had less than 80 % of its most rows when the fall, as known so far, began, and either the loss is a
//!   twentieth of all, or that fall accounts for less than half of what is gone: a slow deletion.
//!
//! The earliest is the site's onset. A store's fall begins with its first loss at or behind it (less the uncertainty
//! of the clocks, between shards), except that losses more than the burst gap before the rest of the store's fall,
//! which left it with 80 % of its rows, are ordinary work in a pause. A store that fell apart from its site (an app
//! that was removed an hour before) is judged by itself; if it lost but a few rows so, it is left as it was at the
//! site's onset.
//!
//! # Invariants
//! - Granularity is that of the index: a frame counts as a whole. The onset's position is exact in the frame that it
//!   falls into, or earlier in it: at the first commit of the frame that deleted. Where a poll is the recovery point,
//!   the one before is the same either way; where commits are, an ordinary deletion of the site in the same table and
//!   poll moves the onset to itself, earlier by at most that poll.
//! - A store that came and went within the window lost nothing by the net. It is part of the loss if it went with its
//!   site, even where both stand in one frame: if the log has commits, the frame is taken for rows that came first and
//!   went then. One that comes and goes all the time went with its site the last time at most.
//! - A truncated or dropped table counts as a loss of every site that had rows in it, at the event's position if the
//!   log knows it, else at the end of the segment before.
//!
//! # Not here
//! Names, tiers and customers of the sites found; whether they are alive now.

mod account;
mod onset;
mod site_fall;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::Catalog;
use muster_types::format::FORMAT;
use muster_types::incident::{BeforePosition, Incident, IncidentSite};
use muster_types::segment::{Mark, TableEventKind};
use muster_types::topology::Topology;
use muster_types::{Boundary, Kind, ShardName, SiteId, Timestamp};

use crate::index::CatalogIndex;
use account::{SiteAccount, StoreAccount};
use onset::{Course, Fall};
use site_fall::SiteFall;

/// What counts as lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectOptions {
    /// A site has lost its rows when more than this share of them is gone.
    pub lost_share: f64,
    /// The fall of a store reaches back over deletions that follow each other this closely.
    pub burst_gap_seconds: f64,
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self { lost_share: 0.5, burst_gap_seconds: 5.0 }
    }
}

/// What a window of the log shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detection {
    /// Sites that are lost, by the time of their first loss.
    pub lost: Vec<DetectedSite>,
    /// Rows that Muster itself removed, by site.
    pub marked: Vec<MarkedLoss>,
    /// Tables that were dropped, truncated or read again whole.
    pub table_losses: Vec<TableLoss>,
}

/// A site that lost its directory row or most of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectedSite {
    /// The site.
    pub site: SiteId,
    /// Its directory row is gone.
    pub directory_row: bool,
    /// Rows before the window, over all of its stores.
    pub rows_before: u64,
    /// Rows at the end of it.
    pub rows_after: u64,
    /// When the loss began.
    pub first_loss_at: Timestamp,
    /// When it ended.
    pub last_loss_at: Timestamp,
    /// Its stores that lost rows.
    pub stores: Vec<DetectedStore>,
}

/// A store that lost rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectedStore {
    /// Its kind.
    pub kind: Kind,
    /// The shard.
    pub shard: ShardName,
    /// Rows before the window.
    pub rows_before: u64,
    /// Rows at the end of it.
    pub rows_after: u64,
    /// When its loss began.
    pub first_loss_at: Timestamp,
    /// When it ended.
    pub last_loss_at: Timestamp,
    /// The first commit that deleted, or took a whole table; none where the log does not know the place of the latter.
    pub before: Option<BeforePosition>,
    /// The last recovery point before it.
    pub reached: Option<Boundary>,
}

/// Rows that Muster removed: a roll-back, a clean-up, an overwrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedLoss {
    /// The site.
    pub site: SiteId,
    /// The shard.
    pub shard: ShardName,
    /// The kind.
    pub kind: Kind,
    /// What did it.
    pub mark: Mark,
    /// Rows removed.
    pub rows: u64,
    /// When the first went.
    pub first_at: Timestamp,
    /// When the last went.
    pub last_at: Timestamp,
}

/// Something that happened to a whole table within the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLoss {
    /// The shard.
    pub shard: ShardName,
    /// The table.
    pub table: String,
    /// What happened.
    pub event: TableEventKind,
    /// The last moment it can have happened.
    pub at: Timestamp,
    /// In words.
    pub reason: String,
    /// Of a table that was dropped or truncated: the sites that had rows in it, and how many.
    pub sites: BTreeMap<SiteId, u64>,
}

/// Reads the log between `from` and `to`, both included. The catalog must hold every site of interest.
pub fn detect(
    topology: &Topology,
    catalog: &Catalog,
    from: Timestamp,
    to: Timestamp,
    options: &DetectOptions,
) -> Detection {
    let index = CatalogIndex::new(catalog);
    let moves = account::Moves::new(&index);
    let mut detection = Detection { table_losses: table_losses(catalog, from, to), ..Detection::default() };
    for (site, history) in &catalog.sites {
        let account = SiteAccount::new(topology, &index, &moves, site, history, from, to);
        detection.marked.extend(account.marked(site));
        for (shard, event, rows) in &account.whole_tables {
            let mut losses = detection.table_losses.iter_mut();
            let of_event = |loss: &&mut TableLoss| {
                (&loss.shard, &loss.table, loss.event, loss.at)
                    == (*shard, &event.table, event.event, event.at)
            };
            if let Some(loss) = losses.find(of_event) {
                *loss.sites.entry(site.clone()).or_default() += rows;
            }
        }
        detection.lost.extend(judge(site, &account, options));
    }
    detection.lost.sort_by(|a, b| (a.first_loss_at, &a.site).cmp(&(b.first_loss_at, &b.site)));
    detection
}

impl Detection {
    /// The incident to plan from: every lost site, each with its own target just before its own loss.
    pub fn incident(&self, title: &str, id_source: &str, declared_at: Timestamp) -> Incident {
        Incident {
            format: FORMAT,
            title: title.to_owned(),
            declared_at,
            id_source: id_source.to_owned(),
            sites: self.lost.iter().map(DetectedSite::incident_site).collect(),
        }
    }
}

impl DetectedSite {
    /// Its entry in an incident.
    pub fn incident_site(&self) -> IncidentSite {
        let before: BTreeMap<Kind, BeforePosition> = self
            .stores
            .iter()
            .filter_map(|store| Some((store.kind.clone(), store.before.clone()?)))
            .collect();
        // A store without a position comes back by time: to before its table was lost.
        let by_time =
            self.stores.iter().filter(|store| store.before.is_none()).filter_map(|store| store.reached);
        let earliest = by_time.map(|reached| reached.at).min();
        let just_before = self.first_loss_at.plus_micros(-1);
        let what = if self.directory_row { "lost its directory row and " } else { "lost " };
        let rows = self.rows_before.saturating_sub(self.rows_after);
        IncidentSite {
            site: self.site.clone(),
            target: earliest.map_or(just_before, |earliest| earliest.min(just_before)),
            outage_at: Some(self.first_loss_at),
            before,
            note: Some(format!("{what}{rows} of {} rows", self.rows_before)),
        }
    }
}

fn judge(site: &SiteId, account: &SiteAccount<'_>, options: &DetectOptions) -> Option<DetectedSite> {
    let (before, after) = (account.rows_before(), account.rows_after());
    let directory_row = account.directory_lost();
    let most_rows = account.net_loss() as f64 > options.lost_share * before as f64
        && before.saturating_sub(after) as f64 > options.lost_share * before as f64;
    if before == 0 || !(directory_row || most_rows) {
        return None;
    }
    let stores = detected_stores(account, options);
    let first_loss_at = stores.iter().map(|store| store.first_loss_at).min()?;
    let last_loss_at = stores.iter().map(|store| store.last_loss_at).max()?;
    Some(DetectedSite {
        site: site.clone(),
        directory_row,
        rows_before: before,
        rows_after: after,
        first_loss_at,
        last_loss_at,
        stores,
    })
}

/// The stores that fell. Those that lost a few rows apart from the rest count only if there are no others.
fn detected_stores(account: &SiteAccount<'_>, options: &DetectOptions) -> Vec<DetectedStore> {
    let Some(site) = SiteFall::find(account, options) else { return Vec::new() };
    let (mut stores, mut ordinary) = (Vec::new(), Vec::new());
    for (number, store) in account.stores.iter().enumerate() {
        match onset::course(account, number, &site, options) {
            Some(Course::WithSite(fall) | Course::Alone(fall)) => stores.push(detected_store(store, &fall)),
            Some(Course::Ordinary(fall)) => ordinary.push(detected_store(store, &fall)),
            None => {}
        }
    }
    if stores.is_empty() { ordinary } else { stores }
}

fn detected_store(store: &StoreAccount<'_>, fall: &Fall) -> DetectedStore {
    DetectedStore {
        kind: store.kind.clone(),
        shard: store.shard.clone(),
        rows_before: store.rows_before,
        rows_after: store.rows_after(),
        first_loss_at: fall.first_at,
        last_loss_at: fall.last_at,
        before: fall.position.map(|position| BeforePosition {
            shard: store.shard.clone(),
            incarnation: store.incarnation.clone(),
            position,
        }),
        reached: fall.reached,
    }
}

fn table_losses(catalog: &Catalog, from: Timestamp, to: Timestamp) -> Vec<TableLoss> {
    let mut losses = Vec::new();
    let mut seen = BTreeSet::new();
    for (shard, history) in &catalog.shards {
        let segments = history.incarnations.iter().flat_map(|incarnation| &incarnation.segments);
        for event in segments.flat_map(|segment| &segment.table_events) {
            let inside = from <= event.at && event.at <= to && event.event != TableEventKind::Undeclared;
            if inside && seen.insert((shard, &event.table, event.event as u8, event.at)) {
                losses.push(TableLoss {
                    shard: shard.clone(),
                    table: event.table.clone(),
                    event: event.event,
                    at: event.at,
                    reason: event.reason.clone(),
                    sites: BTreeMap::new(),
                });
            }
        }
    }
    losses
}
