//! A command that has ended.

use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    line: String,
    /// Exit code; none if it was killed.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Ran {
    /// Runs it to its end.
    pub fn run(command: &mut Command) -> Self {
        let line = line(command);
        let began = Instant::now();
        let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
        eprintln!("[{:>6.2} s] $ {line}", began.elapsed().as_secs_f64());
        Self::of(line, &output)
    }

    pub(crate) fn of(line: String, output: &Output) -> Self {
        Self {
            line,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It ended with this exit code.
    #[track_caller]
    pub fn code(self, wanted: i32) -> Self {
        assert_eq!(self.code, Some(wanted), "exit code of {self}");
        self
    }

    /// It ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Everything that it printed holds each of these texts.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            let said = self.stdout.contains(text) || self.stderr.contains(text);
            assert!(said, "it does not say `{text}`: {self}");
        }
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, code, stdout, stderr } = self;
        write!(f, "$ {line}\nexit code: {code:?}\n── stdout\n{stdout}── stderr\n{stderr}")
    }
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
