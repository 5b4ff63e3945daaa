//! A running engine that is watched, stopped and killed.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rusqlite::{Connection, OpenFlags};

use crate::command::{Ran, line};
use crate::world::{World, files, until};

/// A moment in the life of a run, told by what it has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So many objects are in its journal.
    Journal(usize),
    /// So many stores are published.
    Published(usize),
    /// So many staging files are there, or were published.
    Staged(usize),
}

/// A `muster apply` or `muster resume` under way.
#[derive(Debug)]
pub struct Engine {
    line: String,
    run: String,
    child: Option<Child>,
    journal: PathBuf,
    shards: Vec<PathBuf>,
}

impl Engine {
    /// Starts `muster ARGS` for a run.
    pub fn start(world: &World, run: &str, args: &[&str]) -> Self {
        let mut command = world.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            line: line(&command),
            run: run.to_owned(),
            child: Some(command.spawn().expect("muster starts")),
            journal: world.repository().join(format!("runs/{run}/journal")),
            shards: world.fleet.shards.iter().map(|shard| shard.path.clone()).collect(),
        }
    }

    /// Whether the moment has come.
    pub fn reached(&self, moment: Moment) -> bool {
        match moment {
            Moment::Journal(count) => files(&self.journal).len() >= count,
            Moment::Published(count) => self.published() >= count,
            Moment::Staged(count) => {
                let staged = |shard: &PathBuf| {
                    let mut dir = shard.clone().into_os_string();
                    dir.push(format!(".muster/{}", self.run));
                    files(&PathBuf::from(dir)).len()
                };
                self.shards.iter().map(staged).sum::<usize>() >= count
            }
        }
    }

    /// Stores that the shards say were published.
    pub fn published(&self) -> usize {
        self.shards.iter().map(|shard| published(shard, &self.run)).sum()
    }

    /// Waits for a moment; false if the engine ended before.
    pub fn wait_for(&mut self, moment: Moment) -> bool {
        let mut alive = true;
        until(&format!("{moment:?} of {}", self.line), || {
            let over = self.child.as_mut().expect("running").try_wait().expect("it can be asked").is_some();
            alive = !over;
            over || self.reached(moment)
        });
        alive
    }

    /// `kill -9`, now. False if it had ended by itself.
    pub fn kill(mut self) -> bool {
        let mut child = self.child.take().expect("running");
        child.kill().expect("it can be killed");
        let status = child.wait().expect("it ends");
        status.code().is_none()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("running").id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
        assert!(status.success(), "kill -{name} {pid}");
    }

    /// Puts it to sleep, and waits until every thread of it sleeps.
    pub fn sleep(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.as_ref().expect("running").id());
        until("every thread to stop", || {
            let stopped = |task: PathBuf| {
                // A thread that ended meanwhile is as good as stopped. The state follows the name in parentheses.
                let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
                stat.rsplit(')')
                    .next()
                    .is_none_or(|rest| matches!(rest.trim_start().chars().next(), None | Some('T')))
            };
            std::fs::read_dir(&tasks)
                .expect("it runs")
                .filter_map(Result::ok)
                .all(|task| stopped(task.path()))
        });
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        let child = self.child.take().expect("running");
        Ran::of(self.line.clone(), &child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Publish records of a run in one shard. A shard that cannot be read this instant is asked again by the next look.
fn published(shard: &PathBuf, run: &str) -> usize {
    let look = || -> rusqlite::Result<i64> {
        let connection = Connection::open_with_flags(shard, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.query_row("SELECT count(*) FROM _muster_publish WHERE run = ?1", [run], |row| row.get(0))
    };
    look().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}
