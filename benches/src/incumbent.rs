//! Some sites of one shard brought back, to the usual way: pgBackRest restores the whole shard beside the live one at the
//! moment, and the sites' rows are copied out of it and in.
//!
//! Shards of several sizes with equal sites: the larger ones have more neighbours, and the victims stay the same. So that
//! the ratio is no flattery of ours, the usual way gets what it can use: a repository on the same disk, compressed for quick
//! restores and read by as many processes as there are processors, a recovery that ends without a promotion, sites' rows
//! side by side, and both connections open before the first row is copied. What it leaves out is not counted for it
//! either: nothing is verified, and the choice of a moment is free.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use muster_services::{Minio, PgBackRest};
use muster_types::Timestamp;
use postgres::{Client, NoTls};

use crate::Args;
use crate::measure::{Rounds, count, ratio, seconds, table};
use crate::postgres_restore::version;
use crate::restore::Steps;
use crate::shard::captured::POLL;
use crate::shard::tables::{Digests, OWNED, same};
use crate::shard::writers::{Pace, WRITING, Writers};
use crate::shard::{Captured, SETTINGS, Size, Tables, blocking};

/// Rounds of one shard.
#[derive(Default)]
struct Figures {
    files: Rounds,
    recovery: Rounds,
    copy: Rounds,
    incumbent: Rounds,
    planning: Rounds,
    live: Rounds,
    muster: Rounds,
}

/// One shard.
struct Scene<'a> {
    kept: &'a PgBackRest,
    tables: &'a Tables,
    captured: &'a Captured,
    victims: Vec<String>,
    /// The moment to go back to, as the server words it and in microseconds.
    target: (String, i64),
    /// All rows at that moment.
    truth: Digests,
}

/// Runs the rounds of each shard and prints the table.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let mut shown = table(&[
        "shard",
        "GB",
        "pgBackRest: files",
        "recovery",
        "copy out, in",
        "sum",
        "Muster: plan",
        "until live",
        "until handed back",
        "pgBackRest to Muster, live",
        "handed back",
    ]);
    for sites in &args.shard_sites {
        let size = Size { sites: *sites, ..args.size() };
        let (figures, gigabytes) = shard(args, size).await?;
        let Figures { files, recovery, copy, incumbent, planning, live, muster } = figures;
        let mut row = vec![format!("{} sites", count(*sites as f64)), ratio(gigabytes)];
        row.extend([files, recovery, copy].iter().map(|figure| figure.show(seconds)));
        row.push(incumbent.show(seconds));
        row.extend([planning, live.clone(), muster.clone()].iter().map(|figure| figure.show(seconds)));
        row.extend([live, muster].iter().map(|figure| incumbent.to(figure).show(ratio)));
        shown.add_row(row);
    }
    println!("{shown}");
    Ok(())
}

async fn shard(args: &Args, size: Size) -> Result<(Figures, f64)> {
    let (kept, minio) = blocking(|| anyhow::Ok((PgBackRest::own(&SETTINGS)?, Minio::own()?)))?;
    let tables = blocking(|| Tables::make(kept.cluster(), "live", size))?;
    let captured = Captured::install(&tables, &minio, POLL, args.publish_slots).await?;
    let victims = size.victims(args.shard_victims);
    let gigabytes = blocking(|| tables.bytes())? as f64 / 1e9;
    let (truth, target) = blocking(|| {
        kept.back_up()?;
        Writers::new(&tables, size, args.connections).write(WRITING, Pace::Closed)?;
        let target = tables.now()?;
        let truth = tables.digests(None)?;
        tables.delete(&victims)?;
        kept.archive_everything()?;
        anyhow::Ok((truth, target))
    })?;
    captured.poll().await?;
    let scene = Scene { kept: &kept, tables: &tables, captured: &captured, victims, target, truth };
    println!(
        "\n{} of {} sites, {} rows a site, {gigabytes:.2} GB; {}, {}, MinIO {}",
        scene.victims.len(),
        size.sites,
        size.rows_per_site,
        version(kept.cluster())?,
        kept.version()?,
        minio.version()
    );
    let (mut figures, mut steps, mut rows) = (Figures::default(), Steps::default(), 0);
    for round in 0..args.rounds {
        blocking(|| scene.incumbent(&mut figures))?;
        rows = scene.muster(&mut figures, &mut steps, round).await?;
    }
    // The last round has left the victims where they are.
    same("the shard", &blocking(|| tables.digests(None))?, &scene.truth)?;
    steps.print(rows as f64);
    Ok((figures, gigabytes))
}

impl Scene<'_> {
    /// Fails where the victims are not back as they were; then they go again.
    fn judge(&self, what: &str) -> Result<()> {
        let mut truth = self.truth.clone();
        truth.retain(|(site, _), _| self.victims.contains(site));
        same(what, &self.tables.digests(Some(&self.victims))?, &truth)
    }

    fn forget(&self) -> Result<()> {
        self.tables.delete(&self.victims)
    }

    fn incumbent(&self, figures: &mut Figures) -> Result<()> {
        self.forget()?;
        let side = self.kept.restore(&self.target.0)?;
        let mut from = Client::connect(&side.cluster.url(&self.tables.database), NoTls)
            .context("failed to connect to the side instance")?;
        let mut to = self.tables.connect()?;
        let began = Instant::now();
        for site in &self.victims {
            copy_site(&mut from, &mut to, site)?;
        }
        let copy = began.elapsed().as_secs_f64();
        let (files, recovery) = (side.files.as_secs_f64(), side.recovery.as_secs_f64());
        figures.files.push(files);
        figures.recovery.push(recovery);
        figures.copy.push(copy);
        figures.incumbent.push(files + recovery + copy);
        self.judge("the usual way")
    }

    /// The rows restored.
    async fn muster(&self, figures: &mut Figures, steps: &mut Steps, round: usize) -> Result<u64> {
        blocking(|| self.forget())?;
        self.captured.poll().await?;
        let began = Instant::now();
        let plan = self.captured.plan(&self.victims, Timestamp::from_micros(self.target.1)).await?;
        let planning = began.elapsed().as_secs_f64();
        let restored = self.captured.restore(&plan, &format!("round-{round}")).await?;
        figures.planning.push(planning);
        figures.live.push(planning + restored.published_seconds);
        figures.muster.push(planning + restored.whole.wall.as_secs_f64());
        steps.push(restored.steps);
        blocking(|| self.judge("Muster"))?;
        Ok(restored.rows)
    }
}

/// A site's rows, in one transaction.
fn copy_site(from: &mut Client, to: &mut Client, site: &str) -> Result<()> {
    let mut transaction = to.transaction()?;
    let mut buffer = vec![0; 64 * 1024];
    for owned in &OWNED {
        let mut reader = from.copy_out(&format!("COPY ({}) TO STDOUT", owned.rows_of(site)))?;
        let mut writer = transaction.copy_in(&format!("COPY {} FROM STDIN", owned.table))?;
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                read => writer.write_all(&buffer[..read])?,
            }
        }
        let rows = writer.finish()?;
        ensure!(rows > 0, "the side instance has no rows of {site} in {}", owned.table);
    }
    transaction.commit()?;
    Ok(())
}
