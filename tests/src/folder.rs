//! A folder with a topology, and the commands over it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::command::Ran;

/// A temporary folder with `muster.toml`, for shards and a repository that others provide.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    environment: Vec<(&'static str, String)>,
    follower: Option<Child>,
    _temp: Option<TempDir>,
}

impl Folder {
    /// A folder with this topology; commands run in it with these variables.
    pub fn new(topology: &str, environment: Vec<(&'static str, String)>) -> Self {
        let temp = TempDir::with_prefix("muster-test-").expect("a temporary folder");
        let dir = temp.path().canonicalize().expect("it is there");
        std::fs::write(dir.join("muster.toml"), topology).expect("a topology");
        let kept = std::env::var_os("MUSTER_KEEP").is_some();
        let temp = if kept {
            eprintln!("kept: {}", temp.keep().display());
            None
        } else {
            Some(temp)
        };
        Self { dir, environment, follower: None, _temp: temp }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A `muster` command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(super::muster());
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"] {
            command.env_remove(name);
        }
        command.env("MUSTER_TOPOLOGY", "muster.toml").env_remove("MUSTER_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub fn muster(&self, args: &[&str]) -> Ran {
        Ran::run(&mut self.command(args))
    }

    /// Polls all shards until [`Self::stop_following`] or the end of this value.
    pub fn follow(&mut self) {
        let log = std::fs::File::create(self.path("follow.log")).expect("a log");
        let mut command = self.command(&["capture", "--follow"]);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.follower = Some(command.spawn().expect("muster capture starts"));
    }

    /// What `capture --follow` has said so far.
    pub fn follow_log(&self) -> String {
        std::fs::read_to_string(self.path("follow.log")).unwrap_or_default()
    }

    /// `kill -9` of what [`Self::follow`] began.
    pub fn stop_following(&mut self) {
        if let Some(mut follower) = self.follower.take() {
            // It may be gone already; a capture may be killed at any time.
            let _ = follower.kill();
            let _ = follower.wait();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.stop_following();
        if std::thread::panicking() {
            let log = self.follow_log();
            let lines: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("the end of what `muster capture --follow` said:");
            lines.into_iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
