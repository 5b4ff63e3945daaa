//! The log read back by position equals what was written.

use muster_repo::Chain;
use muster_repo::log::{LogFilter, LogReader};
use muster_types::{Position, RunId};
use proptest::prelude::*;

use crate::model::{Shard, TABLES, Write, repository, shard};

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
