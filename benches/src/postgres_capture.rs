//! What capture costs a shard that is written to, and how far its log is behind.
//!
//! The shard, capture and the repository share the machine: what they take from each other's processors counts as cost.
//! A reader that only has the server decode its log for it, and throws the answer away, shows what of the cost is the
//! shard's own wherever capture runs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_services::{Minio, Postgres};

use crate::Args;
use crate::measure::{Rounds, count, ratio, table};
use crate::postgres_restore::version;
use crate::shard::follow::{Durable, Follower};
use crate::shard::writers::{CHANGES, Pace, WRITING, Writers, Written};
use crate::shard::{Captured, SETTINGS, Tables, blocking};

/// Polls of the lag rounds, in milliseconds: the topology's default, and a tenth of it.
const POLLS_MILLISECONDS: [u64; 2] = [1000, 100];

/// The slot of the reader that throws everything away.
const SLOT: &str = "bench_decoding";

/// Runs the rounds and prints the tables.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let (cluster, minio) = blocking(|| anyhow::Ok((Postgres::own(&SETTINGS)?, Minio::own()?)))?;
    let size = args.size();
    let tables = blocking(|| Tables::make(&cluster, "live", size))?;
    let captured =
        Captured::install(&tables, &minio, Duration::from_millis(POLLS_MILLISECONDS[0]), args.publish_slots)
            .await?;
    println!(
        "\n{} sites, {} connections; {}, MinIO {}",
        size.sites,
        args.connections,
        version(&cluster)?,
        minio.version()
    );
    let writers = Writers::new(&tables, size, args.connections);
    // The first pages are written whole to the log after a checkpoint, and statements are planned.
    blocking(|| writers.write(WRITING, Pace::Closed))?;
    let scene = Scene { cluster: &cluster, tables: &tables, captured: &captured, writers: &writers };
    blocking(|| scene.cost(args))?;
    for milliseconds in POLLS_MILLISECONDS {
        captured.poll_every(Duration::from_millis(milliseconds))?;
        blocking(|| scene.lag(args, milliseconds))?;
    }
    Ok(())
}

struct Scene<'a> {
    cluster: &'a Postgres,
    tables: &'a Tables,
    captured: &'a Captured,
    writers: &'a Writers<'a>,
}

impl Scene<'_> {
    fn cost(&self, args: &Args) -> Result<()> {
        let mut figures: [Rounds; 3] = Default::default();
        let mut cpu = Rounds::default();
        for round in 0..args.rounds {
            let mut rates = [0.0; 3];
            // Each goes first in its turn: what one leaves behind in the server meets all.
            for side in (0..3).map(|nth| (round + nth) % 3) {
                rates[side] = match side {
                    0 => self.write(args)?,
                    1 => self.write_decoded(args)?,
                    _ => self.write_captured(args, &mut cpu)?,
                };
            }
            figures.iter_mut().zip(rates).for_each(|(figure, rate)| figure.push(rate));
        }
        let names = ["without", "log decoded and thrown away", "capture follows"];
        let mut shown = table(&["writing source", "transactions/s", "to without", "cost, %"]);
        for (name, rates) in names.iter().zip(&figures) {
            let to = rates.to(&figures[0]);
            let cost = to.map(|to| (1.0 - to) * 100.0);
            shown.add_row([
                (*name).to_owned(),
                rates.show(count),
                to.show(ratio),
                cost.show(|cost| format!("{cost:.1}")),
            ]);
        }
        println!("{shown}\nCPU of capture, µs/change: {}", cpu.show(ratio));
        Ok(())
    }

    /// Transactions per second with nobody at the log.
    fn write(&self, args: &Args) -> Result<f64> {
        self.tables.settle()?;
        Ok(self.writers.write(args.round(), Pace::Closed)?.per_second())
    }

    fn write_decoded(&self, args: &Args) -> Result<f64> {
        let decoder = Decoder::start(self.cluster, self.tables)?;
        let rate = self.write(args)?;
        decoder.stop(self.cluster)?;
        Ok(rate)
    }

    fn write_captured(&self, args: &Args, cpu: &mut Rounds) -> Result<f64> {
        let follower = Follower::start(self.captured.folder())?;
        self.tables.settle()?;
        let written = self.writers.write(args.round(), Pace::Closed)?;
        self.caught_up(&follower, written)?;
        cpu.push(follower.stop()? * 1e6 / (written.commits * CHANGES) as f64);
        Ok(written.per_second())
    }

    /// Waits until all that was written is in the repository, and nothing is missing.
    fn caught_up(&self, follower: &Follower, written: Written) -> Result<Vec<Durable>> {
        let commits = self.tables.commit_times(written.first_comment)?;
        ensure!(
            commits.len() as u64 == written.commits,
            "{} transactions are in the shard instead of {}",
            commits.len(),
            written.commits
        );
        follower.wait_for(*commits.last().context("nothing was written")?)?;
        let durable = follower.durable();
        let changes: u64 = durable.iter().map(|durable| durable.changes).sum();
        let wanted = written.commits * CHANGES;
        ensure!(changes == wanted, "capture recorded {changes} changes instead of {wanted}");
        Ok(durable)
    }

    fn lag(&self, args: &Args, poll_milliseconds: u64) -> Result<()> {
        let mut figures: [Rounds; 3] = Default::default();
        let mut rates = Rounds::default();
        for _ in 0..args.rounds {
            self.tables.settle()?;
            let follower = Follower::start(self.captured.folder())?;
            let pace = Pace::PerSecond(args.commits_per_second);
            let written = self.writers.write(args.round(), pace)?;
            rates.push(written.per_second());
            let durable = self.caught_up(&follower, written)?;
            follower.stop()?;
            let commits = self.tables.commit_times(written.first_comment)?;
            let lags = lags_milliseconds(&commits, &durable)?;
            for (figure, share) in figures.iter_mut().zip([0.5, 0.95, 1.0]) {
                figure.push(lags[((lags.len() - 1) as f64 * share) as usize]);
            }
        }
        let mut shown = table(&["lag of the log, ms", "polls every ms", "commits/s", "p50", "p95", "max"]);
        let [p50, p95, max] = figures.map(|figure| figure.show(count));
        shown.add_row([
            "commit to durable".to_owned(),
            poll_milliseconds.to_string(),
            rates.show(count),
            p50,
            p95,
            max,
        ]);
        println!("\n{shown}");
        Ok(())
    }
}

/// Of each commit, in order of size. Commit times are the server's.
fn lags_milliseconds(commits: &[i64], durable: &[Durable]) -> Result<Vec<f64>> {
    let lag = |commit: &i64| {
        let first = durable.iter().find(|durable| durable.covers_micros >= *commit);
        let first = first.context("a commit is not covered")?;
        Ok((first.at_micros - commit) as f64 / 1e3)
    };
    let mut lags = commits.iter().map(lag).collect::<Result<Vec<f64>>>()?;
    lags.sort_by(f64::total_cmp);
    Ok(lags)
}

/// `pg_recvlogical`, which has the server decode what capture has it decode.
struct Decoder(Child);

impl Decoder {
    fn start(cluster: &Postgres, tables: &Tables) -> Result<Self> {
        let publication = cluster.psql(&tables.database, "SELECT pubname FROM pg_publication")?;
        let mut command = Command::new(cluster.bin("pg_recvlogical"));
        command.args(["-d", &tables.url, "--slot", SLOT]);
        let status = clone(&command).args(["--create-slot", "--plugin", "pgoutput"]).status()?;
        ensure!(status.success(), "pg_recvlogical --create-slot ended with {status}");
        let publications = format!("publication_names={}", publication.trim());
        command.args(["--start", "-f", "/dev/null", "-o", "proto_version=1", "-o", &publications]);
        let child = command.stdin(Stdio::null()).spawn().context("failed to start pg_recvlogical")?;
        Ok(Self(child))
    }

    /// Waits until it has read to the end, and ends it.
    fn stop(mut self, cluster: &Postgres) -> Result<()> {
        let end = cluster.psql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
        let sql = format!(
            "SELECT count(*) FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid
             WHERE slot_name = '{SLOT}' AND sent_lsn >= '{}'",
            end.trim()
        );
        while cluster.psql("postgres", &sql)?.trim() != "1" {
            ensure!(self.0.try_wait()?.is_none(), "pg_recvlogical has ended by itself");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.kill()?;
        self.0.wait()?;
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active;
             SELECT pg_drop_replication_slot('{SLOT}')"
        );
        cluster.psql("postgres", &sql).map(drop)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn clone(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}
