//! Groups for drivers that know none, and for stores that do not fit together: one store after the other.

use std::collections::BTreeMap;

use muster_types::journal::{Published, TableDigest};
use tokio::sync::mpsc;

use super::{DriverError, ErrorClass, GroupRows, PublishWork, RowBatch, StoreDriver, StoreWork};

/// Gathers all rows, which are few, then stages store by store.
pub async fn stage<D: StoreDriver + ?Sized>(
    driver: &D,
    group: &[StoreWork],
    mut rows: mpsc::Receiver<GroupRows>,
) -> Vec<Result<(), DriverError>> {
    let mut gathered: Vec<Option<Vec<RowBatch>>> = group.iter().map(|_| Some(Vec::new())).collect();
    while let Some(delivered) = rows.recv().await {
        match delivered {
            GroupRows::Batch { store, batch } => {
                if let Some(Some(kept)) = gathered.get_mut(store) {
                    kept.push(batch);
                }
            }
            GroupRows::Withdrawn { store } => {
                gathered.get_mut(store).and_then(Option::take);
            }
        }
    }
    let mut answers = Vec::with_capacity(group.len());
    for (work, batches) in group.iter().zip(gathered) {
        answers.push(match batches {
            Some(batches) => stage_one(driver, work, batches).await,
            None => Ok(()),
        });
    }
    answers
}

async fn stage_one<D: StoreDriver + ?Sized>(
    driver: &D,
    work: &StoreWork,
    batches: Vec<RowBatch>,
) -> Result<(), DriverError> {
    let (sender, receiver) = mpsc::channel(1);
    let send = async {
        for batch in batches {
            // A driver that stops listening says why.
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    tokio::join!(driver.stage(work, receiver), send).0
}

/// Reads back store by store. Where the other side is not there, it is not looked for once a store.
pub async fn digest_staged<D: StoreDriver + ?Sized>(
    driver: &D,
    group: &[StoreWork],
) -> Vec<Result<BTreeMap<String, TableDigest>, DriverError>> {
    let mut answers = Vec::with_capacity(group.len());
    for work in group {
        answers.push(match away(&answers) {
            Some(away) => Err(away),
            None => driver.digest_staged(work).await,
        });
    }
    answers
}

/// Compares store by store what is staged with what was given.
pub async fn is_as_staged<D: StoreDriver + ?Sized>(
    driver: &D,
    group: &[StoreWork],
) -> Vec<Result<bool, DriverError>> {
    let mut answers = Vec::with_capacity(group.len());
    for work in group {
        answers.push(match away(&answers) {
            Some(away) => Err(away),
            None => driver.is_as_staged(work).await,
        });
    }
    answers
}

/// Publishes store by store. Where the other side is not there, it is not looked for once a store.
pub async fn publish<D: StoreDriver + ?Sized>(
    driver: &D,
    group: &[PublishWork],
) -> Vec<Result<Published, DriverError>> {
    let mut answers = Vec::with_capacity(group.len());
    for member in group {
        answers.push(match away(&answers) {
            Some(away) => Err(away),
            None => driver.publish(&member.work, &member.expected).await,
        });
    }
    answers
}

/// The last answer, where it says that nobody is there.
fn away<T>(answers: &[Result<T, DriverError>]) -> Option<DriverError> {
    let error = answers.last()?.as_ref().err()?;
    (error.class == ErrorClass::Unavailable).then(|| error.clone())
}
