//! What ends a server when the process that owns it has ended, however that came.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

/// Reads a pipe that ends with our process, then stops the server whose number is in the first line of a file, and
/// removes its folder. A number whose command line does not name the folder is someone else's.
const SCRIPT: &str = r#"
cat >/dev/null
runs() {
    { tr '\0' ' ' <"/proc/$pid/cmdline" || ps -o args= -p "$pid"; } 2>/dev/null | grep -qF "$1"
}
pid=$(head -n 1 "$2" 2>/dev/null)
if [ -n "$pid" ] && runs "$1"; then
    kill "-$3" "$pid"
    tries=0
    while runs "$1" && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    if runs "$1"; then kill -KILL "$pid"; sleep 0.5; fi
fi
rm -rf "$1"
"#;

/// A folder that goes, with the server in it, when this is dropped or our process ends.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    /// Watches over `dir`; `signal` ends the process whose number is in `pid_file`, which need not be there yet.
    pub(crate) fn over(dir: &Path, pid_file: &Path, signal: &str) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .args([dir, pid_file])
            .arg(signal)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A key pressed at the terminal, or a group killed, is not for it.
            .process_group(0)
            .spawn()
            .context("cannot run `sh`")?;
        Ok(Self(child))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends by itself; nothing could be done about a failure here.
        let _ = self.0.wait();
    }
}
