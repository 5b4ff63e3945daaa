//! The driver: every call of the trait, on a thread for blocking work.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use muster_engine::driver::{
    ClaimRefusal, DriverError, ErrorClass, LoggedChange, ProvisionWork, PublishRecord, ReadQuery,
    ReferenceRows, RowBatch, ShardAddress, StoreDriver, StoreProbe, StoreWork,
};
use muster_types::journal::{NeighbourDigest, Published, TableDigest};
use muster_types::plan::{LiveStore, ShardSurvey};
use muster_types::table::CapturedTable;
use muster_types::topology::TableConfig;
use muster_types::{Epoch, Position, RunId, ShardName, StoreId};
use tokio::sync::mpsc;

use super::fault::Fault;
use super::shard::Shard;
use super::{ask, changes, fence, find, look, probe, proof, provision, publish, stage};
use crate::lookup::{FoundRow, Lookup};

/// The restore side of one SQLite file.
#[derive(Clone)]
pub struct SqliteDriver {
    shard: Arc<Shard>,
    fault: Option<Arc<Fault>>,
}

impl SqliteDriver {
    /// The shard in the file at `path`, with its declared tables. Opens nothing yet.
    pub fn new(shard: ShardName, path: impl Into<PathBuf>, tables: BTreeMap<String, TableConfig>) -> Self {
        Self { shard: Arc::new(Shard::new(shard, path.into(), tables)), fault: None }
    }

    /// Plants a fault into every publish.
    #[cfg(any(test, feature = "fault-injection"))]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(Arc::new(fault));
        self
    }

    /// Rows of a shared table by a key. Reads only.
    ///
    /// # Errors
    /// The file cannot be read, or has no such column.
    pub async fn find(&self, lookup: &Lookup) -> Result<Vec<FoundRow>, DriverError> {
        let lookup = lookup.clone();
        self.blocking(move |shard| find::find(shard, &lookup)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shard) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let shard = Arc::clone(&self.shard);
        tokio::task::spawn_blocking(move || work(&shard)).await.unwrap_or_else(|error| {
            Err(DriverError::new(
                ErrorClass::Ambiguous,
                format!("shard `{}`: the thread at work on it ended: {error}", self.shard.name()),
                "the step is tried again; report this if it stays",
            ))
        })
    }
}

#[async_trait]
impl StoreDriver for SqliteDriver {
    async fn probe(&self, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
        let stores = stores.to_vec();
        self.blocking(move |shard| probe::probe(shard, &stores)).await
    }

    async fn survey(&self, _: &[CapturedTable]) -> Result<ShardSurvey, DriverError> {
        self.blocking(provision::survey).await
    }

    async fn make_place(&self) -> Result<(), DriverError> {
        self.blocking(provision::make_place).await
    }

    async fn provision(
        &self,
        work: &ProvisionWork,
        rows: mpsc::Receiver<ReferenceRows>,
    ) -> Result<(), DriverError> {
        let work = work.clone();
        self.blocking(move |shard| provision::provision(shard, &work, rows)).await
    }

    async fn live_rows(&self, store: &StoreProbe, rows: mpsc::Sender<RowBatch>) -> Result<(), DriverError> {
        let store = store.clone();
        self.blocking(move |shard| look::live_rows(shard, &store, &rows)).await
    }

    async fn lacks(&self, store: &StoreProbe) -> Result<Vec<String>, DriverError> {
        let store = store.clone();
        self.blocking(move |shard| ask::lacks(shard, &store)).await
    }

    async fn query(&self, query: &ReadQuery) -> Result<Vec<Vec<Option<String>>>, DriverError> {
        let query = query.clone();
        self.blocking(move |shard| ask::query(shard, &query)).await
    }

    fn address(&self) -> Result<ShardAddress, DriverError> {
        Ok(ShardAddress::Sqlite { path: self.shard.path().to_owned() })
    }

    async fn fence(&self, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError> {
        let run = run.clone();
        self.blocking(move |shard| {
            let published = fence::fence(shard, &run, epoch)?;
            stage::sweep(shard, &run)?;
            Ok(published)
        })
        .await
    }

    async fn claim(
        &self,
        run: &RunId,
        epoch: Epoch,
        stores: &[StoreId],
    ) -> Result<Vec<ClaimRefusal>, DriverError> {
        let (run, stores) = (run.clone(), stores.to_vec());
        self.blocking(move |shard| fence::claim(shard, &run, epoch, &stores)).await
    }

    async fn stage(&self, work: &StoreWork, rows: mpsc::Receiver<RowBatch>) -> Result<(), DriverError> {
        let work = work.clone();
        self.blocking(move |shard| stage::stage(shard, &work, rows)).await
    }

    async fn digest_staged(&self, work: &StoreWork) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        let work = work.clone();
        self.blocking(move |shard| stage::digest_staged(shard, &work)).await
    }

    async fn publish(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError> {
        let (work, expected, fault) = (work.clone(), expected.clone(), self.fault.clone());
        self.blocking(move |shard| publish::publish(shard, &work, &expected, fault.as_deref())).await
    }

    async fn logged_changes(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<(Position, Vec<LoggedChange>), DriverError> {
        self.blocking(move |shard| changes::logged_changes(shard, after, upto)).await
    }

    async fn neighbour_digest(&self, excluded: &BTreeSet<StoreId>) -> Result<NeighbourDigest, DriverError> {
        let excluded = excluded.clone();
        self.blocking(move |shard| proof::neighbour_digest(shard, &excluded)).await
    }

    async fn release(&self, run: &RunId, epoch: Epoch, stores: &[StoreId]) -> Result<(), DriverError> {
        let (run, stores) = (run.clone(), stores.to_vec());
        self.blocking(move |shard| fence::release(shard, &run, epoch, &stores)).await
    }
}
