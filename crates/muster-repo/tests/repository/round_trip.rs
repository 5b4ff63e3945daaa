//! Random writes, captured, read back at random places: rows equal the truth.

use std::sync::Arc;

use muster_repo::{Chain, RangeLimits, RangeReader, RepoError, Repository, rows};
use muster_rows::Row;
use muster_types::SiteId;
use proptest::prelude::*;

use crate::model::{
    Shard, TABLES, Write, digest_of, input, ranges, read_catalog, repository, site, sorted, tables,
};

const SITES: u8 = 4;

fn write() -> impl Strategy<Value = Write> {
    let text = prop_oneof![
        3 => prop::option::of("[ -~\\t\\n\\\\]{0,40}").prop_map(Some),
        1 => Just(None),
    ];
    (0..SITES, 0..TABLES, 0u16..12, text, 0u16..12, prop::bool::weighted(0.2), prop::bool::weighted(0.7))
        .prop_map(|(site, table, key, text, other, marked, same)| {
            let new_key = if same { key } else { other };
            Write { site, table, key, text, new_key, marked }
        })
}

pub(crate) async fn read_rows(
    repository: &Repository,
    catalog: &muster_types::catalog::Catalog,
    (site, table, upto): (&SiteId, usize, u64),
    budget_bytes: u64,
) -> (Vec<Row>, rows::TableRows) {
    let (input, objects) = input(catalog, site, table, upto);
    let reader =
        RangeReader::new(Arc::clone(repository.objects()), ranges(&input, &objects), RangeLimits::default());
    let mut found = Vec::new();
    let def = &tables()[table];
    let done = rows::table_rows(&reader, def, &input, &objects, budget_bytes, |batch| {
        found.extend(batch);
        std::future::ready(Ok::<(), RepoError>(()))
    });
    let done = done.await.unwrap();
    (sorted(found), done)
}

/// Captures `writes` with a segment every `every` positions and snapshots at `snapshots`, wherever these lie; compares
/// everything at the end and at `cuts`.
async fn check(
    writes: &[Write],
    every: u64,
    snapshots: &[u64],
    cuts: &[u64],
    reread: bool,
    budget_bytes: u64,
) {
    let mut shard = Shard::new();
    writes.iter().for_each(|write| shard.write(write));
    let last = shard.position();
    let (_, repository, incarnation) = repository().await;
    for &position in snapshots {
        shard.snapshot(&repository, &incarnation, position.min(last)).await;
    }
    let mut bounds: Vec<u64> = (0..=last).step_by(usize::try_from(every).unwrap()).collect();
    bounds.push(last);
    bounds.sort_unstable();
    bounds.dedup();
    let mut chain = Chain::open(&repository, &crate::model::shard(), &incarnation).await.unwrap();
    let middle = bounds[bounds.len() / 2];
    shard.log(&mut chain, &bounds, reread.then_some((middle, 1))).await;

    let sites: Vec<SiteId> = (0..SITES).map(site).collect();
    let catalog = read_catalog(&repository, &sites).await;
    assert_eq!(catalog.shards[&crate::model::shard()].incarnations[0].gaps, vec![]);
    let upto = bounds[bounds.len() * 2 / 3];
    let cuts = cuts.iter().map(|&cut| cut.min(last));
    for at in cuts.chain([upto, last]) {
        // What changed in a table before it was read again is known at the end of that segment only.
        let unknown = reread
            && bounds.iter().rfind(|&&bound| bound < middle).is_some_and(|&begin| begin < at && at < middle);
        for site in &sites {
            for table in (0..TABLES).filter(|&table| !(unknown && table == 1)) {
                let (found, done) = read_rows(&repository, &catalog, (site, table, at), budget_bytes).await;
                let truth = shard.truth(site, table, at);
                assert_eq!(found, truth, "{site}, table {table}, position {at}");
                assert_eq!(done.digest, digest_of(table, &truth));
                assert_eq!((done.rows, done.repeats, done.derived), (truth.len() as u64, 0, true));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn rows_at_any_recovery_point_equal_the_truth(
        writes in prop::collection::vec(write(), 1..200),
        every in 1u64..40,
        snapshots in prop::collection::vec(0u64..200, 0..3),
        cuts in prop::collection::vec(0u64..200, 0..3),
        reread in any::<bool>(),
        // The least budget makes several passes.
        budget_bytes in prop_oneof![Just(1_000u64), Just(1 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(&writes, every, &snapshots, &cuts, reread, budget_bytes));
    }
}

#[tokio::test]
async fn a_table_of_many_chunks_comes_back_whole() {
    let mut shard = Shard::new();
    // 3 MiB of text that hardly compresses, so that the table has several chunks.
    for key in 0..300u16 {
        let text: String = (0..10_000).map(|i: u32| char::from(33 + (blake(key, i) % 90) as u8)).collect();
        let text = Some(Some(text));
        shard.write(&Write { site: 1, table: 0, key, text, new_key: key, marked: false });
    }
    let (objects, repository, incarnation) = repository().await;
    shard.snapshot(&repository, &incarnation, 300).await;
    let catalog = read_catalog(&repository, &[site(1)]).await;
    let before = objects.requests().ranges;
    let (found, done) = read_rows(&repository, &catalog, (&site(1), 0, 300), 1 << 20).await;
    assert_eq!(found, shard.truth(&site(1), 0, 300));
    assert!(done.bytes_read > 2 << 20, "{done:?}");
    assert_eq!(objects.requests().ranges - before, 1, "neighbouring chunks are one extent");
}

fn blake(key: u16, index: u32) -> u64 {
    let mut mixed = u64::from(key) << 32 | u64::from(index);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
