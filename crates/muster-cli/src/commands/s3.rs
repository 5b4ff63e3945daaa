//! `muster s3 serve`: a folder over the S3 protocol.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use muster_s3_server::ServerConfig;

use crate::print;

/// Arguments of `muster s3`.
#[derive(Debug, Args)]
pub(crate) struct S3Args {
    #[command(subcommand)]
    command: S3Command,
}

#[derive(Debug, Subcommand)]
enum S3Command {
    /// Serve DIR until interrupted. One process owns the folder; a second one is refused.
    Serve {
        /// The folder; buckets are folders in it.
        dir: PathBuf,
        /// Loopback address and port.
        #[arg(long, default_value = "127.0.0.1:9310")]
        listen: SocketAddr,
    },
}

pub(crate) async fn run(args: S3Args) -> Result<ExitCode> {
    let S3Command::Serve { dir, listen } = args.command;
    let server = muster_s3_server::start(ServerConfig { dir: dir.clone(), listen }).await?;
    print::talk(format!("serving {} on http://{}", dir.display(), server.addr));
    print::talk(format!("credentials: AWS_SHARED_CREDENTIALS_FILE={}", server.credentials_file.display()));
    interrupted().await?;
    server.shutdown().await;
    print::talk("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("failed to listen for SIGTERM")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("failed to listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}
