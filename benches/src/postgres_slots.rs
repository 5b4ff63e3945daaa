//! What replication slots of idle databases cost the server that they are on: each decodes everything that is written there.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_services::Postgres;

use crate::Args;
use crate::measure::{Rounds, count, cpu_seconds, ratio, table};
use crate::postgres_restore::version;
use crate::shard::writers::{CHANGES, Pace, WRITING, Writers};
use crate::shard::{SETTINGS, Tables, blocking};

/// Idle databases whose slots are followed.
const SLOTS: [usize; 5] = [0, 4, 8, 16, 32];

/// Runs the rounds and prints the table.
pub(crate) async fn run(args: &Args) -> Result<()> {
    blocking(|| measure(args))
}

fn measure(args: &Args) -> Result<()> {
    let cluster = Postgres::own(&SETTINGS)?;
    let size = args.size();
    let tables = Tables::make(&cluster, "live", size)?;
    println!("\n{} sites, {} connections; {}", size.sites, args.connections, version(&cluster)?);
    let writers = Writers::new(&tables, size, args.connections);
    writers.write(WRITING, Pace::Closed)?;
    let most = SLOTS.into_iter().max().unwrap_or_default();
    let idle: Vec<Idle> = (0..most).map(|number| Idle::make(&cluster, number)).collect::<Result<_>>()?;
    let mut rates: [Rounds; SLOTS.len()] = Default::default();
    let mut cpu: [Rounds; SLOTS.len()] = Default::default();
    for round in 0..args.rounds {
        // Each goes first in its turn.
        for side in (0..SLOTS.len()).map(|nth| (round + nth) % SLOTS.len()) {
            let followed: Vec<Followed<'_>> =
                idle[..SLOTS[side]].iter().map(|idle| idle.follow(&cluster)).collect::<Result<_>>()?;
            tables.settle()?;
            let before = decoding_seconds(&cluster)?;
            let written = writers.write(args.round(), Pace::Closed)?;
            followed.iter().try_for_each(|follower| follower.caught_up())?;
            let seconds = decoding_seconds(&cluster)? - before;
            rates[side].push(written.per_second());
            cpu[side].push(seconds * 1e6 / (written.commits * CHANGES) as f64);
        }
    }
    let mut shown = table(&["idle slots", "transactions/s", "to none", "decoding, µs CPU/change"]);
    for (side, slots) in SLOTS.iter().enumerate() {
        shown.add_row([
            slots.to_string(),
            rates[side].show(count),
            rates[side].to(&rates[0]).show(ratio),
            cpu[side].show(ratio),
        ]);
    }
    println!("{shown}");
    Ok(())
}

/// Processor time of the walsenders that run, in seconds.
fn decoding_seconds(cluster: &Postgres) -> Result<f64> {
    let pids = cluster.psql("postgres", "SELECT active_pid FROM pg_replication_slots WHERE active")?;
    pids.split_whitespace().map(|pid| cpu_seconds(pid.parse()?)).sum()
}

/// A database that nobody writes to, with a slot.
struct Idle {
    url: String,
    slot: String,
}

impl Idle {
    fn make(cluster: &Postgres, number: usize) -> Result<Self> {
        let (database, slot) = (format!("idle_{number}"), format!("idle_{number}"));
        cluster.psql("postgres", &format!("CREATE DATABASE {database}"))?;
        cluster.psql(
            &database,
            &format!(
                "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION idle FOR TABLE t;
                 SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
            ),
        )?;
        Ok(Self { url: cluster.url(&database), slot })
    }

    /// Has the slot brought to the log's end, and followed from there.
    fn follow<'i>(&'i self, cluster: &'i Postgres) -> Result<Followed<'i>> {
        // What was written while nobody followed is no part of the round.
        let advance =
            format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_insert_lsn())", self.slot);
        cluster.psql(&self.slot, &advance)?;
        let mut command = Command::new(cluster.bin("pg_recvlogical"));
        command.args(["-d", &self.url, "--slot", &self.slot, "--start", "-f", "/dev/null"]);
        command.args(["-o", "proto_version=1", "-o", "publication_names=idle"]);
        let child = command.stdin(Stdio::null()).spawn().context("failed to start pg_recvlogical")?;
        let followed = Followed { child, idle: self, cluster };
        followed.caught_up()?;
        Ok(followed)
    }
}

/// A running follower.
struct Followed<'i> {
    child: Child,
    idle: &'i Idle,
    cluster: &'i Postgres,
}

impl Followed<'_> {
    /// Waits until it has decoded everything that was written.
    fn caught_up(&self) -> Result<()> {
        let end = self.cluster.psql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
        let sql = format!(
            "SELECT count(*) FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid
             WHERE slot_name = '{}' AND sent_lsn >= '{}'",
            self.idle.slot,
            end.trim()
        );
        let began = std::time::Instant::now();
        while self.cluster.psql("postgres", &sql)?.trim() != "1" {
            ensure!(began.elapsed() < Duration::from_secs(120), "a follower is not there after 120 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The walsender notices later; the slot has to be free for the next round.
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
            self.idle.slot
        );
        let _ = self.cluster.psql("postgres", &sql);
    }
}
