//! `muster capture --follow` in a process of its own, whose processor time is its own, too.
//!
//! The process is this program again. It follows until its input ends, and tells in lines what became durable.

use std::io::{BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use muster_capture::{CaptureEvent, CaptureOptions, CaptureRunner};
use muster_repo::Repository;

use super::captured::{connect, read_topology};
use crate::measure::{Stopwatch, cpu_seconds};
use crate::world::now;

/// Reading what piled up meanwhile takes its time on a busy machine.
const SECONDS_MAX: u64 = 300;

/// A segment that became durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Durable {
    /// The time of its last commit.
    pub(crate) covers_micros: i64,
    /// When it was durable.
    pub(crate) at_micros: i64,
    pub(crate) changes: u64,
}

/// Running capture.
pub(crate) struct Follower {
    child: Child,
    durable: Arc<Mutex<Vec<Durable>>>,
    reader: Option<JoinHandle<Result<f64>>>,
    /// Processor time until it had caught up.
    cpu_before: f64,
}

impl Follower {
    /// Starts it, and waits until it has caught up with the shard. Blocks.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--follow")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start capture")?;
        let lines = BufReader::new(child.stdout.take().context("capture has no output")?);
        let durable = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&durable);
        let reader = Some(std::thread::spawn(move || read(lines, &kept)));
        let mut follower = Self { child, durable, reader, cpu_before: 0.0 };
        follower.wait_for(now().as_micros())?;
        // What it read to catch up is nobody's.
        follower.cpu_before = cpu_seconds(follower.child.id())?;
        follower.taken().clear();
        Ok(follower)
    }

    /// Waits until the log covers a moment. Blocks.
    pub(crate) fn wait_for(&self, micros: i64) -> Result<()> {
        let began = Instant::now();
        while !self.taken().iter().any(|durable| durable.covers_micros >= micros) {
            ensure!(began.elapsed().as_secs() < SECONDS_MAX, "capture is not there after {SECONDS_MAX} s");
            ensure!(self.reader.as_ref().is_some_and(|reader| !reader.is_finished()), "capture has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Segments since it had caught up.
    pub(crate) fn durable(&self) -> Vec<Durable> {
        self.taken().clone()
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Vec<Durable>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; the seconds of processor time that it used since it had caught up. Blocks.
    pub(crate) fn stop(mut self) -> Result<f64> {
        drop(self.child.stdin.take());
        let reader = self.reader.take().context("capture was stopped before")?;
        let used = reader.join().ok().context("the reader of capture's output panicked")??;
        let status = self.child.wait()?;
        ensure!(status.success(), "capture ended with {status}");
        Ok(used - self.cpu_before)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It ends with its input; nothing could be done about a failure here.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn read(lines: impl std::io::BufRead, durable: &Mutex<Vec<Durable>>) -> Result<f64> {
    for line in lines.lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["durable", covers, at, changes] => {
                let one = Durable {
                    covers_micros: covers.parse()?,
                    at_micros: at.parse()?,
                    changes: changes.parse()?,
                };
                durable.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            }
            ["cpu", seconds] => return Ok(seconds.parse()?),
            _ => bail!("capture said `{line}`"),
        }
    }
    bail!("capture ended without a last word")
}

/// What the process does.
pub(crate) async fn run(folder: &Path) -> Result<()> {
    let watch = Stopwatch::start()?;
    let topology = read_topology(folder)?;
    let repository = Repository::open(Arc::new(connect(folder, &topology).await?)).await?;
    let tell = |event| match event {
        CaptureEvent::Appended { boundary, changes, .. } => {
            println!("durable {} {} {changes}", boundary.at.as_micros(), now().as_micros());
        }
        CaptureEvent::Failed { failure, .. } => println!("failed {failure}"),
        _ => {}
    };
    let options = CaptureOptions { events: Arc::new(tell), ..CaptureOptions::of(&topology) };
    let mut runner = CaptureRunner::new(&repository, &topology, options);
    let ended = async {
        // An error ends it as well.
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
    };
    for outcome in runner.follow(ended).await {
        outcome.result?;
    }
    println!("cpu {}", watch.lap()?.cpu_seconds);
    // The reader of the input may never return.
    std::process::exit(0)
}
