//! What a shard holds, and what its transactions do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_engine::driver::{ClaimRefusal, DriverError, ErrorClass, LoggedChange, PublishWork, StoreWork};
use muster_rows::{Change, Op, Row, RowsDigest};
use muster_types::journal::{NeighbourDigest, Published, TableDigest};
use muster_types::segment::{ChangeStamp, Mark};
use muster_types::{ChangeKey, Epoch, Position, RunId, SiteId, StoreId, Timestamp};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// By table and id.
    pub(crate) rows: BTreeMap<(String, String), (SiteId, Row)>,
    pub(crate) log: Vec<LoggedChange>,
    /// Changes up to here were moved into the repository.
    pub(crate) captured_upto: u64,
    position: u64,
    epochs: BTreeMap<RunId, Epoch>,
    claims: BTreeMap<StoreId, RunId>,
    publishes: BTreeMap<(RunId, StoreId), Published>,
    pub(super) staged: BTreeMap<(RunId, StoreId), Vec<(String, Row)>>,
    /// Falls of the shard so far: what was staged before one is gone.
    pub(super) falls: usize,
}

pub(super) fn refused(class: ErrorClass, message: impl Into<String>) -> DriverError {
    DriverError::new(class, message, "see the simulator")
}

impl State {
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn log(&mut self, table: &str, site: &SiteId, mark: Option<&Mark>, op: Op) -> Position {
        self.position += 1;
        let key = ChangeKey { position: Position(self.position), ordinal: 0 };
        let at = Timestamp::from_micros(i64::try_from(self.position).unwrap_or(i64::MAX));
        self.log.push(LoggedChange {
            table: table.to_owned(),
            columns: ["id", "site"].map(str::to_owned).into(),
            site: Some(site.clone()),
            mark: mark.cloned(),
            change: Change { stamp: ChangeStamp { key, at }, op },
        });
        key.position
    }

    pub(super) fn insert(&mut self, table: &str, site: &SiteId, mark: Option<&Mark>, row: Row) -> Position {
        self.rows.insert((table.to_owned(), super::id_of(&row)), (site.clone(), row.clone()));
        self.log(table, site, mark, Op::Insert { new: row })
    }

    pub(super) fn remove(&mut self, table: &str, id: &str, mark: Option<&Mark>) {
        if let Some((site, old)) = self.rows.remove(&(table.to_owned(), id.to_owned())) {
            self.log(table, &site, mark, Op::Delete { old });
        }
    }

    /// Live rows of a site in some tables.
    pub(super) fn live<'a>(
        &'a self,
        site: &'a SiteId,
        tables: &'a BTreeSet<&str>,
    ) -> impl Iterator<Item = (&'a str, &'a Row)> {
        let own = move |((table, _), (owner, _)): &(&(String, String), &(SiteId, Row))| {
            owner == site && tables.contains(table.as_str())
        };
        self.rows.iter().filter(own).map(|((table, _), (_, row))| (table.as_str(), row))
    }

    pub(super) fn check_epoch(&self, run: &RunId, epoch: Epoch) -> Result<(), DriverError> {
        match self.epochs.get(run) {
            Some(&held) if held > epoch => Err(refused(ErrorClass::Fenced, "a higher epoch holds the run")),
            _ => Ok(()),
        }
    }

    pub(super) fn raise(&mut self, run: &RunId, epoch: Epoch) -> Result<(), DriverError> {
        self.check_epoch(run, epoch)?;
        self.epochs.insert(run.clone(), epoch);
        Ok(())
    }

    pub(super) fn published_by(&self, run: &RunId) -> Vec<(StoreId, Published)> {
        let own = self.publishes.iter().filter(|((by, _), _)| by == run);
        own.map(|((_, store), published)| (store.clone(), published.clone())).collect()
    }

    /// Claims stores; `blind`: whoever holds them.
    pub(super) fn claim(&mut self, run: &RunId, stores: &[StoreId], blind: bool) -> Vec<ClaimRefusal> {
        let mut refusals = Vec::new();
        for store in stores {
            let held_by = self.claims.entry(store.clone()).or_insert_with(|| run.clone());
            if blind {
                run.clone_into(held_by);
            }
            if held_by != run {
                refusals.push(ClaimRefusal { store: store.clone(), held_by: held_by.clone() });
            }
        }
        refusals
    }

    pub(super) fn claimed_by(&self, store: &StoreId) -> Option<&RunId> {
        self.claims.get(store)
    }

    pub(super) fn release(&mut self, run: &RunId, stores: &[StoreId]) {
        for store in stores {
            if self.claims.get(store) == Some(run) {
                self.claims.remove(store);
            }
            self.staged.remove(&(run.clone(), store.clone()));
        }
    }

    pub(super) fn staged(&self, work: &StoreWork) -> Result<&Vec<(String, Row)>, DriverError> {
        let found = self.staged.get(&(work.run.clone(), work.store.clone()));
        found.ok_or_else(|| refused(ErrorClass::StagingLost, format!("nothing is staged of {}", work.store)))
    }

    /// What lies beside the live data is gone when the shard has fallen `falls` times by now.
    pub(super) fn fall(&mut self, falls: usize) {
        if falls > self.falls {
            self.falls = falls;
            self.staged.clear();
        }
    }

    /// Makes a store live; the caller undoes all of it where one of a group fails.
    pub(super) fn publish(
        &mut self,
        member: &PublishWork,
        lie: Lie,
    ) -> Result<(Published, bool), DriverError> {
        let work = &member.work;
        if !lie.ignores_epoch {
            self.check_epoch(&work.run, work.epoch)?;
        }
        let key = (work.run.clone(), work.store.clone());
        if let Some(done) = self.publishes.get(&key).filter(|_| !lie.repeats) {
            return Ok((done.clone(), false));
        }
        if self.claims.get(&work.store) != Some(&work.run) {
            return Err(refused(ErrorClass::Permanent, format!("{} is not claimed", work.store)));
        }
        let mut staged = self.staged(work)?.clone();
        if !lie.believes && digests(work, &staged) != member.expected {
            return Err(refused(ErrorClass::Permanent, "the staged rows are not those that were verified"));
        }
        let tables: BTreeSet<&str> = work.tables.iter().map(|table| table.def.name.as_str()).collect();
        if !lie.repeats && self.live(&work.store.site, &tables).next().is_some() {
            return Err(refused(ErrorClass::Permanent, format!("{} is alive", work.store)));
        }
        if lie.halves {
            staged.truncate(staged.len() / 2);
        }
        if lie.touches {
            let neighbour = self.rows.iter().find(|(_, (site, _))| site.as_str().starts_with('n'));
            if let Some((table, id)) = neighbour.map(|(row, _)| row.clone()) {
                self.remove(&table, &id, None);
            }
        }
        let mark = work.mark();
        let mut positions: Option<(Position, Position)> = None;
        for (table, row) in &staged {
            let position = self.insert(table, &work.store.site, Some(&mark), row.clone());
            positions = Some((positions.map_or(position, |(first, _)| first), position));
        }
        let at = Timestamp::from_micros(i64::try_from(self.position).unwrap_or(i64::MAX));
        let rows = staged.len() as u64;
        let published = Published { rows, replaced: 0, positions, blocked_micros: 5, at };
        self.publishes.insert(key, published.clone());
        Ok((published, true))
    }

    pub(super) fn neighbours(&self, is_neighbour: impl Fn(&str, &SiteId) -> bool) -> NeighbourDigest {
        let mut digest = RowsDigest::new();
        let mut rows = 0;
        for ((table, _), (site, row)) in &self.rows {
            if is_neighbour(table, site) {
                digest.add(table, row);
                rows += 1;
            }
        }
        let position = Position(self.position);
        NeighbourDigest { position, rows, state: digest.to_hex(), digest: digest.finish() }
    }
}

/// What a publish does not keep to, for mutations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lie {
    pub(super) ignores_epoch: bool,
    pub(super) repeats: bool,
    pub(super) believes: bool,
    pub(super) halves: bool,
    pub(super) touches: bool,
    pub(super) releases: bool,
}

pub(super) fn digests(work: &StoreWork, rows: &[(String, Row)]) -> BTreeMap<String, TableDigest> {
    let of = |name: &String| {
        let mut digest = RowsDigest::new();
        let mut count = 0;
        for (_, row) in rows.iter().filter(|(table, _)| table == name) {
            digest.add(name, row);
            count += 1;
        }
        TableDigest { rows: count, digest: digest.finish() }
    };
    work.tables.iter().map(|table| (table.def.name.clone(), of(&table.def.name))).collect()
}

/// How often a shard with these windows has fallen by `at`.
pub(super) fn falls(down: &[crate::faults::Window], at: Duration) -> usize {
    down.iter().filter(|(from, _)| *from <= at).count()
}
