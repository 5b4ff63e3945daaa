//! Running commands.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs a command to its end; its output, or an error with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_run(command))?;
    text(command, &output)
}

/// What a command printed, or an error with what it said.
pub(crate) fn text(command: &Command, output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed ({}): {}", line(command), output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Says that a command could not even be started.
pub(crate) fn cannot_run(command: &Command) -> String {
    format!("cannot run `{}`", line(command))
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Where a program of the search path is.
pub(crate) fn on_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Asks until the answer is yes.
pub(crate) fn wait_until(
    what: &str,
    seconds_max: u64,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while !condition()? {
        if began.elapsed() > Duration::from_secs(seconds_max) {
            bail!("waited {seconds_max} s for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a process runs whose command line names `dir`: a number alone may be someone else's by now.
pub(crate) fn runs_in(pid: u32, dir: &Path) -> bool {
    let dir = dir.to_string_lossy();
    if let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) {
        return String::from_utf8_lossy(&line).contains(&*dir);
    }
    let line = output(Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]));
    line.is_ok_and(|line| line.contains(&*dir))
}

/// Sends a signal by its name.
pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    output(Command::new("kill").args([&format!("-{name}"), &pid.to_string()])).map(|_| ())
}
