//! The driver: every call of the trait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use muster_engine::driver::{
    ClaimRefusal, DriverError, GroupRows, LoggedChange, ProvisionWork, PublishRecord, PublishWork, ReadQuery,
    ReferenceRows, RowBatch, ShardAddress, StoreDriver, StoreProbe, StoreWork, one_by_one,
};
use muster_types::journal::{Migrated, NeighbourDigest, Published, TableDigest};
use muster_types::plan::{LiveStore, ShardSurvey};
use muster_types::table::CapturedTable;
use muster_types::topology::Declared;
use muster_types::{Epoch, Position, RunId, ShardName, StoreId};
use tokio::sync::mpsc;

use super::fitness::{self, Fitness};
use super::shard::Shard;
use super::{ask, fence, find, group, look, migrate, probe, proof, provision, publish, stage};
use crate::lookup::{FoundRow, Lookup};
use crate::postgres::connect::PostgresConfig;

/// The restore side of one database.
#[derive(Clone)]
pub struct PostgresDriver {
    shard: Arc<Shard>,
}

impl PostgresDriver {
    /// For the declared `tables` of `shard`. Connects to nothing yet; a connection that cannot be understood is told by
    /// the first call.
    pub fn new(shard: ShardName, connection: &str, tables: impl Into<Declared>) -> Self {
        let config = PostgresConfig::parse(connection);
        Self { shard: Arc::new(Shard::new(shard, config, tables.into())) }
    }

    /// As [`Self::new`], for a place that is known.
    pub(crate) fn at(shard: ShardName, config: PostgresConfig, tables: impl Into<Declared>) -> Self {
        Self { shard: Arc::new(Shard::new(shard, Ok(config), tables.into())) }
    }

    /// Whether a publish of any store would be taken, as far as rights, triggers and constraints go. Reads only.
    ///
    /// # Errors
    /// The database cannot be reached or read.
    pub async fn fitness(&self) -> Result<Fitness, DriverError> {
        fitness::fitness(&self.shard).await
    }

    /// Rows of a shared table by a key. Reads only.
    ///
    /// # Errors
    /// The database cannot be reached or read, or has no such column.
    pub async fn find(&self, lookup: &Lookup) -> Result<Vec<FoundRow>, DriverError> {
        find::find(&self.shard, lookup).await
    }
}

#[async_trait]
impl StoreDriver for PostgresDriver {
    async fn probe(&self, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
        probe::probe(&self.shard, stores).await
    }

    async fn survey(&self, wanted: &[CapturedTable]) -> Result<ShardSurvey, DriverError> {
        provision::survey(&self.shard, wanted).await
    }

    async fn provision(
        &self,
        work: &ProvisionWork,
        rows: mpsc::Receiver<ReferenceRows>,
    ) -> Result<(), DriverError> {
        provision::provision(&self.shard, work, rows).await
    }

    async fn live_rows(&self, store: &StoreProbe, rows: mpsc::Sender<RowBatch>) -> Result<(), DriverError> {
        look::live_rows(&self.shard, store, &rows).await
    }

    async fn lacks(&self, store: &StoreProbe) -> Result<Vec<String>, DriverError> {
        ask::lacks(&self.shard, store).await
    }

    async fn query(&self, query: &ReadQuery) -> Result<Vec<Vec<Option<String>>>, DriverError> {
        ask::query(&self.shard, query).await
    }

    fn address(&self) -> Result<ShardAddress, DriverError> {
        ask::address(&self.shard)
    }

    async fn fence(&self, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError> {
        fence::fence(&self.shard, run, epoch).await
    }

    async fn claim(
        &self,
        run: &RunId,
        epoch: Epoch,
        stores: &[StoreId],
    ) -> Result<Vec<ClaimRefusal>, DriverError> {
        fence::claim(&self.shard, run, epoch, stores).await
    }

    async fn stage(&self, work: &StoreWork, rows: mpsc::Receiver<RowBatch>) -> Result<(), DriverError> {
        stage::stage(&self.shard, work, rows).await
    }

    async fn digest_staged(&self, work: &StoreWork) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        stage::digest_staged(&self.shard, work).await
    }

    async fn is_as_staged(&self, work: &StoreWork) -> Result<bool, DriverError> {
        stage::is_as_sent(&self.shard, work).await
    }

    async fn migrate(&self, work: &StoreWork) -> Result<Option<Migrated>, DriverError> {
        migrate::migrate(&self.shard, work).await
    }

    async fn publish(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError> {
        publish::publish(&self.shard, work, expected).await
    }

    async fn stage_group(
        &self,
        works: &[StoreWork],
        mut rows: mpsc::Receiver<GroupRows>,
    ) -> Vec<Result<(), DriverError>> {
        match group::stage(&self.shard, works, &mut rows).await {
            Some(answers) => answers,
            None => one_by_one::stage(self, works, rows).await,
        }
    }

    async fn digest_staged_group(
        &self,
        works: &[StoreWork],
    ) -> Vec<Result<BTreeMap<String, TableDigest>, DriverError>> {
        match group::digest_staged(&self.shard, works).await {
            Some(answers) => answers,
            None => one_by_one::digest_staged(self, works).await,
        }
    }

    async fn is_as_staged_group(&self, works: &[StoreWork]) -> Vec<Result<bool, DriverError>> {
        match group::is_as_sent(&self.shard, works).await {
            Some(answers) => answers,
            None => one_by_one::is_as_staged(self, works).await,
        }
    }

    async fn publish_group(&self, members: &[PublishWork]) -> Vec<Result<Published, DriverError>> {
        match group::publish(&self.shard, members).await {
            Some(answers) => answers,
            None => one_by_one::publish(self, members).await,
        }
    }

    /// The log is read from the repository alone: a slot gives it to one reader only, which is capture.
    async fn logged_changes(
        &self,
        _: Position,
        upto: Position,
    ) -> Result<(Position, Vec<LoggedChange>), DriverError> {
        Ok((Position(upto.0.saturating_add(1)), Vec::new()))
    }

    async fn neighbour_digest(&self, excluded: &BTreeSet<StoreId>) -> Result<NeighbourDigest, DriverError> {
        proof::neighbour_digest(&self.shard, excluded).await
    }

    async fn release(&self, run: &RunId, epoch: Epoch, stores: &[StoreId]) -> Result<(), DriverError> {
        let session = self.shard.session().await?;
        let ready = self.shard.ensure_run_tables(&session).await;
        ready.map_err(|error| self.shard.error("create schema `muster`", &error))?;
        fence::release(&self.shard, &session, (run, epoch), stores).await?;
        self.shard.sent.forget(stores);
        stage::drop_unclaimed(&self.shard, &session, run, epoch).await?;
        session.keep();
        Ok(())
    }
}
