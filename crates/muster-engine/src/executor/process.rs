//! Programs of the operator's: no shell, a time limit, a bound on what is kept of their output.
//!
//! # Invariants
//! - A program leads a process group of its own, which ends with it, with its time limit, and with this future.
//! - Output is read to its end, however much it is, so that nobody blocks on a full pipe; the last bytes are kept.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

/// So much of each output is kept, from its end: what an error message needs.
const OUTPUT_BYTES_MAX: usize = 2048;

/// What has been written is read for so long after the program's end: only a process that left its group can hold the pipe.
const DRAIN: Duration = Duration::from_secs(1);

/// What a clean environment keeps: where programs, their settings and temporary files are, and the language.
const KEPT_VARIABLES: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// A program to run.
pub(super) struct Program<'a> {
    /// Program and arguments.
    pub(super) words: &'a [String],
    /// What it reads.
    pub(super) input: Vec<u8>,
    /// It gets none of Muster's own environment but [`KEPT_VARIABLES`].
    pub(super) clean_environment: bool,
    /// It is killed after so long.
    pub(super) limit: Duration,
}

/// How it ended.
pub(super) enum Ended {
    /// By itself.
    Exited(ExitStatus, String),
    /// It was killed at its limit; what it had said.
    TimedOut(String),
}

/// Kills the group when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // It may have no member any more.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Program<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) async fn run(self) -> io::Result<Ended> {
        let Some((program, arguments)) = self.words.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program is named"));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        if self.clean_environment {
            let kept = KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
            command.env_clear().envs(kept);
        }
        let mut child = command.spawn()?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let status = {
            let piped = async {
                tokio::join!(feed(pipes.0, self.input), tail(pipes.1, &mut out), tail(pipes.2, &mut err))
            };
            let mut piped = Box::pin(piped.fuse());
            let mut ended = Box::pin(tokio::time::timeout(self.limit, child.wait()));
            let status = loop {
                tokio::select! {
                    status = &mut ended => break status,
                    _ = &mut piped, if !piped.is_terminated() => {}
                }
            };
            drop(group);
            if !piped.is_terminated() {
                let _ = tokio::time::timeout(DRAIN, piped).await;
            }
            status
        };
        let output = String::from_utf8_lossy(&[out, err].concat()).trim().to_owned();
        match status {
            Ok(status) => Ok(Ended::Exited(status?, output)),
            Err(_) => Ok(Ended::TimedOut(output)),
        }
    }
}

async fn feed(pipe: Option<ChildStdin>, input: Vec<u8>) {
    if let Some(mut pipe) = pipe {
        // A program need not read what it is given.
        let _ = pipe.write_all(&input).await;
    }
}

/// Reads to the end, and keeps the last bytes.
async fn tail(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(OUTPUT_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// No test waits longer, even on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn run(script: &str, input: &str, limit: Duration) -> Ended {
        let words = ["sh", "-c", script].map(str::to_owned);
        let input = input.as_bytes().to_vec();
        Program { words: &words, input, clean_environment: true, limit }.run().await.unwrap()
    }

    fn is_alive(pid: &str) -> bool {
        // A killed process is a zombie until it is reaped.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
    }

    async fn until_gone(pid: &str) {
        let began = Instant::now();
        while is_alive(pid) {
            assert!(began.elapsed() < PATIENCE, "process {pid} is left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn it_reads_its_input_and_says_how_it_ended() {
        let Ended::Exited(status, output) = run("cat; echo no >&2; exit 3", "asked ", PATIENCE).await else {
            panic!("it ends by itself")
        };
        assert_eq!((status.code(), output.as_str()), (Some(3), "asked no"));
        // Nobody reads more than fits into a pipe.
        let Ended::Exited(status, _) = run("exit 0", &"x".repeat(1 << 20), PATIENCE).await else {
            panic!("it ends by itself")
        };
        assert!(status.success());
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_at_the_limit() {
        let script = "sleep 600 & echo $!; sleep 600";
        let Ended::TimedOut(child) = run(script, "", Duration::from_millis(300)).await else {
            panic!("it hangs")
        };
        until_gone(&child).await;
    }

    #[tokio::test]
    async fn what_it_leaves_behind_ends_with_it() {
        let Ended::Exited(status, child) = run("sleep 600 & echo $!", "", PATIENCE).await else {
            panic!("it ends by itself")
        };
        assert!(status.success());
        until_gone(&child).await;
    }

    #[tokio::test]
    async fn a_flood_is_read_and_its_end_kept() {
        let script = "yes flood | head -c 20000000; echo; echo last";
        let Ended::Exited(status, output) = run(script, "", PATIENCE).await else {
            panic!("it ends by itself")
        };
        assert!(status.success());
        assert!(output.ends_with("last") && output.len() <= OUTPUT_BYTES_MAX, "{} bytes", output.len());
    }

    #[tokio::test]
    async fn the_environment_holds_no_secrets() {
        let Ended::Exited(_, output) = run("env", "", PATIENCE).await else { panic!("it ends by itself") };
        let names = output.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        let shell_own = ["PWD", "SHLVL", "_", "OLDPWD"];
        let others: Vec<&str> =
            names.filter(|name| !KEPT_VARIABLES.contains(name) && !shell_own.contains(name)).collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something to leave out");
    }
}
