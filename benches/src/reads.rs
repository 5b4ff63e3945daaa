//! Bytes read through the repository per second, to plain ranged GETs through the same client.
//!
//! The limit is whole objects in ranges of 8 MiB, as many at once as a run has. Reading all chunks of a plan must fetch
//! the same bytes in many more parts; reading some sites' chunks fetches less, with gaps that are read or skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use muster_repo::{Objects, RangeLimits, RangeReader, RepoError, rows};
use muster_types::plan::{Plan, StorePlan, TableInput};
use muster_types::snapshot::{Chunk, ObjectInfo};

use crate::measure::{Rounds, Stopwatch, count, ratio, table};
use crate::world::World;

pub(crate) const RANGE_BYTES: u64 = 8 * 1024 * 1024;
/// A round repeats its reads for so long, so that it outlasts a hiccup.
pub(crate) const ROUND: Duration = Duration::from_secs(2);
/// Stores read at once, as the stage slots of a run.
const STORES_AT_ONCE: usize = 16;
/// Memory of one fold.
const FOLD_BYTES: u64 = 32 * 1024 * 1024;

/// What is read.
#[derive(Clone, Copy)]
enum How {
    /// Whole objects in long ranges.
    Plain,
    /// A GET for each chunk.
    EachChunk,
    /// The chunks of a plan, coalesced.
    Coalesced,
    /// The rows of a plan: checked, decompressed, folded, digested.
    Rows,
}

/// The ranges of a plan, by object, for a [`RangeReader`].
pub(crate) fn wanted(plan: &Plan) -> Vec<(ObjectInfo, Vec<(u64, u64)>)> {
    let mut ranges: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for (object, chunk) in stores(plan).flat_map(|store| &store.tables).flat_map(chunks) {
        ranges.entry(object).or_default().push((chunk.offset, chunk.bytes));
    }
    ranges.into_iter().map(|(object, ranges)| (plan.objects[object as usize].clone(), ranges)).collect()
}

fn stores(plan: &Plan) -> impl Iterator<Item = &StorePlan> {
    plan.sites.iter().flat_map(|site| &site.stores)
}

fn chunks(input: &TableInput) -> impl Iterator<Item = (u32, &Chunk)> {
    let base = input.base.iter().map(|base| (base.object, &base.chunks));
    let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
    base.chain(changes).flat_map(|(object, chunks)| chunks.iter().map(move |chunk| (object, chunk)))
}

/// Runs the rounds and prints the table.
pub(crate) async fn run(world: &World, rounds: usize) -> Result<()> {
    let (whole, some) = (&world.whole, &world.plan);
    let sides: [(&str, How, &Plan); 6] = [
        ("plain GETs of 8 MiB", How::Plain, whole),
        ("every site: all chunks", How::Coalesced, whole),
        ("some sites: all chunks", How::Coalesced, some),
        ("some sites: a GET for each chunk", How::EachChunk, some),
        ("every site: rows, checked and folded", How::Rows, whole),
        ("some sites: rows, checked and folded", How::Rows, some),
    ];
    let mut figures: Vec<(Rounds, Rounds, (u64, u64, u64))> = vec![Default::default(); sides.len()];
    for _ in 0..rounds {
        for ((_, how, plan), (rate, cpu, sizes)) in sides.iter().zip(&mut figures) {
            let (megabytes, per_megabyte, fetched) = round(world.repository.objects(), *how, plan).await?;
            rate.push(megabytes);
            cpu.push(per_megabyte);
            *sizes = fetched;
        }
    }
    let mut shown =
        table(&["reads", "MB/s wanted", "to plain GETs", "CPU ms/MB", "MB wanted", "MB fetched", "requests"]);
    for ((name, ..), (rate, cpu, (bytes, fetched, requests))) in sides.iter().zip(&figures) {
        let of = rate.to(&figures[0].0).show(ratio);
        let (bytes, fetched) = (ratio(*bytes as f64 / 1e6), ratio(*fetched as f64 / 1e6));
        shown.add_row([
            (*name).to_owned(),
            rate.show(count),
            of,
            cpu.show(ratio),
            bytes,
            fetched,
            count(*requests as f64),
        ]);
    }
    println!("\n{shown}");
    Ok(())
}

/// Reads until a round is full. Megabytes per second, CPU milliseconds per megabyte, and of one pass the bytes wanted,
/// the bytes fetched and the requests.
async fn round(objects: &Arc<dyn Objects>, how: How, plan: &Plan) -> Result<(f64, f64, (u64, u64, u64))> {
    let watch = Stopwatch::start()?;
    let (mut total, mut pass) = (0, (0, 0, 0));
    while total == 0 || watch.lap()?.wall < ROUND {
        pass = match how {
            How::Plain => plain(objects, &long_ranges(plan)).await?,
            How::EachChunk => plain(objects, &chunk_ranges(plan)).await?,
            How::Coalesced => coalesced(objects, plan).await?,
            How::Rows => decoded(objects, plan).await?,
        };
        ensure!(pass.0 > 0, "the plan reads nothing");
        total += pass.0;
    }
    let lap = watch.lap()?;
    let megabytes = total as f64 / 1e6;
    Ok((megabytes / lap.wall.as_secs_f64(), lap.cpu_seconds * 1e3 / megabytes, pass))
}

pub(crate) type Range<'p> = (&'p str, u64, u64);

pub(crate) fn long_ranges(plan: &Plan) -> Vec<Range<'_>> {
    let ranges = |object: &ObjectInfo| {
        let bytes = object.bytes;
        (0..bytes.div_ceil(RANGE_BYTES))
            .map(move |nth| (nth * RANGE_BYTES, RANGE_BYTES.min(bytes - nth * RANGE_BYTES)))
    };
    let all = plan
        .objects
        .iter()
        .flat_map(|object| ranges(object).map(|(from, bytes)| (object.key.as_str(), from, bytes)));
    all.collect()
}

pub(crate) fn chunk_ranges(plan: &Plan) -> Vec<Range<'_>> {
    let all = stores(plan).flat_map(|store| &store.tables).flat_map(chunks);
    all.map(|(object, chunk)| (plan.objects[object as usize].key.as_str(), chunk.offset, chunk.bytes))
        .collect()
}

async fn plain(objects: &Arc<dyn Objects>, ranges: &[Range<'_>]) -> Result<(u64, u64, u64)> {
    let in_flight = RangeLimits::default().fetches_in_flight;
    let get = |&(key, from, bytes): &Range<'_>| {
        let key = key.to_owned();
        async move { objects.get_range(&key, from, bytes).await.map(|body| body.len() as u64) }
    };
    let answers: Vec<u64> =
        stream::iter(ranges.iter().map(get)).buffer_unordered(in_flight).try_collect().await?;
    let bytes = answers.iter().sum();
    Ok((bytes, bytes, ranges.len() as u64))
}

pub(crate) async fn coalesced(objects: &Arc<dyn Objects>, plan: &Plan) -> Result<(u64, u64, u64)> {
    let reader = RangeReader::new(Arc::clone(objects), wanted(plan), RangeLimits::default());
    let reads = stores(plan).map(|store| read_chunks(&reader, plan, store));
    let bytes: Vec<u64> = stream::iter(reads).buffer_unordered(STORES_AT_ONCE).try_collect().await?;
    let (requests, fetched) = reader.fetched();
    Ok((bytes.iter().sum(), fetched, requests))
}

async fn read_chunks(reader: &RangeReader, plan: &Plan, store: &StorePlan) -> Result<u64, RepoError> {
    let mut bytes = 0;
    for (object, chunk) in store.tables.iter().flat_map(chunks) {
        bytes += reader.chunk(&plan.objects[object as usize], chunk).await?.len() as u64;
    }
    Ok(bytes)
}

async fn decoded(objects: &Arc<dyn Objects>, plan: &Plan) -> Result<(u64, u64, u64)> {
    let reader = RangeReader::new(Arc::clone(objects), wanted(plan), RangeLimits::default());
    let reads = stores(plan).map(|store| read_rows(&reader, plan, store));
    let bytes: Vec<u64> = stream::iter(reads).buffer_unordered(STORES_AT_ONCE).try_collect().await?;
    let (requests, fetched) = reader.fetched();
    Ok((bytes.iter().sum(), fetched, requests))
}

async fn read_rows(reader: &RangeReader, plan: &Plan, store: &StorePlan) -> Result<u64, RepoError> {
    let mut bytes = 0;
    for input in &store.tables {
        let table = &plan.tables[input.table as usize];
        let mut stream = rows::open(reader, table, input, &plan.objects, FOLD_BYTES);
        while stream.next().await.is_some() {}
        bytes += stream.finish().await?.bytes_read;
    }
    Ok(bytes)
}
