//! [`PostgresSource`].

mod exact;
mod history;
mod layouts;
mod reading;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use muster_types::table::CapturedTable;
use muster_types::topology::Declared;
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, Timestamp};
use tokio_postgres::Client;

use self::tables::altered_unless;
use super::error::explain;
use super::layout::{Layout, Signature};
use super::snapshot::{self, Snapshot};
use super::state::{self, KnownLayout, State, Unreadable};
use super::stream::Stream;
use super::{install, slot, triggers};
use crate::capture::{CaptureError, CaptureSource, ChangeSink, Installed, Polled, ShardState, SnapshotSink};
use crate::postgres::connect::{ConnectError, PostgresConfig, block_on, text_settings};

/// Log that the slot may hold back where nothing is said: what a busy shard writes in about a day.
const WAL_BYTES_MAX: u64 = 64 << 30;

/// How long the beginning of an incarnation waits for transactions that are open.
const BEGIN_WAIT: Duration = Duration::from_secs(60);

/// A PostgreSQL database as a source of changes. Calls block; they must not come from an async task.
pub struct PostgresSource {
    shard: ShardName,
    connection: String,
    declared: Declared,
    snapshot_max: Option<Duration>,
    wal_bytes_max: u64,
    begin_wait: Duration,
    /// Name of slot and publication.
    name: String,
    client: Option<(PostgresConfig, Client)>,
    stream: Option<Stream>,
    /// What the last acknowledged segment knew of the tables.
    known: Option<BTreeMap<String, Signature>>,
    /// What the last poll delivered, up to its boundary.
    delivered: Option<(Position, BTreeMap<String, Signature>)>,
    /// The tables as the log has them behind this place.
    layout: Option<(Position, Layout)>,
    /// As the last snapshot had them.
    snapshot_layout: Option<(Position, Layout)>,
    /// Of the layout that the shard remembers: what tells it from others.
    remembered: Option<String>,
    /// End of the log behind the last heartbeat: while it stands there, nothing happened.
    quiet_at: Option<u64>,
    /// Undeclared tables that an event has told of.
    told: BTreeSet<String>,
}

impl PostgresSource {
    /// For the declared `tables` of `shard`; those that the database does not have are passed over until it has them.
    /// Connected to at first use.
    pub fn new(shard: ShardName, connection: &str, tables: impl Into<Declared>) -> Self {
        Self {
            name: slot::name_of(&shard),
            shard,
            connection: connection.to_owned(),
            declared: tables.into(),
            snapshot_max: None,
            wal_bytes_max: WAL_BYTES_MAX,
            begin_wait: BEGIN_WAIT,
            client: None,
            stream: None,
            known: None,
            delivered: None,
            layout: None,
            snapshot_layout: None,
            remembered: None,
            quiet_at: None,
            told: BTreeSet::new(),
        }
    }

    /// Gives a snapshot up after `limit`: it holds vacuum back.
    #[must_use]
    pub fn with_snapshot_max(mut self, limit: Duration) -> Self {
        self.snapshot_max = Some(limit);
        self
    }

    /// Gives the slot up, and with it the incarnation, when it holds back more log than this.
    #[must_use]
    pub fn with_wal_bytes_max(mut self, limit: u64) -> Self {
        self.wal_bytes_max = limit;
        self
    }

    /// Gives the beginning of an incarnation up, for now, when a transaction stays open for so long.
    #[must_use]
    pub fn with_begin_wait(mut self, limit: Duration) -> Self {
        self.begin_wait = limit;
        self
    }

    /// Runs `work`, and connects anew the next time if it failed.
    fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, CaptureError>,
    ) -> Result<T, CaptureError> {
        let result = block_on(work(self))?;
        if result.is_err() {
            self.stream = None;
            self.client = None;
            self.layout = None;
            self.quiet_at = None;
        }
        result
    }

    async fn client(&mut self) -> Result<(PostgresConfig, &mut Client), CaptureError> {
        if self.client.as_ref().is_none_or(|(_, client)| client.is_closed()) {
            self.client = None;
            let config = PostgresConfig::parse(&self.connection)?;
            let client = config.connect().await.map_err(|error| self.unreached(error))?;
            // A heartbeat is read back at once, and so has to be on disk; standbys are not waited for.
            client
                .batch_execute("SET synchronous_commit = local")
                .await
                .map_err(|error| explain(&config, "set up its session", &error))?;
            self.client = Some((config, client));
        }
        match &mut self.client {
            Some((config, client)) => Ok((config.clone(), client)),
            None => Err(CaptureError::transient("the connection was lost", "capture tries again")),
        }
    }

    /// A database that is not there is no loss where it is one shard of many sites: somebody is about to bring it back.
    fn unreached(&self, error: ConnectError) -> CaptureError {
        let gone = error.is_of_missing_database() && self.declared.is_of_database();
        let mut error = CaptureError::from(error);
        if gone {
            error.hint = format!(
                "restore the site: make an empty database of that name, run `muster capture init --shard {shard}` and \
                 `muster capture --once --shard {shard}`, then plan; or take it out of the topology",
                shard = self.shard
            );
            (error.gone, error.transient) = (true, true);
        }
        error
    }

    async fn read_state(&mut self) -> Result<State, CaptureError> {
        let whose = format!("shard `{}`", self.shard);
        let (config, client) = self.client().await?;
        state::read(client, &whose).await.map_err(|error| match error {
            Unreadable::Server(error) => explain(&config, "read its capture state", &error),
            Unreadable::Other(error) => error,
        })
    }

    async fn init_now(&mut self) -> Result<Installed, CaptureError> {
        let layout = self.read_layout().await?;
        let (shard, name) = (self.shard.clone(), self.name.clone());
        let (config, client) = self.client().await?;
        install::check(&config, client, &shard, &layout).await?;
        let installed = install::install(client, &name, &layout).await;
        let unchanged = installed.map_err(|error| explain(&config, "install capture", &error))?;
        let failed = |error| explain(&config, "install its event triggers", &error);
        let (changed, notes) = match triggers::install(client).await.map_err(failed)? {
            Ok(changed) => (changed, Vec::new()),
            Err(reason) => (false, vec![triggers::note(&format!("the server says: {reason}"))]),
        };
        self.layout = None;
        let tables = layout.tables.iter().map(|table| table.name().to_owned()).collect();
        let triggers = if notes.is_empty() { 2 } else { 0 };
        Ok(Installed { tables, triggers, unchanged: unchanged && !changed, notes })
    }

    /// Whether the shard can be captured as it is. Reads only.
    ///
    /// # Errors
    /// Everything that stands in the way, with what to do; or the database cannot be reached.
    pub fn check(&mut self) -> Result<(), CaptureError> {
        self.run(async |source| {
            let layout = source.read_layout().await?;
            let shard = source.shard.clone();
            let (config, client) = source.client().await?;
            install::check(&config, client, &shard, &layout).await
        })
    }

    async fn remove_now(&mut self) -> Result<(), CaptureError> {
        let name = self.name.clone();
        let (config, client) = self.client().await?;
        // A capture that follows lets go of the slot once its state is gone.
        install::remove(client, &name).await.map_err(|error| explain(&config, "remove capture", &error))?;
        self.free_slot().await?;
        (self.layout, self.known, self.delivered, self.quiet_at) = (None, None, None, None);
        Ok(())
    }

    async fn state_now(&mut self) -> Result<ShardState, CaptureError> {
        let state = self.read_state().await?;
        let status = self.status().await?;
        let broken = self.broken(&state, &status).await?;
        Ok(ShardState {
            incarnation: state.incarnation,
            acknowledged: state.acknowledged,
            head: state.head,
            last: status.end,
            broken,
        })
    }

    async fn snapshot_now(
        &mut self,
        not_before: Boundary,
        sink: &mut dyn SnapshotSink,
    ) -> Result<Boundary, CaptureError> {
        let (config, _) = self.client().await?;
        let layout = self.read_layout().await?;
        let snapshot = Snapshot::take(&config, &layout, &self.name, self.snapshot_max).await?;
        altered_unless(snapshot.fingerprint == layout.fingerprint, &self.shard)?;
        let tables: Vec<CapturedTable> = layout.tables.iter().map(|table| table.table.clone()).collect();
        sink.tables(&tables)?;
        sink.beside(&snapshot.beside().await?)?;
        let all: Vec<usize> = (0..tables.len()).collect();
        snapshot.read(&layout, &all, |site, table, row| sink.row(site, table, row)).await?;
        self.snapshot_layout = Some((snapshot.boundary.position, layout));
        Ok(Boundary { at: snapshot.boundary.at.max(not_before.at), ..snapshot.boundary })
    }

    async fn acknowledge_now(&mut self, upto: Position, head: (u64, Digest)) -> Result<(), CaptureError> {
        let delivered =
            self.delivered.take().filter(|(position, _)| *position == upto).map(|(_, known)| known);
        let changed = delivered.as_ref().filter(|known| Some(*known) != self.known.as_ref());
        let (layout, remembered) = self.layout_to_remember(upto);
        let known_layout = match &layout {
            Some(text) => Some(KnownLayout::New(text)),
            None => remembered.is_some().then_some(KnownLayout::Same),
        };
        let (config, client) = self.client().await?;
        let done = state::acknowledge(client, upto, head, changed, known_layout).await;
        done.map_err(|error| explain(&config, "acknowledge changes", &error))?;
        self.remembered = remembered.or(self.remembered.take());
        if let Some(known) = delivered {
            self.known = Some(known);
        }
        if let Some(stream) = &self.stream {
            stream.acknowledge(upto);
        }
        Ok(())
    }

    async fn clock_now(&mut self) -> Result<(i64, u64), CaptureError> {
        let (config, client) = self.client().await?;
        let before = now_micros();
        let theirs =
            snapshot::clock(client).await.map_err(|error| explain(&config, "read its clock", &error))?;
        let after = now_micros();
        let half = (after - before).max(0) / 2;
        Ok((theirs.as_micros() - (before + half), half.unsigned_abs()))
    }
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl CaptureSource for PostgresSource {
    fn init(&mut self) -> Result<Installed, CaptureError> {
        self.run(async |source| source.init_now().await)
    }

    fn remove(&mut self) -> Result<(), CaptureError> {
        self.run(async |source| source.remove_now().await)
    }

    fn state(&mut self) -> Result<ShardState, CaptureError> {
        self.run(async |source| source.state_now().await)
    }

    fn begin_incarnation(&mut self, incarnation: &Incarnation) -> Result<(), CaptureError> {
        self.run(async |source| source.begin_now(incarnation).await)
    }

    fn snapshot(
        &mut self,
        not_before: Boundary,
        sink: &mut dyn SnapshotSink,
    ) -> Result<Boundary, CaptureError> {
        self.run(async |source| source.snapshot_now(not_before, sink).await)
    }

    fn poll(
        &mut self,
        after: Boundary,
        watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError> {
        self.run(async |source| source.poll_now(after, watermark, sink).await)
    }

    fn change_at(&mut self, position: Position) -> Result<Option<Timestamp>, CaptureError> {
        self.run(async |source| source.change_at_now(position).await)
    }

    fn acknowledge(&mut self, upto: Position, head: (u64, Digest)) -> Result<(), CaptureError> {
        self.run(async |source| source.acknowledge_now(upto, head).await)
    }

    fn session(&self) -> BTreeMap<String, String> {
        let mut session = text_settings();
        session.insert("driver".to_owned(), "postgres".to_owned());
        session
    }

    fn clock_offset_micros(&mut self) -> Result<(i64, u64), CaptureError> {
        self.run(async |source| source.clock_now().await)
    }
}
