//! Connections that write short transactions: an issue changes and gets a comment.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::tables::{IDS_PER_SITE, Size, Tables};

/// Writing before the first round: so long that the log is more than its snapshot.
pub(crate) const WRITING: Duration = Duration::from_secs(3);

/// Row changes of a transaction.
pub(crate) const CHANGES: u64 = 2;

/// How the connections go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// The next transaction begins when the last one is committed.
    Closed,
    /// So many transactions a second over all connections, begun at even distances.
    PerSecond(f64),
}

/// Writes to a shard's sites.
pub(crate) struct Writers<'a> {
    tables: &'a Tables,
    size: Size,
    connections: usize,
    /// Comments get ids of their own, above those of the first rows.
    next_comment: AtomicI64,
}

/// What they did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) commits: u64,
    seconds: f64,
    /// Comments from here on are theirs.
    pub(crate) first_comment: i64,
}

impl Written {
    pub(crate) fn per_second(&self) -> f64 {
        self.commits as f64 / self.seconds
    }
}

impl<'a> Writers<'a> {
    pub(crate) fn new(tables: &'a Tables, size: Size, connections: usize) -> Self {
        let ids = IDS_PER_SITE * (size.sites + 1);
        Self {
            tables,
            size,
            connections,
            next_comment: AtomicI64::new(i64::try_from(ids).unwrap_or(i64::MAX)),
        }
    }

    /// Writes for a while. Blocks.
    pub(crate) fn write(&self, time: Duration, pace: Pace) -> Result<Written> {
        let first_comment = self.next_comment.load(Ordering::SeqCst);
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let commits = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|number| {
                    let stop = &stop;
                    scope.spawn(move || self.connection(number, pace, stop))
                })
                .collect();
            std::thread::sleep(time);
            stop.store(true, Ordering::SeqCst);
            threads
                .into_iter()
                .map(|thread| thread.join().ok().context("a writer panicked")?)
                .sum::<Result<u64>>()
        })?;
        Ok(Written { commits, seconds: began.elapsed().as_secs_f64(), first_comment })
    }

    fn connection(&self, number: usize, pace: Pace, stop: &AtomicBool) -> Result<u64> {
        let mut client = self.tables.connect()?;
        let update = client.prepare(
            "UPDATE issue SET votes = votes + 1, state = 'in progress', updated_at = now() WHERE issue_id = $1",
        )?;
        let insert = client.prepare("INSERT INTO comment VALUES ($1, $2, 'writer', $3, now())")?;
        let body = "As discussed: the export needs the field before Friday. ".repeat(6);
        // Connections hardly ever meet in a row: what is measured is no wait for each other.
        let (issues, connections) = (self.size.issues() * self.size.sites, self.connections);
        let (mut commits, mut due) = (0, Instant::now());
        while !stop.load(Ordering::SeqCst) {
            let comment = self.next_comment.fetch_add(1, Ordering::SeqCst);
            // A step that is prime to most sizes goes through all sites before it comes back.
            let nth = (usize::try_from(commits).unwrap_or(0) * connections * 7919 + number) % issues;
            let (site, issue) = (nth / self.size.issues() + 1, nth % self.size.issues());
            let issue = i64::try_from(site * IDS_PER_SITE + issue)?;
            let mut transaction = client.transaction()?;
            transaction.execute(&update, &[&issue])?;
            transaction.execute(&insert, &[&comment, &issue, &body])?;
            transaction.commit()?;
            commits += 1;
            if let Pace::PerSecond(rate) = pace {
                due += Duration::from_secs_f64(connections as f64 / rate);
                // After a stall the rate is kept, not made up for.
                due = due.max(Instant::now());
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(commits)
    }
}
