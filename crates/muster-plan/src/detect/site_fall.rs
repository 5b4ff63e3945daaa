//! When the fall of a site began: the loss steps of all of its stores on one timeline.
//!
//! Times are the shards' own less their clock offset, so that steps of several shards compare. The rules that say
//! which steps are part of the fall are those of [`super`], `# The fall`.

use muster_types::Timestamp;

use super::DetectOptions;
use super::account::{SiteAccount, Step, StoreAccount};
use super::onset::{CONTINUOUS_SECONDS, SEVERAL_ROWS, WHOLE_SHARE, end_of, levels, start_of};

/// A script may pause this long between two stores that it empties.
const PAUSE_SECONDS: f64 = 120.0;
/// More than ordinary work takes at once, with what hangs on it.
const MANY_ROWS: i64 = 20;

/// What one segment did to one store, on the site's timeline.
struct Event {
    store: usize,
    /// None where a new history of a shard begins with other rows than the last one ended with.
    step: Option<usize>,
    start: Timestamp,
    end: Timestamp,
    uncertainty_micros: u64,
    /// Rows gained, Muster's own included.
    change: i64,
    /// Rows that others than Muster took, less what came.
    loss: i64,
    /// The same, whatever came.
    took: i64,
    /// What it took had come in the same poll.
    brief: bool,
    /// It left a store of several rows without one, or took half of one's rows, and many.
    drastic: bool,
    /// It left the store without a row.
    empties: bool,
    directory: bool,
}

impl Event {
    /// Its deletions follow each other closely.
    fn dense(&self) -> bool {
        self.end.seconds_since(self.start) <= CONTINUOUS_SECONDS * self.took as f64
    }
}

/// The stretch in which a site lost its rows.
pub(super) struct SiteFall<'a> {
    account: &'a SiteAccount<'a>,
    /// Its first loss: time on the timeline and the uncertainty of that, and the store's number.
    onset: (Timestamp, u64, usize),
    /// Steps that are part of it, by number of the store and of its step.
    members: Vec<(usize, usize)>,
}

impl<'a> SiteFall<'a> {
    /// None if nothing but Muster took rows.
    pub(super) fn find(account: &'a SiteAccount<'a>, options: &DetectOptions) -> Option<Self> {
        let events = timeline(account);
        let mut walk = Walk::new(&events, account.rows_before(), account.directory_lost())?;
        for number in (0..walk.first).rev() {
            let event = &events[number];
            // What came beside a deletion may hide that it was the first of the fall.
            let hidden = event.loss <= 0 && event.took > 0 && walk.continues(event);
            if hidden || (event.loss > 0 && walk.belongs(number, options)) {
                walk.add(number);
            }
        }
        let first = &events[walk.first];
        let place = |number: &usize| Some((events[*number].store, events[*number].step?));
        Some(Self {
            account,
            onset: (first.start, first.uncertainty_micros, first.store),
            members: walk.members.iter().filter_map(place).collect(),
        })
    }

    pub(super) fn holds(&self, store: usize, step: usize) -> bool {
        self.members.contains(&(store, step))
    }

    /// A step begins with the site's fall or behind it, as far as the clocks of two shards can tell.
    pub(super) fn reaches(&self, store: usize, step: &Step) -> bool {
        let (onset, onset_uncertainty, onset_store) = self.onset;
        let stores = &self.account.stores;
        let uncertainty = match stores[store].shard == stores[onset_store].shard {
            true => 0,
            false => onset_uncertainty + uncertainty_micros(&stores[store], step),
        };
        common_time(&stores[store], step, start_of(&stores[store], step)).plus_micros(uncertainty as i64)
            >= onset
    }
}

/// A time of the shard's clock as capture's clock had it.
fn common_time(store: &StoreAccount<'_>, step: &Step, at: Timestamp) -> Timestamp {
    at.plus_micros(-store.index.history.segments[step.segment as usize].clock_offset_micros.0)
}

fn uncertainty_micros(store: &StoreAccount<'_>, step: &Step) -> u64 {
    store.index.history.segments[step.segment as usize].clock_offset_micros.1
}

/// Everything that changed the site's number of rows, by time.
fn timeline(account: &SiteAccount<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    for (number, store) in account.stores.iter().enumerate() {
        events.extend(succession(account, number));
        let (levels, _) = levels(store);
        for (place, step) in store.steps.iter().enumerate() {
            let (held, loss) = (levels[place], step.net_loss);
            events.push(Event {
                store: number,
                step: Some(place),
                start: common_time(store, step, start_of(store, step)),
                end: common_time(store, step, end_of(store, step)),
                uncertainty_micros: uncertainty_micros(store, step),
                change: step.marked_gain - loss,
                loss,
                took: step.took(),
                brief: step.brief,
                drastic: (loss >= SEVERAL_ROWS && loss >= held) || (loss >= MANY_ROWS && loss * 2 >= held),
                empties: loss > 0 && loss >= held,
                directory: step.directory_loss > 0,
            });
        }
    }
    events.sort_by_key(|event| (event.start, event.store, event.step));
    events
}

/// Rows that a store has at the begin of a new history of its shard and had not at the end of the last one.
fn succession(account: &SiteAccount<'_>, number: usize) -> Option<Event> {
    let store = &account.stores[number];
    let began = store.index.points.first().filter(|_| !store.first)?;
    let same = |other: &&StoreAccount<'_>| other.shard == store.shard && other.kind == store.kind;
    let held = account.stores[..number].iter().rfind(same).map_or(0, StoreAccount::rows_after);
    Some(Event {
        store: number,
        step: None,
        start: began.at,
        end: began.at,
        uncertainty_micros: 0,
        change: store.rows_before as i64 - held as i64,
        loss: 0,
        took: 0,
        brief: false,
        drastic: false,
        empties: false,
        directory: false,
    })
}

/// Backwards from the last loss of a fall to its first.
struct Walk<'e> {
    events: &'e [Event],
    /// Rows of the site before each event.
    levels: Vec<i64>,
    /// The most that it had up to the last loss.
    most: i64,
    /// Those less what the last loss left.
    total: i64,
    members: Vec<usize>,
    first: usize,
    /// Rows that the members took.
    explained: i64,
    /// Rows that the earliest unbroken action took, as far as it is known.
    action: i64,
    /// The start of the dense part of that action.
    edge: Timestamp,
    /// The event that took the directory row for good.
    directory: Option<usize>,
}

impl<'e> Walk<'e> {
    fn new(events: &'e [Event], rows_before: u64, directory_lost: bool) -> Option<Self> {
        let mut levels = Vec::with_capacity(events.len());
        let mut rows = rows_before as i64;
        let (mut lowest, mut fewest) = (0, i64::MAX);
        for (number, event) in events.iter().enumerate() {
            levels.push(rows);
            rows += event.change;
            if rows <= fewest {
                (lowest, fewest) = (number, rows);
            }
        }
        let last = (0..events.len().min(lowest + 1)).rev().find(|number| events[*number].loss > 0)?;
        let most = levels[..=last].iter().copied().max().unwrap_or(0);
        let directory = events.iter().rposition(|event| event.directory).filter(|_| directory_lost);
        Some(Self {
            total: most - (levels[last] + events[last].change),
            most,
            levels,
            members: vec![last],
            first: last,
            explained: events[last].loss,
            action: events[last].loss,
            edge: events[last].start,
            events,
            directory,
        })
    }

    /// An earlier event is part of the fall.
    fn belongs(&self, number: usize, options: &DetectOptions) -> bool {
        let event = &self.events[number];
        // A store that comes and goes all the time goes with its site the last time at most.
        let behind = &self.events[number + 1..=self.members[0]];
        if event.brief && behind.iter().any(|later| later.brief && later.store == event.store) {
            return self.continues(event);
        }
        let gap = self.events[self.first].start.seconds_since(event.end);
        let notable = event.loss >= SEVERAL_ROWS && event.loss * 20 >= self.total;
        let alike = event.loss * 4 >= self.action || notable || event.empties;
        let not_whole = (self.levels[self.first] as f64) < WHOLE_SHARE * self.most as f64;
        let slow = self.explained * 2 < self.total;
        self.continues(event)
            || (gap <= options.burst_gap_seconds && alike)
            || (gap <= PAUSE_SECONDS && event.drastic)
            || (not_whole && (notable || slow))
            || self.directory == Some(number)
    }

    fn continues(&self, event: &Event) -> bool {
        self.edge.seconds_since(event.end) <= CONTINUOUS_SECONDS
    }

    fn add(&mut self, number: usize) {
        let event = &self.events[number];
        let (continues, loss) = (self.continues(event), event.loss.max(0));
        self.action = if continues { self.action + loss } else { loss };
        // Ordinary deletions that stand in one poll with the first of the script's do not lead on to earlier ones.
        if !continues || event.dense() {
            self.edge = self.edge.min(event.start);
        }
        self.members.push(number);
        self.first = number;
        self.explained += loss;
    }
}
