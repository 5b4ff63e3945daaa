//! The `muster` binary: one file per command; all printing, reading of the environment and exit codes.

mod args;
mod commands;
mod context;
mod exit;
mod print;
mod progress;
mod select;
mod topology_place;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    init_tracing();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print::talk(format!("error: failed to start the runtime: {error}"));
            return ExitCode::from(exit::Exit::Failed as u8);
        }
    };
    match runtime.block_on(commands::run(args)) {
        Ok(code) => code,
        Err(error) => {
            print::talk(format!("error: {error:#}"));
            ExitCode::from(exit::code_of(&error))
        }
    }
}

/// Logs go to stderr and are quiet unless `MUSTER_LOG` asks (the syntax of `tracing_subscriber::EnvFilter`).
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
