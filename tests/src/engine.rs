//! A running engine that is watched, stopped and killed.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use muster_demo::Shard;
use rusqlite::Connection;

use crate::command::{Ran, line};
use crate::watch::{Moment, Watch};
use crate::world::{World, until};

/// A `muster apply` or `muster resume` under way.
#[derive(Debug)]
pub struct Engine {
    line: String,
    child: Option<Child>,
    watch: Watch,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts `muster ARGS` for a run.
    pub fn start(world: &World, run: &str, args: &[&str]) -> Self {
        Self::of(world, run, world.command(args))
    }

    /// The same on another machine: see [`World::command_elsewhere`].
    pub fn start_elsewhere(world: &World, dir: &Path, run: &str, args: &[&str]) -> Self {
        Self::of(world, run, world.command_elsewhere(dir, args))
    }

    fn of(world: &World, run: &str, mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("muster starts");
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let (mut talk, hears) = (child.stderr.take().expect("piped"), Arc::clone(&said));
        let listener = std::thread::spawn(move || {
            let mut heard = [0; 4096];
            while let Ok(bytes @ 1..) = talk.read(&mut heard) {
                hears.lock().expect("no panic").extend_from_slice(&heard[..bytes]);
            }
        });
        let (line, watch, listener) = (line(&command), Watch::of(world, run), Some(listener));
        Self { line, child: Some(child), watch, said, listener }
    }

    /// Waits until it has said something; false if it ended without.
    pub fn wait_to_say(&mut self, text: &str) -> bool {
        let mut said = false;
        until(&format!("`{text}` of {}", self.line), || {
            let over = self.child.as_mut().expect("running").try_wait().expect("it can be asked").is_some();
            said = String::from_utf8_lossy(&self.said.lock().expect("no panic")).contains(text);
            over || said
        });
        said
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Whether a moment has come.
    pub fn has_reached(&mut self, moment: Moment) -> bool {
        self.watch.reached(moment)
    }

    /// Waits for a moment; false if the engine ended before.
    pub fn wait_for(&mut self, moment: Moment) -> bool {
        let mut alive = true;
        until(&format!("{moment:?} of {}", self.line), || {
            let over = self.child.as_mut().expect("running").try_wait().expect("it can be asked").is_some();
            alive = !over;
            over || self.watch.reached(moment)
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
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
        assert!(status.success(), "kill -{name} {pid}");
    }

    /// Puts it to sleep, and waits until every thread of it sleeps.
    pub fn sleep(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.pid());
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

    /// Puts it to sleep, and not within a publish: its locks would stop everyone, as they must.
    pub fn sleep_between_publishes(&self, world: &World) {
        until("a moment between two publishes", || {
            self.sleep();
            // Twice: what was sent before may have come to a server only now.
            let free = (0..2).all(|_| world.fleet.shards.iter().all(is_free));
            if !free {
                self.signal("CONT");
            }
            free
        });
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        let child = self.child.take().expect("running");
        let mut output = child.wait_with_output().expect("it ends");
        self.listener.take().expect("it listens").join().expect("no panic");
        output.stderr = std::mem::take(&mut self.said.lock().expect("no panic"));
        Ran::of(self.line.clone(), &output)
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

/// No engine has anything open there.
fn is_free(shard: &Shard) -> bool {
    if let Some(database) = &shard.database {
        let sql = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'muster' AND state <> 'idle')";
        return database.connect().expect("a session").query_one(sql, &[]).expect("an answer").get(0);
    }
    let connection = Connection::open(&shard.path).expect("a shard");
    connection.busy_timeout(Duration::ZERO).expect("a timeout");
    connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok()
}
