//! Ranges are coalesced, and each extent is fetched once.

use std::sync::Arc;

use bytes::Bytes;
use muster_repo::{MemoryObjects, Objects, RangeLimits, RangeReader};
use muster_types::Digest;
use muster_types::snapshot::ObjectInfo;
use proptest::prelude::*;

const KEY: &str = "pack";

fn body(bytes: usize) -> Bytes {
    (0..bytes).map(|index| (index * 31 % 251) as u8).collect::<Vec<u8>>().into()
}

async fn stored(bytes: usize) -> (Arc<MemoryObjects>, ObjectInfo) {
    let objects = Arc::new(MemoryObjects::new());
    objects.put(KEY, body(bytes)).await.unwrap();
    let info = ObjectInfo { key: KEY.to_owned(), bytes: bytes as u64, digest: Digest::of(&body(bytes)) };
    (objects, info)
}

fn reader(
    objects: &Arc<MemoryObjects>,
    wanted: Vec<(ObjectInfo, Vec<(u64, u64)>)>,
    limits: RangeLimits,
) -> RangeReader {
    let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(objects);
    RangeReader::new(objects, wanted, limits)
}

fn expected(bytes: usize, (offset, length): (u64, u64)) -> Bytes {
    body(bytes).slice(usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_extent_is_fetched_once_by_whoever_comes_first() {
    let (objects, info) = stored(100_000).await;
    // Two groups further apart than the gap.
    let wanted: Vec<(u64, u64)> = (0..100).map(|index| (index * 100, 90)).chain([(90_000, 500)]).collect();
    let limits = RangeLimits { gap_bytes: 1_000, ..RangeLimits::default() };
    let reader = reader(&objects, vec![(info, wanted.clone())], limits);
    let mut tasks = tokio::task::JoinSet::new();
    for range in wanted {
        let reader = reader.clone();
        tasks.spawn(async move { (range, reader.read(KEY, range.0, range.1).await.unwrap()) });
    }
    for (range, found) in tasks.join_all().await {
        assert_eq!(found, expected(100_000, range));
    }
    assert_eq!(objects.requests().ranges, 2);
    assert_eq!(objects.requests().range_bytes, 9_990 + 500);
}

#[tokio::test]
async fn extents_are_bounded_and_long_ranges_stand_alone() {
    let (objects, info) = stored(100_000).await;
    let wanted: Vec<(u64, u64)> = vec![(0, 600), (600, 600), (1_200, 50_000), (51_200, 10)];
    let limits = RangeLimits { extent_bytes: 1_300, ..RangeLimits::default() };
    let reader = reader(&objects, vec![(info, wanted.clone())], limits);
    for range in wanted {
        assert_eq!(reader.read(KEY, range.0, range.1).await.unwrap(), expected(100_000, range));
    }
    assert_eq!(objects.requests().ranges, 3, "0 to 1200, the long one, the last");
}

#[tokio::test]
async fn beyond_the_byte_budget_ranges_are_read_by_themselves() {
    let (objects, info) = stored(100_000).await;
    let wanted: Vec<(u64, u64)> =
        (0..10).flat_map(|n| [(n * 10_000, 100), (n * 10_000 + 5_000, 100)]).collect();
    // Each pair is one extent of 5,100 bytes; two of them may be kept.
    let limits =
        RangeLimits { gap_bytes: 4_900, extent_bytes: 5_100, cached_bytes: 10_200, ..RangeLimits::default() };
    let reader = reader(&objects, vec![(info, wanted.clone())], limits);
    let firsts = wanted.iter().step_by(2);
    let seconds = wanted.iter().skip(1).step_by(2);
    for &range in firsts.chain(seconds) {
        assert_eq!(reader.read(KEY, range.0, range.1).await.unwrap(), expected(100_000, range));
    }
    // Ten extents, of which two were still there for the second half.
    assert_eq!(objects.requests().ranges, 10 + 8);
    assert_eq!(objects.requests().range_bytes, 10 * 5_100 + 8 * 100);
}

proptest! {
    #[test]
    fn any_ranges_in_any_order_give_the_bytes(
        wanted in prop::collection::vec((0u64..5_000, 1u64..700), 1..40),
        order in any::<prop::sample::Index>(),
        gap_bytes in 0u64..300,
        extent_bytes in 1u64..3_000,
        cached_bytes in 0u64..6_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (objects, info) = stored(5_700).await;
            let limits = RangeLimits { gap_bytes, extent_bytes, cached_bytes, fetches_in_flight: 2 };
            let reader = reader(&objects, vec![(info, wanted.clone())], limits);
            let turned = order.index(wanted.len());
            let again = wanted.iter().take(3);
            for &range in wanted[turned..].iter().chain(&wanted[..turned]).chain(again) {
                prop_assert_eq!(reader.read(KEY, range.0, range.1).await.unwrap(), expected(5_700, range));
            }
            Ok(())
        })?;
    }
}
