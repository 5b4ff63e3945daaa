//! The log read back by position equals what was written.

use muster_repo::log::{LogFilter, LogReader};
use muster_repo::{Chain, Objects as _, SegmentSpool, keys};
use muster_types::{Position, RunId};
use proptest::prelude::*;

use crate::model::{Shard, TABLES, Write, at, read_catalog, repository, shard, site, tables};
use crate::round_trip::read_rows;

async fn check(writes: &[Write], every: usize, ends: &[(usize, usize)]) {
    let mut past = Shard::new();
    writes.iter().for_each(|write| past.write(write));
    let last = past.position();
    let (_, repository, incarnation) = repository().await;
    let mut bounds: Vec<u64> = (0..=last).step_by(every).collect();
    bounds.push(last);
    let mut chain = Chain::open(&repository, &shard(), &incarnation).await.unwrap();
    past.log(&mut chain, &bounds, None).await;

    let reader = LogReader::new(&repository, &shard());
    let run = RunId::new("run-1").unwrap();
    for &(one, other) in ends {
        let (one, other) = (one as u64 % (last + 1), other as u64 % (last + 1));
        let (after, upto) = (one.min(other), one.max(other));
        for marked_only in [false, true] {
            let filter = match marked_only {
                true => LogFilter::Step { run: &run, step: "publish/x" },
                false => LogFilter::All,
            };
            let found = reader.changes(Position(after), Position(upto), filter).await.unwrap().unwrap();
            let found: Vec<_> = found.changes.into_iter().map(|logged| logged.change).collect();
            assert_eq!(found, past.changes_between(after, upto, marked_only), "{after} to {upto}");
        }
    }
    let beyond = reader.changes(Position(0), Position(last + 1), LogFilter::All).await.unwrap();
    assert_eq!(beyond, None, "the log does not reach that far");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_stretch_of_the_log_comes_back_in_order(
        writes in prop::collection::vec(
            (0u8..3, 0..TABLES, 0u16..6, prop::option::weighted(0.7, Just(None)), any::<bool>()),
            1..80,
        ),
        every in 1usize..20,
        ends in prop::collection::vec(any::<(usize, usize)>(), 1..6),
    ) {
        let writes: Vec<Write> = writes
            .into_iter()
            .map(|(site, table, key, text, marked)| Write { site, table, key, text, new_key: key, marked })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&writes, every, &ends));
    }
}

#[tokio::test]
async fn an_index_that_its_successor_does_not_name_is_refused() {
    let (objects, repository, incarnation) = repository().await;
    let mut past = Shard::new();
    for key in 0..9 {
        past.write(&Write { site: 1, table: 0, key, text: Some(None), new_key: key, marked: false });
    }
    let mut chain = Chain::open(&repository, &shard(), &incarnation).await.unwrap();
    past.log(&mut chain, &[0, 3, 6, 9], None).await;
    // The same document, stored in other bytes: nothing but the digest tells.
    let key = keys::segment_index(&shard(), &incarnation, 3);
    let text = zstd::decode_all(&objects.get(&key).await.unwrap().unwrap()[..]).unwrap();
    let before = LogReader::new(&repository, &shard());
    let read = async |reader: &LogReader, after| {
        reader
            .changes(Position(after), Position(9), LogFilter::All)
            .await
            .map(|range| range.unwrap().changes.len())
    };
    assert_eq!(read(&before, 7).await.unwrap(), 2, "the newest segment alone");
    assert!(objects.damage(&key, |bytes| *bytes = zstd::encode_all(&text[..], 19).unwrap()));
    for reader in [before, LogReader::new(&repository, &shard())] {
        let refused = read(&reader, 0).await.unwrap_err();
        assert!(refused.to_string().contains(&key), "{refused}");
    }
}

#[tokio::test]
async fn changes_that_were_kept_back_come_as_a_second_group() {
    let (_, repository, incarnation) = repository().await;
    let mut past = Shard::new();
    for key in 0..9 {
        past.write(&Write { site: 1, table: 0, key, text: Some(None), new_key: key, marked: false });
    }
    // The first three rows once more, so that a fold in the order of the file would end with other rows.
    for key in 0..3 {
        past.write(&Write { site: 1, table: 0, key, text: None, new_key: key, marked: false });
    }
    let all = past.changes_between(0, 12, false);
    let dir = tempfile::tempdir().unwrap();
    let mut spool = SegmentSpool::new(&dir.path().join("segment"));
    for table in tables() {
        spool.table(&table);
    }
    for change in all[5..].iter().chain(&all[..5]) {
        spool.change(Some(&site(1)), 0, None, change).unwrap();
    }
    assert!(spool.change(Some(&site(1)), 0, None, &all[4]).is_err(), "one change twice");
    let spooled = spool.finish().unwrap();
    let spans =
        spooled.sites[&site(1)].iter().map(|frame| frame.span.map(|(first, last)| (first.key, last.key)));
    let ends = |first: usize, last: usize| Some((all[first].stamp.key, all[last].stamp.key));
    assert_eq!(spans.collect::<Vec<_>>(), [ends(5, 11), ends(0, 4)]);
    let mut chain = Chain::open(&repository, &shard(), &incarnation).await.unwrap();
    chain.append(spooled, at(0), at(12), (0, 10), "writer-1").await.unwrap();

    let reader = LogReader::new(&repository, &shard());
    let found = reader.changes(Position(0), Position(12), LogFilter::All).await.unwrap().unwrap();
    assert_eq!(found.changes.into_iter().map(|logged| logged.change).collect::<Vec<_>>(), all);
    let catalog = read_catalog(&repository, &[site(1)]).await;
    for upto in [4, 7, 10, 12] {
        let (found, _) = read_rows(&repository, &catalog, (&site(1), 0, upto), 1 << 20).await;
        assert_eq!(found, past.truth(&site(1), 0, upto), "at {upto}");
    }
}
