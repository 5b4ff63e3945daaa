//! A shard in memory: rows, a change log, epochs, claims, publish records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use muster_repo::{Chain, Repository, SegmentSpool};
use muster_rows::{Change, Op, Row, RowsDigest};
use muster_types::journal::{
    AppliedMigration, Migrated, MigratedTable, NeighbourDigest, Published, TableDigest,
};
use muster_types::plan::LiveStore;
use muster_types::segment::{ChangeStamp, Mark, TableEvent, TableEventKind};
use muster_types::table::CapturedTable;
use muster_types::{
    Boundary, ChangeKey, Epoch, Incarnation, Position, RunId, ShardName, SiteId, StoreId, Timestamp,
};
use tokio::sync::mpsc;

use crate::driver::{
    ClaimRefusal, DriverError, ErrorClass, LoggedChange, PublishRecord, PublishWork, RowBatch, StoreDriver,
    StoreProbe, StoreWork, one_by_one,
};

/// Table, site, text of the row: what a shard holds.
pub(super) type Live = BTreeSet<(String, SiteId, String)>;

/// A write outside the published store, planted into a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// In the log, under the publish's mark.
    Marked,
    /// Past the log.
    Silent,
}

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) rows: Vec<(String, SiteId, Row)>,
    log: Vec<LoggedChange>,
    captured_upto: u64,
    position: u64,
    epochs: BTreeMap<RunId, Epoch>,
    pub(super) claims: BTreeMap<StoreId, RunId>,
    publishes: BTreeMap<(RunId, StoreId), Published>,
    pub(super) staged: BTreeMap<StoreId, Vec<(String, Row)>>,
    /// Publishes that changed something.
    pub(super) effects: BTreeMap<StoreId, u32>,
    pub(super) stray: Option<Stray>,
    /// Calls that fail, with how often.
    pub(super) failures: BTreeMap<(&'static str, StoreId), (ErrorClass, u32)>,
    /// How often each store was staged.
    pub(super) stagings: BTreeMap<StoreId, u32>,
    pub(super) read_only: bool,
    /// So many calls that prepare it find nobody there.
    pub(super) away: u32,
    /// Positions are this far apart, as in a write-ahead log, and only the repository has the log: whoever asks for it
    /// is told so, and capture runs when someone runs it.
    pub(super) sparse: Option<u64>,
    /// Capture reads this table again whole, and does not tell what changed in it.
    pub(super) reread: Option<String>,
    /// Staged rows go through a migration: ids get an end, and the columns another order.
    pub(super) migrates: bool,
    pub(super) migrated: BTreeMap<StoreId, Vec<(String, Row)>>,
    /// What a publish made live of this site is gone right after it, past the log.
    pub(super) forget: Option<SiteId>,
    /// A group is published whole or not at all, and who was at fault is not told.
    pub(super) atomic: bool,
    /// Sizes of the groups that were published together.
    pub(super) groups: Vec<usize>,
}

pub(super) struct FakeShard {
    pub(super) name: ShardName,
    pub(super) tables: Vec<CapturedTable>,
    pub(super) state: Mutex<State>,
    /// Capture runs whenever the log is asked for, and removes what it captured.
    pub(super) capture: Option<(Repository, Incarnation, tempfile::TempDir)>,
    pub(super) capturing: tokio::sync::Mutex<()>,
}

pub(super) fn text_of(row: &Row) -> String {
    row.fields().map(|field| String::from_utf8_lossy(field.bytes).into_owned()).collect::<Vec<_>>().join("|")
}

fn refused(class: ErrorClass, message: &str) -> DriverError {
    DriverError::new(class, message, "see the test")
}

impl State {
    fn change(&mut self, table: &str, site: &SiteId, mark: Option<&Mark>, op: Op) -> Position {
        self.position += self.sparse.unwrap_or(1);
        let key = ChangeKey { position: Position(self.position), ordinal: 0 };
        let stamp = ChangeStamp { key, at: Timestamp::from_micros(self.position as i64) };
        let change = Change { stamp, op };
        self.log.push(LoggedChange {
            table: table.to_owned(),
            columns: ["id", "site"].map(str::to_owned).into(),
            site: Some(site.clone()),
            mark: mark.cloned(),
            change,
        });
        key.position
    }

    pub(super) fn insert(&mut self, table: &str, site: &SiteId, mark: Option<&Mark>, row: Row) -> Position {
        self.rows.push((table.to_owned(), site.clone(), row.clone()));
        self.change(table, site, mark, Op::Insert { new: row })
    }

    fn fail(&mut self, call: &'static str, store: &StoreId) -> Result<(), DriverError> {
        let Some((class, times)) = self.failures.get_mut(&(call, store.clone())) else { return Ok(()) };
        if *times == 0 {
            return Ok(());
        }
        *times -= 1;
        if *class == ErrorClass::StagingLost {
            self.staged.remove(store);
            self.migrated.remove(store);
        }
        let class =
            self.failures.get(&(call, store.clone())).map_or(ErrorClass::Permanent, |(class, _)| *class);
        Err(refused(class, &format!("{call} of {store} fails on purpose")))
    }

    fn check_epoch(&self, run: &RunId, epoch: Epoch) -> Result<(), DriverError> {
        match self.epochs.get(run) {
            Some(&held) if held > epoch => Err(refused(ErrorClass::Fenced, "a higher epoch holds the run")),
            _ => Ok(()),
        }
    }
}

impl FakeShard {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn live(&self) -> Live {
        self.lock()
            .rows
            .iter()
            .map(|(table, site, row)| (table.clone(), site.clone(), text_of(row)))
            .collect()
    }

    fn kind_of(&self, table: &str) -> &muster_types::Kind {
        &self.tables.iter().find(|known| known.def.name == table).unwrap().kind
    }

    /// Moves the log into the repository.
    pub(super) async fn run_capture(&self) {
        let Some((repository, incarnation, dir)) = &self.capture else { return };
        // One capture at a time, as the chain demands.
        let _alone = self.capturing.lock().await;
        let mut chain = Chain::open(repository, &self.name, incarnation).await.unwrap();
        let after = chain
            .head()
            .map_or(Boundary { position: Position(0), at: Timestamp::EPOCH }, |head| head.boundary);
        let (mut changes, upto, reread) = {
            let mut state = self.lock();
            state.captured_upto = after.position.0;
            let behind = |logged: &&LoggedChange| logged.change.stamp.key.position > after.position;
            let mut changes = state.log.iter().filter(behind).cloned().collect::<Vec<_>>();
            changes.retain(|logged| Some(&logged.table) != state.reread.as_ref());
            let mut rows = state.rows.clone();
            rows.retain(|(table, ..)| Some(table) == state.reread.as_ref());
            rows.sort_by_key(|(_, site, _)| site.clone());
            (changes, state.position, state.reread.clone().map(|table| (table, rows)))
        };
        if after.position.0 == upto {
            return;
        }
        let mut spool = SegmentSpool::new(&dir.path().join(format!("segment-{upto}")));
        for table in &self.tables {
            spool.table(table);
        }
        changes.sort_by_key(|logged| {
            (logged.site.clone(), logged.table.clone(), logged.mark.clone(), logged.change.stamp.key)
        });
        for logged in &changes {
            let table = self.tables.iter().position(|table| table.def.name == logged.table).unwrap();
            spool.change(logged.site.as_ref(), table, logged.mark.as_ref(), &logged.change).unwrap();
        }
        let boundary = Boundary { position: Position(upto), at: Timestamp::from_micros(upto as i64) };
        if let Some((name, rows)) = reread {
            let table = self.tables.iter().position(|table| table.def.name == name).unwrap();
            rows.iter().for_each(|(_, site, row)| spool.reread_row(Some(site), table, row).unwrap());
            let (kind, reason) = (self.tables[table].kind.clone(), "a test".to_owned());
            let event = TableEventKind::Reread;
            spool.table_event(TableEvent {
                table: name,
                kind,
                event,
                at: boundary.at,
                position: None,
                reason,
            });
        }
        chain.append(spool.finish().unwrap(), after, boundary, (0, 0), "test").await.unwrap();
        let mut state = self.lock();
        state.log.retain(|logged| logged.change.stamp.key.position.0 > upto);
        state.captured_upto = upto;
    }

    fn publish_now(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError> {
        let mut state = self.lock();
        state.check_epoch(&work.run, work.epoch)?;
        let key = (work.run.clone(), work.store.clone());
        if let Some(done) = state.publishes.get(&key) {
            return Ok(done.clone());
        }
        state.fail("publish", &work.store)?;
        if state.claims.get(&work.store) != Some(&work.run) {
            return Err(refused(ErrorClass::Permanent, "not claimed"));
        }
        let is_migrated = work.tables[0].def.columns[0].name == "site";
        let lying = if is_migrated { &state.migrated } else { &state.staged };
        let staged = lying.get(&work.store).cloned().unwrap_or_default();
        let found = if is_migrated { digests(work, &turned(&staged)) } else { digests(work, &staged) };
        if found != *expected {
            return Err(refused(ErrorClass::Permanent, "the staged rows are not those that were verified"));
        }
        // A neighbour writes between any two publishes.
        let neighbour = SiteId::new("n0").unwrap();
        let table = work.tables[0].def.name.clone();
        let written = state.position;
        state.insert(&table, &neighbour, None, super::row(&format!("new-{written}"), "n0"));
        let mark = work.mark();
        let mut positions: Option<(Position, Position)> = None;
        for (table, row) in &staged {
            let position = state.insert(table, &work.store.site, Some(&mark), row.clone());
            positions = Some((positions.map_or(position, |(first, _)| first), position));
        }
        match state.stray {
            Some(Stray::Marked) => {
                let position = state.insert(&table, &neighbour, Some(&mark), super::row("stray", "n0"));
                positions = positions.map(|(first, _)| (first, position));
            }
            Some(Stray::Silent) => state.rows.push((table, neighbour, super::row("stray", "n0"))),
            None => {}
        }
        if state.forget.as_ref() == Some(&work.store.site) {
            state.rows.retain(|(_, site, _)| *site != work.store.site);
        }
        let rows = staged.len() as u64;
        let at = Timestamp::from_micros(state.position as i64);
        let published = Published { rows, replaced: 0, positions, blocked_micros: 5, at };
        state.publishes.insert(key, published.clone());
        *state.effects.entry(work.store.clone()).or_default() += 1;
        // The answer may be lost after the effect.
        state.fail("publish-answer", &work.store)?;
        Ok(published)
    }
}

/// The end of a migrated id.
pub(super) const MIGRATED: &str = "-migrated";

/// The columns in the order of a migrated definition.
fn turned(rows: &[(String, Row)]) -> Vec<(String, Row)> {
    let turned = |row: &Row| {
        let mut builder = muster_rows::RowBuilder::new();
        for place in [1, 0] {
            let field = row.get(place).unwrap();
            builder.push(field.class, field.bytes);
        }
        builder.take()
    };
    rows.iter().map(|(table, row)| (table.clone(), turned(row))).collect()
}

fn digests(work: &StoreWork, rows: &[(String, Row)]) -> BTreeMap<String, TableDigest> {
    let of = |table: &CapturedTable| {
        let name = &table.def.name;
        let mut digest = RowsDigest::new();
        let mut count = 0;
        for (_, row) in rows.iter().filter(|(table, _)| table == name) {
            digest.add(name, row);
            count += 1;
        }
        (name.clone(), TableDigest { rows: count, digest: digest.finish() })
    };
    work.tables.iter().map(of).collect()
}

#[async_trait]
impl StoreDriver for FakeShard {
    async fn probe(&self, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
        let state = self.lock();
        let rows = |store: &StoreId| {
            let own = |(table, site, _): &&(String, SiteId, Row)| {
                *site == store.site && *self.kind_of(table) == store.kind
            };
            state.rows.iter().filter(own).count() as u64
        };
        Ok(stores
            .iter()
            .map(|probe| LiveStore { rows: rows(&probe.store), ..LiveStore::default() })
            .collect())
    }

    async fn live_rows(&self, store: &StoreProbe, rows: mpsc::Sender<RowBatch>) -> Result<(), DriverError> {
        let live = self.lock().rows.clone();
        for (number, table) in store.tables.iter().enumerate() {
            let own =
                live.iter().filter(|(name, site, _)| *name == table.def.name && *site == store.store.site);
            let batch = RowBatch { table: number, rows: own.map(|(.., row)| row.clone()).collect() };
            rows.send(batch).await.map_err(|_| refused(ErrorClass::Permanent, "no one reads"))?;
        }
        Ok(())
    }

    async fn fence(&self, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError> {
        let mut state = self.lock();
        if state.read_only {
            return Err(refused(ErrorClass::Permanent, "the shard is read-only"));
        }
        if state.away > 0 {
            state.away -= 1;
            return Err(refused(ErrorClass::Unavailable, "the shard starts up"));
        }
        state.check_epoch(run, epoch)?;
        state.epochs.insert(run.clone(), epoch);
        let own = state.publishes.iter().filter(|((by, _), _)| by == run);
        let record = |((_, store), published): (&(RunId, StoreId), &Published)| PublishRecord {
            store: store.clone(),
            published: published.clone(),
        };
        Ok(own.map(record).collect())
    }

    async fn claim(
        &self,
        run: &RunId,
        epoch: Epoch,
        stores: &[StoreId],
    ) -> Result<Vec<ClaimRefusal>, DriverError> {
        let mut state = self.lock();
        state.check_epoch(run, epoch)?;
        let mut refusals = Vec::new();
        for store in stores {
            let held_by = state.claims.entry(store.clone()).or_insert_with(|| run.clone()).clone();
            if held_by != *run {
                refusals.push(ClaimRefusal { store: store.clone(), held_by });
            }
        }
        Ok(refusals)
    }

    async fn stage(&self, work: &StoreWork, mut rows: mpsc::Receiver<RowBatch>) -> Result<(), DriverError> {
        self.lock().fail("stage", &work.store)?;
        let mut staged = Vec::new();
        while let Some(batch) = rows.recv().await {
            let table = &work.tables[batch.table].def.name;
            staged.extend(batch.rows.into_iter().map(|row| (table.clone(), row)));
        }
        let mut state = self.lock();
        state.check_epoch(&work.run, work.epoch)?;
        *state.stagings.entry(work.store.clone()).or_default() += 1;
        state.staged.insert(work.store.clone(), staged);
        Ok(())
    }

    async fn digest_staged(&self, work: &StoreWork) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        let mut state = self.lock();
        state.fail("digest", &work.store)?;
        match state.staged.get(&work.store) {
            Some(rows) => Ok(digests(work, rows)),
            None => Err(refused(ErrorClass::StagingLost, "nothing is staged")),
        }
    }

    async fn migrate(&self, work: &StoreWork) -> Result<Option<Migrated>, DriverError> {
        let mut state = self.lock();
        if !state.migrates {
            return Ok(None);
        }
        state.fail("migrate", &work.store)?;
        let staged = state.staged.get(&work.store).cloned().unwrap_or_default();
        let one = |(table, row): (String, Row)| {
            let id = String::from_utf8_lossy(row.get(0).unwrap().bytes).into_owned();
            (table, super::row(&format!("{id}{MIGRATED}"), work.store.site.as_str()))
        };
        let rows: Vec<(String, Row)> = staged.into_iter().map(one).collect();
        let mut migrated = Migrated::default();
        for table in work.tables.iter() {
            let mut def = table.def.clone();
            def.columns.reverse();
            let digest = digests(work, &turned(&rows))[&def.name];
            let (table, count) = (def.name.clone(), digest.rows);
            migrated.applied.push(AppliedMigration {
                table: table.clone(),
                name: "turn".to_owned(),
                rows_before: count,
                rows_after: count,
            });
            migrated.tables.insert(table, MigratedTable { def, digest });
        }
        state.migrated.insert(work.store.clone(), rows);
        Ok(Some(migrated))
    }

    async fn publish(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError> {
        tokio::task::yield_now().await;
        self.publish_now(work, expected)
    }

    async fn publish_group(&self, group: &[PublishWork]) -> Vec<Result<Published, DriverError>> {
        tokio::task::yield_now().await;
        if !self.lock().atomic {
            return one_by_one::publish(self, group).await;
        }
        let before = self.lock().clone();
        let mut answers = Vec::new();
        for member in group {
            match self.publish_now(&member.work, &member.expected) {
                Ok(published) => answers.push(Ok(published)),
                Err(error) => {
                    let mut state = self.lock();
                    let failures = std::mem::take(&mut state.failures);
                    *state = State { failures, ..before };
                    return group.iter().map(|_| Err(error.clone())).collect();
                }
            }
        }
        self.lock().groups.push(group.len());
        answers
    }

    async fn logged_changes(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<(Position, Vec<LoggedChange>), DriverError> {
        if self.lock().sparse.is_some() {
            return Ok((Position(upto.0 + 1), Vec::new()));
        }
        self.run_capture().await;
        let state = self.lock();
        let inside = |logged: &&LoggedChange| {
            let position = logged.change.stamp.key.position;
            position > after && position <= upto
        };
        Ok((Position(state.captured_upto + 1), state.log.iter().filter(inside).cloned().collect()))
    }

    async fn neighbour_digest(&self, excluded: &BTreeSet<StoreId>) -> Result<NeighbourDigest, DriverError> {
        let state = self.lock();
        let mut digest = RowsDigest::new();
        let mut rows = 0;
        for (table, site, row) in &state.rows {
            let store = StoreId { site: site.clone(), kind: self.kind_of(table).clone() };
            if !excluded.contains(&store) {
                digest.add(table, row);
                rows += 1;
            }
        }
        let position = Position(state.position);
        Ok(NeighbourDigest { position, rows, state: digest.to_hex(), digest: digest.finish() })
    }

    async fn release(&self, run: &RunId, epoch: Epoch, stores: &[StoreId]) -> Result<(), DriverError> {
        let mut state = self.lock();
        state.check_epoch(run, epoch)?;
        for store in stores {
            state.fail("release", store)?;
            if state.claims.get(store) == Some(run) {
                state.claims.remove(store);
            }
            state.staged.remove(store);
        }
        Ok(())
    }
}

/// A shard as drivers are given to the engine.
pub(super) fn driver(shard: &Arc<FakeShard>) -> Arc<dyn StoreDriver> {
    Arc::clone(shard) as Arc<dyn StoreDriver>
}
