//! The slot's stream of changes.
//!
//! The session is kept between polls; what was read ahead of a poll's end waits in memory for the next one.
//!
//! # Invariants
//! - The slot moves only when told so ([`Stream::acknowledge`]).
//! - What is read ahead is bounded: beyond it, it is forgotten and the session ended; the slot gives it again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use muster_rows::{Row, RowBuilder};
use muster_types::{Position, Timestamp};
use pgwire_replication::{Lsn, ReplicationEvent};

use super::error::explain_replication;
use super::pgoutput::{self, Message, OldImage, Relation};
use super::session::{Ended, SILENCE_MAX, Session};
use crate::capture::CaptureError;
use crate::postgres::connect::PostgresConfig;

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Rows read ahead that are kept: what writers bring in the moments between two looks of one poll.
const AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The log, item by item.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Begin {
        /// Start of the commit record.
        position: Position,
        at: Timestamp,
    },
    Insert {
        relation: Arc<Relation>,
        new: Row,
    },
    Update {
        relation: Arc<Relation>,
        old: Option<OldImage>,
        new: Row,
    },
    Delete {
        relation: Arc<Relation>,
        old: OldImage,
    },
    Truncate {
        relations: Vec<Arc<Relation>>,
    },
    Message {
        prefix: String,
        content: Bytes,
    },
    Commit {
        /// Behind the commit record.
        end: u64,
    },
}

impl Item {
    fn bytes(&self) -> usize {
        let rows = match self {
            Self::Insert { new, .. } => new.heap_bytes(),
            Self::Update { old, new, .. } => {
                new.heap_bytes() + old.as_ref().map_or(0, |old| old.row.heap_bytes())
            }
            Self::Delete { old, .. } => old.row.heap_bytes(),
            Self::Message { content, .. } => content.len(),
            Self::Begin { .. } | Self::Truncate { .. } | Self::Commit { .. } => 0,
        };
        size_of::<Self>() + rows
    }
}

/// A transaction that was not taken yet.
pub(super) struct Ahead<'s> {
    pub(super) position: Option<Position>,
    pub(super) items: std::iter::Take<std::collections::vec_deque::Iter<'s, Item>>,
    pub(super) whole: bool,
}

/// One session.
pub(super) struct Stream {
    config: PostgresConfig,
    session: Session,
    relations: HashMap<u32, Arc<Relation>>,
    rows: RowBuilder,
    ahead: VecDeque<Item>,
    ahead_bytes: usize,
    /// Something read ahead was forgotten: this session cannot be gone on with.
    forgetful: bool,
}

impl Stream {
    /// Streams `slot` from behind what was `acknowledged`.
    pub(super) async fn open(
        config: &PostgresConfig,
        slot: &str,
        publication: &str,
        acknowledged: Position,
    ) -> Result<Self, CaptureError> {
        let (mut client, _) = config.replication(slot, publication, Lsn(acknowledged.0 + 1)).await?;
        let failed = |error| explain_replication(config, "follow its change log", &error);
        client.start().await.map_err(failed)?;
        client.wait_started().await.map_err(failed)?;
        Ok(Self {
            config: config.clone(),
            session: Session::of(client),
            relations: HashMap::new(),
            rows: RowBuilder::new(),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            forgetful: false,
        })
    }

    /// The next item, in the order of commits.
    pub(super) async fn next(&mut self) -> Result<Item, CaptureError> {
        if let Some(item) = self.ahead.pop_front() {
            self.ahead_bytes -= item.bytes();
            return Ok(item);
        }
        self.read().await
    }

    /// The next item that was not read yet, ahead of what [`Self::next`] gives.
    pub(super) async fn read_ahead(&mut self) -> Result<Item, CaptureError> {
        let item = self.read().await?;
        if !self.forgetful {
            self.ahead_bytes += item.bytes();
            self.ahead.push_back(item.clone());
            if self.ahead_bytes > AHEAD_BYTES_MAX {
                self.forgetful = true;
                self.ahead.clear();
                self.ahead_bytes = 0;
            }
        }
        Ok(item)
    }

    /// Reads ahead the transaction that comes next. Gives its place and what it holds, and whether that is all: of a
    /// large one it is the beginning.
    pub(super) async fn next_transaction(&mut self) -> Result<Ahead<'_>, CaptureError> {
        let mut seen = 0;
        let whole = loop {
            match self.ahead.iter().skip(seen).position(|item| matches!(item, Item::Commit { .. })) {
                Some(at) => {
                    seen += at;
                    break true;
                }
                None => seen = self.ahead.len(),
            }
            if self.ahead_bytes > AHEAD_BYTES_MAX {
                break false;
            }
            let item = self.read().await?;
            self.ahead_bytes += item.bytes();
            self.ahead.push_back(item);
        };
        let position = match self.ahead.front() {
            Some(Item::Begin { position, .. }) => Some(*position),
            _ => None,
        };
        Ok(Ahead { position, items: self.ahead.iter().take(seen), whole })
    }

    /// What was read ahead and not taken yet, unless some of it was forgotten.
    pub(super) fn ahead(&self) -> Option<impl Iterator<Item = &Item>> {
        (!self.forgetful).then(|| self.ahead.iter())
    }

    /// Puts back what [`Self::next`] gave last.
    pub(super) fn put_back(&mut self, item: Item) {
        self.ahead_bytes += item.bytes();
        self.ahead.push_front(item);
    }

    /// Nothing was forgotten, and the session runs.
    pub(super) fn is_whole(&self) -> bool {
        !self.forgetful && self.session.is_running()
    }

    /// Nothing waits to be taken.
    pub(super) fn is_drained(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Lets the slot forget everything up to `position`.
    pub(super) fn acknowledge(&self, position: Position) {
        self.session.acknowledge(Lsn(position.0 + 1));
    }

    async fn read(&mut self) -> Result<Item, CaptureError> {
        loop {
            let event = self.session.next().await.map_err(|ended| self.ended(&ended))?;
            if let Some(item) = self.item(event)? {
                return Ok(item);
            }
        }
    }

    fn ended(&self, ended: &Ended) -> CaptureError {
        let what = match ended {
            Ended::Failed(error) => return explain_replication(&self.config, "read its change log", error),
            Ended::Silent => format!("its change log is silent for {} s", SILENCE_MAX.as_secs()),
            Ended::Closed => "the server ended the change log's session".to_owned(),
        };
        CaptureError::transient(format!("{}: {what}", self.config), "capture connects anew")
    }

    fn item(&mut self, event: ReplicationEvent) -> Result<Option<Item>, CaptureError> {
        Ok(match event {
            ReplicationEvent::Begin { final_lsn, commit_time_micros, .. } => {
                let at = Timestamp::from_micros(commit_time_micros.saturating_add(POSTGRES_EPOCH_MICROS));
                Some(Item::Begin { position: Position(final_lsn.as_u64()), at })
            }
            ReplicationEvent::Commit { end_lsn, .. } => Some(Item::Commit { end: end_lsn.as_u64() }),
            ReplicationEvent::Message { transactional: true, prefix, content, .. } => {
                Some(Item::Message { prefix, content })
            }
            ReplicationEvent::XLogData { data, .. } => self.change(&data)?,
            ReplicationEvent::Message { .. }
            | ReplicationEvent::KeepAlive { .. }
            | ReplicationEvent::StoppedAt { .. } => None,
        })
    }

    fn change(&mut self, data: &[u8]) -> Result<Option<Item>, CaptureError> {
        let message = pgoutput::decode(data, &mut self.rows);
        let message = message.map_err(|error| self.damaged(&error.to_string()))?;
        Ok(Some(match message {
            Message::Relation(relation) => {
                self.relations.insert(relation.id, Arc::new(relation));
                return Ok(None);
            }
            Message::Other => return Ok(None),
            Message::Insert { relation, new } => {
                Item::Insert { relation: self.relation(relation, &[&new])?, new }
            }
            Message::Update { relation, old, new } => {
                let relation = match &old {
                    Some(old) => self.relation(relation, &[&old.row, &new])?,
                    None => self.relation(relation, &[&new])?,
                };
                Item::Update { relation, old, new }
            }
            Message::Delete { relation, old } => {
                Item::Delete { relation: self.relation(relation, &[&old.row])?, old }
            }
            Message::Truncate { relations } => {
                let relations = relations.into_iter().map(|relation| self.relation(relation, &[]));
                Item::Truncate { relations: relations.collect::<Result<_, _>>()? }
            }
        }))
    }

    /// The table, which must have as many columns as the rows.
    fn relation(&self, id: u32, rows: &[&Row]) -> Result<Arc<Relation>, CaptureError> {
        let known = self.relations.get(&id).ok_or_else(|| self.damaged("a table was not described"))?;
        if rows.iter().any(|row| row.len() != known.columns.len()) {
            return Err(self.damaged("a row has another number of columns than its table"));
        }
        Ok(Arc::clone(known))
    }

    fn damaged(&self, what: &str) -> CaptureError {
        CaptureError::transient(
            format!("{}: its change log cannot be read: {what}", self.config),
            "capture connects anew; if that does not help, report it",
        )
    }
}
