//! A shard as the driver of one engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use muster_engine::driver::{
    ClaimRefusal, DriverError, ErrorClass, LoggedChange, PublishRecord, PublishWork, RowBatch, StoreDriver,
    StoreProbe, StoreWork,
};
use muster_types::journal::{NeighbourDigest, Published, TableDigest};
use muster_types::plan::LiveStore;
use muster_types::{Epoch, Position, RunId, StoreId};
use tokio::sync::{RwLock, mpsc};

use super::Shard;
use super::state::{Lie, State, digests, falls, refused};
use crate::mutation::Mutation;
use crate::world::{View, lock};

/// What one call met.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Met {
    Answer,
    Transient,
    Throttled,
    /// It is done, and the answer is lost.
    Silence,
    /// What lies beside the live data is lost just before.
    StagingLost,
}

/// Which transactions of its run a call waits for.
enum Gate {
    None,
    Shared(Arc<RwLock<()>>),
    Alone(Arc<RwLock<()>>),
}

/// See the module.
pub(super) struct Handle {
    shard: Arc<Shard>,
    view: View,
    /// Stores that this process staged, with the shard's falls by then.
    own: Mutex<BTreeMap<StoreId, usize>>,
}

impl Handle {
    pub(super) fn new(shard: Arc<Shard>, view: View) -> Self {
        Self { shard, view, own: Mutex::default() }
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.view.world.is_mutated(mutation)
    }

    fn meet(&self) -> Met {
        let (world, faults) = (&self.view.world, self.shard.faults());
        let rates = [
            (faults.transient, Met::Transient),
            (faults.throttled, Met::Throttled),
            (faults.ambiguous, Met::Silence),
            (faults.staging_lost, Met::StagingLost),
        ];
        rates.into_iter().find(|(rate, _)| world.strikes(*rate)).map_or(Met::Answer, |(_, met)| met)
    }

    /// One call: there, through the gate, the transaction, and back. `lost` is the class of an answer that is lost.
    async fn call<T: Send + 'static>(
        &self,
        what: String,
        gate: Gate,
        lost: ErrorClass,
        work: impl FnOnce(&Shard, &mut State) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let met = self.meet();
        let latency = self.shard.faults().latency;
        let (there, back) = (self.view.world.way(latency), self.view.world.way(latency));
        let (shard, view) = (Arc::clone(&self.shard), self.view.clone());
        let served = async move {
            let (_shared, _alone) = match gate {
                Gate::None => (None, None),
                Gate::Shared(gate) => (Some(gate.read_owned().await), None),
                Gate::Alone(gate) => (None, Some(gate.write_owned().await)),
            };
            tokio::time::sleep(there).await;
            let answer = serve(&shard, met, lost, work);
            let told =
                answer.as_ref().map_or_else(|error| format!("{:?}", error.class), |_| "done".to_owned());
            view.note(&format!("{} {what}: {told}", shard.name));
            drop((_shared, _alone));
            tokio::time::sleep(back).await;
            if is_down(&shard) {
                return Err(refused(lost, "the shard went away"));
            }
            answer
        };
        self.view.ask(served).await
    }

    fn lie(&self) -> Lie {
        Lie {
            ignores_epoch: self.mutated(Mutation::FenceIgnored),
            repeats: self.mutated(Mutation::PublishedTwice),
            believes: self.mutated(Mutation::VerifyBelieves),
            halves: self.mutated(Mutation::HalfPublished),
            touches: self.mutated(Mutation::NeighbourTouched),
            releases: self.mutated(Mutation::ReleasedEarly),
        }
    }

    async fn publish_all(&self, group: &[PublishWork]) -> Result<Vec<Published>, DriverError> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let (members, lie) = (group.to_vec(), self.lie());
        let gate = match self.mutated(Mutation::FenceIgnored) {
            true => Gate::None,
            false => Gate::Shared(self.shard.gate(&first.work.run)),
        };
        let stores: Vec<StoreId> = group.iter().map(|member| member.work.store.clone()).collect();
        let names: Vec<String> = stores.iter().map(ToString::to_string).collect();
        let what = format!("publish {} (epoch {})", names.join(" "), first.work.epoch);
        let (who, run) = (self.view.life.name(), &first.work.run);
        self.view.world.audit().publish_begins(who, run, &stores);
        let work = move |shard: &Shard, state: &mut State| {
            full(shard)?;
            publish_together(shard, state, &members, lie)
        };
        let answer = self.call(what, gate, ErrorClass::Ambiguous, work).await;
        self.view.world.audit().publish_ends(who, run, &stores);
        answer
    }
}

/// One transaction: all of them, or nothing.
fn publish_together(
    shard: &Shard,
    state: &mut State,
    members: &[PublishWork],
    lie: Lie,
) -> Result<Vec<Published>, DriverError> {
    let before = state.clone();
    let mut answers = Vec::with_capacity(members.len());
    let mut effects = Vec::new();
    for member in members {
        match state.publish(member, lie) {
            Ok((published, is_new)) => {
                answers.push(published);
                effects.extend(is_new.then_some(&member.work));
            }
            Err(error) => {
                *state = before;
                return Err(error);
            }
        }
    }
    for work in effects {
        shard.world.audit().published(&shard.name, work, state);
        if lie.releases {
            let store = std::slice::from_ref(&work.store);
            shard.world.audit().released(&shard.name, (&work.run, work.epoch), store);
            state.release(&work.run, store);
        }
    }
    Ok(answers)
}

fn is_down(shard: &Shard) -> bool {
    shard.world.is_within(&shard.faults().down)
}

fn full(shard: &Shard) -> Result<(), DriverError> {
    match shard.world.is_within(&shard.faults().full) {
        true => Err(refused(ErrorClass::Permanent, "the disk is full")),
        false => Ok(()),
    }
}

fn serve<T>(
    shard: &Shard,
    met: Met,
    lost: ErrorClass,
    work: impl FnOnce(&Shard, &mut State) -> Result<T, DriverError>,
) -> Result<T, DriverError> {
    if is_down(shard) {
        return Err(refused(ErrorClass::Unavailable, "the shard is down"));
    }
    let mut state = shard.state();
    state.fall(falls(&shard.faults().down, shard.world.elapsed()));
    match met {
        Met::Transient => return Err(refused(ErrorClass::Transient, "a deadlock was broken")),
        Met::Throttled => return Err(refused(ErrorClass::Throttled, "too many connections")),
        Met::StagingLost => state.staged.clear(),
        Met::Answer | Met::Silence => {}
    }
    let answer = work(shard, &mut state)?;
    if met == Met::Silence {
        return Err(refused(lost, "the answer was lost"));
    }
    Ok(answer)
}

#[async_trait]
impl StoreDriver for Handle {
    async fn probe(&self, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError> {
        let stores = stores.to_vec();
        self.call("probe".to_owned(), Gate::None, ErrorClass::Transient, move |_, state| {
            let one = |probe: &StoreProbe| {
                let tables = probe.tables.iter().map(|table| table.def.name.as_str()).collect();
                LiveStore {
                    rows: state.live(&probe.store.site, &tables).count() as u64,
                    claimed_by: state.claimed_by(&probe.store).map(ToString::to_string),
                    ..LiveStore::default()
                }
            };
            Ok(stores.iter().map(one).collect())
        })
        .await
    }

    async fn live_rows(&self, store: &StoreProbe, rows: mpsc::Sender<RowBatch>) -> Result<(), DriverError> {
        let probe = store.clone();
        let what = format!("live rows of {}", store.store);
        let batches = self
            .call(what, Gate::None, ErrorClass::Transient, move |_, state| {
                let batch = |(number, table): (usize, &muster_types::table::CapturedTable)| {
                    let only = BTreeSet::from([table.def.name.as_str()]);
                    let rows = state.live(&probe.store.site, &only).map(|(_, row)| row.clone()).collect();
                    RowBatch { table: number, rows }
                };
                Ok(probe.tables.iter().enumerate().map(batch).collect::<Vec<_>>())
            })
            .await?;
        for batch in batches {
            rows.send(batch).await.map_err(|_| refused(ErrorClass::Transient, "no one reads"))?;
        }
        Ok(())
    }

    async fn fence(&self, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError> {
        let skips = self.mutated(Mutation::FenceSkipped);
        let gate = match skips || self.mutated(Mutation::FenceIgnored) {
            true => Gate::None,
            false => Gate::Alone(self.shard.gate(run)),
        };
        let (run, what) = (run.clone(), format!("fence {run} to epoch {epoch}"));
        self.call(what, gate, ErrorClass::Transient, move |shard, state| {
            if !skips {
                state.raise(&run, epoch)?;
                shard.world.audit().fenced(&shard.name, &run, epoch);
            }
            let record = |(store, published)| PublishRecord { store, published };
            Ok(state.published_by(&run).into_iter().map(record).collect())
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
        let blind = self.mutated(Mutation::ClaimIgnored);
        let what = format!("claim {} stores for {run}", stores.len());
        self.call(what, Gate::None, ErrorClass::Transient, move |shard, state| {
            state.check_epoch(&run, epoch)?;
            let refusals = state.claim(&run, &stores, blind);
            let won: Vec<&StoreId> = stores
                .iter()
                .filter(|store| refusals.iter().all(|refusal| refusal.store != **store))
                .collect();
            shard.world.audit().claimed(&shard.name, (&run, epoch), &won);
            Ok(refusals)
        })
        .await
    }

    async fn stage(&self, work: &StoreWork, mut rows: mpsc::Receiver<RowBatch>) -> Result<(), DriverError> {
        let mut staged = Vec::new();
        while let Some(batch) = rows.recv().await {
            let table = &work.tables[batch.table].def.name;
            staged.extend(batch.rows.into_iter().map(|row| (table.clone(), row)));
        }
        if self.mutated(Mutation::VerifyBelieves) {
            staged.pop();
        }
        let (member, what) = (work.clone(), format!("stage {} (epoch {})", work.store, work.epoch));
        let fallen = self
            .call(what, Gate::None, ErrorClass::Transient, move |shard, state| {
                full(shard)?;
                state.check_epoch(&member.run, member.epoch)?;
                shard.world.audit().staged(&shard.name, &member);
                state.staged.insert((member.run.clone(), member.store.clone()), staged);
                Ok(state.falls)
            })
            .await?;
        lock(&self.own).insert(work.store.clone(), fallen);
        Ok(())
    }

    async fn digest_staged(&self, work: &StoreWork) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        let member = work.clone();
        let what = format!("digest of what is staged of {}", work.store);
        self.call(what, Gate::None, ErrorClass::Transient, move |_, state| {
            Ok(digests(&member, state.staged(&member)?))
        })
        .await
    }

    async fn is_as_staged(&self, work: &StoreWork) -> Result<bool, DriverError> {
        if self.mutated(Mutation::VerifyBelieves) {
            return Ok(true);
        }
        let own = lock(&self.own).get(&work.store).copied();
        let member = work.clone();
        let what = format!("look whether {} is as staged", work.store);
        self.call(what, Gate::None, ErrorClass::Transient, move |_, state| {
            Ok(own == Some(state.falls) && state.staged(&member).is_ok())
        })
        .await
    }

    async fn publish(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError> {
        let member = PublishWork { work: work.clone(), expected: expected.clone() };
        let mut answers = self.publish_all(&[member]).await?;
        answers.pop().ok_or_else(|| refused(ErrorClass::Permanent, "a publish without an answer"))
    }

    /// Whole or not at all, and who was at fault is not told.
    async fn publish_group(&self, group: &[PublishWork]) -> Vec<Result<Published, DriverError>> {
        match self.publish_all(group).await {
            Ok(published) => published.into_iter().map(Ok).collect(),
            Err(error) => group.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn logged_changes(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<(Position, Vec<LoggedChange>), DriverError> {
        let what = format!("changes {after} to {upto}");
        self.call(what, Gate::None, ErrorClass::Transient, move |_, state| {
            let inside = |logged: &&LoggedChange| {
                let position = logged.change.stamp.key.position;
                position > after && position <= upto
            };
            Ok((Position(state.captured_upto + 1), state.log.iter().filter(inside).cloned().collect()))
        })
        .await
    }

    async fn neighbour_digest(&self, excluded: &BTreeSet<StoreId>) -> Result<NeighbourDigest, DriverError> {
        let excluded = excluded.clone();
        self.call(
            "digest of the neighbours".to_owned(),
            Gate::None,
            ErrorClass::Transient,
            move |shard, state| {
                Ok(state.neighbours(|table, site| {
                    shard.kind_of(table).is_none_or(|kind| {
                        !excluded.contains(&StoreId { site: site.clone(), kind: kind.clone() })
                    })
                }))
            },
        )
        .await
    }

    async fn release(&self, run: &RunId, epoch: Epoch, stores: &[StoreId]) -> Result<(), DriverError> {
        let (run, stores) = (run.clone(), stores.to_vec());
        let believes = self.mutated(Mutation::ReleasedLate);
        let what = format!("release {} stores of {run}", stores.len());
        self.call(what, Gate::None, ErrorClass::Transient, move |shard, state| {
            if !believes {
                state.check_epoch(&run, epoch)?;
            }
            shard.world.audit().released(&shard.name, (&run, epoch), &stores);
            state.release(&run, &stores);
            Ok(())
        })
        .await
    }
}
