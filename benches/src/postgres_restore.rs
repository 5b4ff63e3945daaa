//! Rows restored into PostgreSQL per second, to raw `COPY` of the same rows in the same transactions.
//!
//! The peer's rows are in memory, as text that the server itself wrote, and go into a copy of the shard that nothing of
//! Muster was ever in. Both shards are on one cluster, and lose the rows again in the same way before each round.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use muster_services::{Minio, Postgres};
use muster_types::Timestamp;
use muster_types::plan::Plan;
use postgres::Client;

use crate::Args;
use crate::measure::{Lap, Rounds, Stopwatch, count, ratio, table};
use crate::restore::{Restored, Steps};
use crate::shard::captured::POLL;
use crate::shard::tables::{Digests, OWNED, same};
use crate::shard::writers::{Pace, WRITING, Writers};
use crate::shard::{Captured, SETTINGS, Size, Tables, blocking};

/// How a peer copies.
#[derive(Clone, Copy)]
struct Peer {
    name: &'static str,
    connections: usize,
    /// The server checks foreign keys; Muster has that to do itself.
    checked: bool,
}

const PEERS: [Peer; 3] = [
    Peer { name: "COPY, 1 connection", connections: 1, checked: true },
    Peer { name: "COPY, 2 connections", connections: 2, checked: true },
    Peer { name: "COPY, 2 connections, foreign keys unchecked", connections: 2, checked: false },
];

/// A store's rows as `COPY` takes them, parents first.
struct Store(Vec<(&'static str, Vec<u8>)>);

/// What the rounds work on.
struct Scene {
    captured: Captured,
    live: Tables,
    peer: Tables,
    victims: Vec<String>,
    stores: Vec<Store>,
    /// The victims' rows, by the server.
    truth: Digests,
    rows: u64,
}

/// Figures of the peers, and two of Muster: until all is live, until all is handed back.
#[derive(Default)]
struct Figures {
    peers: [Figure; PEERS.len()],
    live: Figure,
    handed_back: Figure,
}

/// Rounds of one row of the table.
#[derive(Default)]
struct Figure {
    rows_per_second: Rounds,
    cpu_micros_per_row: Rounds,
}

impl Figure {
    fn push(&mut self, rows: f64, seconds: f64, cpu_seconds: f64) {
        self.rows_per_second.push(rows / seconds);
        self.cpu_micros_per_row.push(cpu_seconds / rows * 1e6);
    }
}

/// Runs the rounds and prints the tables.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let (cluster, minio) = blocking(|| anyhow::Ok((Postgres::own(&SETTINGS)?, Minio::own()?)))?;
    let size = args.size();
    let (scene, target) = scene(args, size, &cluster, &minio).await?;
    let plan = scene.captured.plan(&scene.victims, target).await?;
    let (rows, bytes) = (scene.rows as f64, scene.bytes() as f64);
    let (mut figures, mut steps) = (Figures::default(), Steps::default());
    for round in 0..args.rounds {
        for (peer, figure) in PEERS.iter().zip(&mut figures.peers) {
            let lap = blocking(|| scene.copy(*peer))?;
            figure.push(rows, lap.wall.as_secs_f64(), lap.cpu_seconds);
        }
        let Restored { published_seconds, whole, steps: sums, .. } = scene.restore(&plan, round).await?;
        figures.live.push(rows, published_seconds, whole.cpu_seconds);
        figures.handed_back.push(rows, whole.wall.as_secs_f64(), whole.cpu_seconds);
        steps.push(sums);
    }
    println!(
        "\n{} rows ({:.0} MB as COPY text) of {} sites in {} transactions; {}, MinIO {}",
        count(rows),
        bytes / 1e6,
        scene.victims.len(),
        scene.stores.len(),
        version(&cluster)?,
        minio.version()
    );
    print(&figures, bytes / rows);
    steps.print(rows);
    Ok(())
}

fn print(figures: &Figures, bytes_per_row: f64) {
    let mut shown =
        table(&["restore", "rows/s", "MB/s", "to 1 connection", "to 2 connections", "CPU µs/row"]);
    let ours = [
        ("Muster, until all is live", &figures.live),
        ("Muster, until all is handed back", &figures.handed_back),
    ];
    let peers = &figures.peers;
    for (name, figure) in PEERS.iter().map(|peer| peer.name).zip(peers).chain(ours) {
        let rate = &figure.rows_per_second;
        shown.add_row([
            name.to_owned(),
            rate.show(count),
            rate.show(|rate| count(rate * bytes_per_row / 1e6)),
            rate.to(&peers[0].rows_per_second).show(ratio),
            rate.to(&peers[1].rows_per_second).show(ratio),
            figure.cpu_micros_per_row.show(ratio),
        ]);
    }
    println!("{shown}");
}

/// The server's version.
pub(crate) fn version(cluster: &Postgres) -> Result<String> {
    let version = blocking(|| cluster.psql("postgres", "SELECT split_part(version(), ' on ', 1)"))?;
    Ok(version.trim().to_owned())
}

/// A shard that was written to after its snapshot, the moment to go back to, and both copies without the victims.
async fn scene(args: &Args, size: Size, cluster: &Postgres, minio: &Minio) -> Result<(Scene, Timestamp)> {
    let (live, peer) = blocking(|| {
        let live = Tables::make(cluster, "live", size)?;
        let peer = live.copy(cluster, "peer")?;
        anyhow::Ok((live, peer))
    })?;
    let captured = Captured::install(&live, minio, POLL, args.publish_slots).await?;
    let victims = size.victims(args.victims);
    let (truth, stores, target) = blocking(|| {
        Writers::new(&live, size, args.connections).write(WRITING, Pace::Closed)?;
        let (_, target) = live.now()?;
        anyhow::Ok((live.digests(Some(&victims))?, read_stores(&live, &victims)?, target))
    })?;
    blocking(|| live.delete(&victims).and_then(|()| peer.delete(&victims)))?;
    captured.poll().await?;
    let rows = stores.iter().flat_map(|store| &store.0).map(|(_, text)| lines(text)).sum();
    Ok((Scene { captured, live, peer, victims, stores, truth, rows }, Timestamp::from_micros(target)))
}

fn lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// What is in the victims' stores now.
fn read_stores(tables: &Tables, victims: &[String]) -> Result<Vec<Store>> {
    let mut client = tables.connect()?;
    let mut stores = Vec::new();
    for site in victims {
        let mut by_kind: Vec<(&str, Store)> = Vec::new();
        for owned in &OWNED {
            let mut text = Vec::new();
            let sql = format!("COPY ({}) TO STDOUT", owned.rows_of(site));
            client.copy_out(&sql)?.read_to_end(&mut text)?;
            match by_kind.last_mut() {
                Some((kind, store)) if *kind == owned.kind => store.0.push((owned.table, text)),
                _ => by_kind.push((owned.kind, Store(vec![(owned.table, text)]))),
            }
        }
        stores.extend(by_kind.into_iter().map(|(_, store)| store));
    }
    Ok(stores)
}

impl Scene {
    fn bytes(&self) -> usize {
        self.stores.iter().flat_map(|store| &store.0).map(|(_, text)| text.len()).sum()
    }

    /// The peer's round.
    fn copy(&self, peer: Peer) -> Result<Lap> {
        self.peer.settle()?;
        let mut clients = (0..peer.connections).map(|_| self.peer.connect()).collect::<Result<Vec<_>>>()?;
        let role = if peer.checked { "origin" } else { "replica" };
        for client in &mut clients {
            client.batch_execute(&format!("SET session_replication_role = {role}"))?;
        }
        let watch = Stopwatch::start()?;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, client) in clients.iter_mut().enumerate() {
                let stores = self.stores.iter().skip(number).step_by(peer.connections);
                threads.push(scope.spawn(move || copy_stores(client, stores)));
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().ok().context("a connection's thread panicked")?)
        })?;
        let lap = watch.lap()?;
        same(peer.name, &self.peer.digests(Some(&self.victims))?, &self.truth)?;
        self.peer.delete(&self.victims)?;
        Ok(lap)
    }

    /// Muster's round.
    async fn restore(&self, plan: &Plan, round: usize) -> Result<Restored> {
        self.captured.poll().await?;
        blocking(|| self.live.settle())?;
        let restored = self.captured.restore(plan, &format!("round-{round}")).await?;
        ensure!(restored.rows == self.rows, "{} rows were restored instead of {}", restored.rows, self.rows);
        blocking(|| {
            same("Muster", &self.live.digests(Some(&self.victims))?, &self.truth)?;
            self.live.delete(&self.victims)
        })?;
        Ok(restored)
    }
}

fn copy_stores<'a>(client: &mut Client, stores: impl Iterator<Item = &'a Store>) -> Result<()> {
    for store in stores {
        let mut transaction = client.transaction()?;
        for (table, text) in &store.0 {
            let mut writer = transaction.copy_in(&format!("COPY {table} FROM STDIN"))?;
            writer.write_all(text)?;
            writer.finish()?;
        }
        transaction.commit()?;
    }
    Ok(())
}
