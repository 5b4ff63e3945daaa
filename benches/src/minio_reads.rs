//! Bytes read from MinIO through the repository per second, to plain ranged GETs by `curl` of the same objects.
//!
//! Whole: every object of a fleet. Sparse: the chunks of a third of its sites, or however many are restored; `curl` is
//! given each chunk (those that touch as one), and the same with the gaps read that a [`muster_repo::RangeReader`] would read.

use anyhow::{Result, ensure};
use muster_repo::RangeLimits;
use muster_services::{Minio, Postgres, Range};
use muster_types::Timestamp;
use muster_types::plan::Plan;

use crate::Args;
use crate::measure::{Rounds, Stopwatch, count, ratio, table};
use crate::postgres_restore::version;
use crate::reads::{ROUND, chunk_ranges, coalesced, long_ranges};
use crate::shard::captured::POLL;
use crate::shard::writers::{Pace, WRITING, Writers};
use crate::shard::{Captured, SETTINGS, Size, Tables, blocking};

/// Who reads.
enum Reader<'a> {
    /// `curl`, these ranges.
    Curl(Vec<Range>),
    /// The repository, the chunks of a plan.
    Repository(&'a Plan),
}

/// One row of the table.
struct Side<'a> {
    name: &'static str,
    /// The row that it is compared with.
    peer: usize,
    reader: Reader<'a>,
    /// Bytes of the chunks.
    wanted: u64,
    rate: Rounds,
    fetched: u64,
    requests: u64,
}

/// Runs the rounds and prints the table.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let (cluster, minio) = blocking(|| anyhow::Ok((Postgres::own(&SETTINGS)?, Minio::own()?)))?;
    let size = args.size();
    let tables = blocking(|| Tables::make(&cluster, "live", size))?;
    let captured = Captured::install(&tables, &minio, POLL, args.publish_slots).await?;
    let (_, target) = blocking(|| {
        Writers::new(&tables, size, args.connections).write(WRITING, Pace::Closed)?;
        tables.now()
    })?;
    captured.poll().await?;
    let target = Timestamp::from_micros(target);
    let all: Vec<String> = (1..=size.sites).map(Size::site).collect();
    let some = size.victims(args.victims);
    let whole = captured.plan_to_read(&all, target).await?;
    let sparse = captured.plan_to_read(&some, target).await?;
    let mut sides = sides(&whole, &sparse);
    for _ in 0..args.rounds {
        for side in &mut sides {
            round(&captured, &minio, side).await?;
        }
    }
    println!(
        "\n{} sites, of which {} in the sparse reads; {}, MinIO {}, curl {}",
        size.sites,
        some.len(),
        version(&cluster)?,
        minio.version(),
        Minio::curl_version()?
    );
    print(&sides);
    Ok(())
}

fn sides<'a>(whole: &'a Plan, sparse: &'a Plan) -> Vec<Side<'a>> {
    let gap = RangeLimits::default().gap_bytes;
    let side = |name, peer, reader, plan: &Plan| {
        let wanted = chunk_ranges(plan).iter().map(|range| range.2).sum();
        Side { name, peer, reader, wanted, rate: Rounds::default(), fetched: 0, requests: 0 }
    };
    let curl = |ranges: &[crate::reads::Range<'_>], gap| Reader::Curl(merged(ranges, gap));
    vec![
        side("whole: curl, 8 MiB ranges", 0, curl(&long_ranges(whole), 0), whole),
        side("whole: Muster, all chunks", 0, Reader::Repository(whole), whole),
        side("sparse: curl, each chunk", 2, curl(&chunk_ranges(sparse), 0), sparse),
        side("sparse: curl, gaps read", 2, curl(&chunk_ranges(sparse), gap), sparse),
        side("sparse: Muster, the sites' chunks", 2, Reader::Repository(sparse), sparse),
    ]
}

fn print(sides: &[Side<'_>]) {
    let mut shown =
        table(&["reads from MinIO", "MB/s wanted", "to curl", "MB wanted", "MB fetched", "requests"]);
    for side in sides {
        shown.add_row([
            side.name.to_owned(),
            side.rate.show(count),
            side.rate.to(&sides[side.peer].rate).show(ratio),
            ratio(side.wanted as f64 / 1e6),
            ratio(side.fetched as f64 / 1e6),
            count(side.requests as f64),
        ]);
    }
    println!("{shown}");
}

/// Reads until a round is full.
async fn round(captured: &Captured, minio: &Minio, side: &mut Side<'_>) -> Result<()> {
    let watch = Stopwatch::start()?;
    let mut passes = 0_u32;
    while passes == 0 || watch.lap()?.wall < ROUND {
        match &side.reader {
            Reader::Curl(ranges) => {
                let at_once = RangeLimits::default().fetches_in_flight;
                side.fetched = blocking(|| minio.read_ranges(&captured.bucket, ranges, at_once))?;
                side.requests = ranges.len() as u64;
            }
            Reader::Repository(plan) => {
                let (bytes, fetched, requests) = coalesced(captured.repository.objects(), plan).await?;
                ensure!(bytes == side.wanted, "{bytes} bytes were read instead of {}", side.wanted);
                (side.fetched, side.requests) = (fetched, requests);
            }
        }
        passes += 1;
    }
    let megabytes = (u64::from(passes) * side.wanted) as f64 / 1e6;
    side.rate.push(megabytes / watch.lap()?.wall.as_secs_f64());
    Ok(())
}

/// Ranges of the same object that are no further apart than `gap` as one, up to the longest that Muster reads at once.
fn merged(ranges: &[crate::reads::Range<'_>], gap: u64) -> Vec<Range> {
    let longest = RangeLimits::default().extent_bytes;
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (key, offset, bytes) in ranges {
        match merged.last_mut() {
            Some(last)
                if last.key == key
                    && offset <= last.offset + last.bytes + gap
                    && offset + bytes - last.offset <= longest =>
            {
                last.bytes = last.bytes.max(offset + bytes - last.offset);
            }
            _ => merged.push(Range { key: key.to_owned(), offset, bytes }),
        }
    }
    merged
}
