//! Plans and journals of runs.

use muster_repo::runs::Appended;
use muster_repo::{RepoErrorKind, RunObjects, keys};
use muster_types::format::FORMAT;
use muster_types::journal::{JournalEntry, Record};
use muster_types::{Epoch, RunId, Timestamp};

use crate::model::repository;

fn entry(run: &RunId, sequence: u64, writer: &str) -> JournalEntry {
    let taken = Record::Taken { epoch: Epoch(1), by: writer.to_owned(), at: Timestamp::EPOCH };
    JournalEntry {
        format: FORMAT,
        run: run.clone(),
        sequence,
        epoch: Epoch(1),
        writer: writer.to_owned(),
        attempt: sequence,
        at: Timestamp::EPOCH,
        records: vec![taken],
        restraint: None,
    }
}

#[tokio::test]
async fn entries_come_back_in_order_and_each_slot_has_one_writer() {
    let (objects, repository, _) = repository().await;
    let id = RunId::new("run-1").unwrap();
    let run = RunObjects::new(&repository, id.clone());
    let mine: Vec<JournalEntry> = (1..=30).map(|sequence| entry(&id, sequence, "a")).collect();
    for entry in &mine {
        assert_eq!(run.append(entry).await.unwrap(), Appended::Mine);
        assert_eq!(run.append(entry).await.unwrap(), Appended::Mine, "a repeat of one's own");
    }
    let theirs = run.append(&entry(&id, 7, "b")).await.unwrap();
    assert_eq!(theirs, Appended::Other(Box::new(mine[6].clone())));
    assert_eq!(run.journal(0).await.unwrap(), mine);
    assert_eq!(run.journal(28).await.unwrap(), mine[28..]);
    assert_eq!(RunObjects::list(&repository).await.unwrap(), std::slice::from_ref(&id));

    let missing = keys::journal_entry(&id, 12);
    assert!(objects.remove(&missing));
    let failed = run.journal(0).await.unwrap_err();
    assert_eq!(failed.kind, RepoErrorKind::NotFound { key: missing });
}
