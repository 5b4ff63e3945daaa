//! Exit codes: a written contract for scripts (`docs/operations.md`).

use std::fmt;

/// How a command ended, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something outside or inside failed.
    Failed = 1,
    /// The input is wrong: arguments, topology, ids, files.
    Input = 2,
    /// Done in part: some sites are not restored, or a plan leaves some out.
    Partial = 3,
    /// Refused, because it would not be safe: inputs changed, another run holds the store or the run.
    Refused = 4,
    /// A preflight says no: the list is not what was said, or not the one that was approved.
    Preflight = 5,
}

/// An error that knows its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// A failure with a message for people.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: the innermost [`Failure`] decides.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    let exit =
        error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(Exit::Failed, |f| f.exit);
    exit as u8
}

/// Wraps an error as wrong input.
pub(crate) fn input(error: impl fmt::Display) -> anyhow::Error {
    Failure::new(Exit::Input, error.to_string()).into()
}

/// Wraps an error as the answer of a preflight.
pub(crate) fn preflight(error: impl fmt::Display) -> anyhow::Error {
    Failure::new(Exit::Preflight, error.to_string()).into()
}

/// Wraps an error as a refusal.
pub(crate) fn refused(error: impl fmt::Display) -> anyhow::Error {
    Failure::new(Exit::Refused, error.to_string()).into()
}
