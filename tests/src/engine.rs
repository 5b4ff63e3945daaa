//! A running engine that is watched, stopped and killed.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::command::{Ran, line};
use crate::watch::{Moment, Watch};
use crate::world::{World, until};

/// A `muster apply` or `muster resume` under way.
#[derive(Debug)]
pub struct Engine {
    line: String,
    child: Option<Child>,
    watch: Watch,
}

impl Engine {
    /// Starts `muster ARGS` for a run.
    pub fn start(world: &World, run: &str, args: &[&str]) -> Self {
        let mut command = world.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            line: line(&command),
            child: Some(command.spawn().expect("muster starts")),
            watch: Watch::of(world, run),
        }
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
