//! The server as its clients see it, from several processes, killed and restarted.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and processes talk over their output"
)]

mod operations;
mod owner;
mod process;
mod race;
