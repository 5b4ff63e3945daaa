//! Starts and stops the shared services of this clone.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of its own")]

use std::process::ExitCode;

use anyhow::Result;
use muster_services::{Minio, Postgres, StopMode};

const USAGE: &str = "usage: muster-services up|down|status|own";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => up(),
        ["down"] => down(),
        ["status"] => status(),
        ["own"] => own(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up() -> Result<ExitCode> {
    let (postgres, minio) = (Postgres::shared()?, Minio::shared()?);
    say(&postgres, &minio);
    Ok(ExitCode::SUCCESS)
}

fn down() -> Result<ExitCode> {
    if let Some(mut postgres) = Postgres::shared_if_running()? {
        postgres.stop(StopMode::Fast)?;
    }
    if let Some(mut minio) = Minio::shared_if_running()? {
        minio.stop()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails where one of them does not run.
fn status() -> Result<ExitCode> {
    match (Postgres::shared_if_running()?, Minio::shared_if_running()?) {
        (Some(postgres), Some(minio)) => {
            say(&postgres, &minio);
            Ok(ExitCode::SUCCESS)
        }
        (postgres, minio) => {
            let word = |up: bool| if up { "runs" } else { "does not run" };
            println!(
                "PostgreSQL {}, MinIO {}: make services",
                word(postgres.is_some()),
                word(minio.is_some())
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Servers of this process's own, until its input ends or it is killed.
fn own() -> Result<ExitCode> {
    let (postgres, minio) = (Postgres::own(&[])?, Minio::own()?);
    say(&postgres, &minio);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(ExitCode::SUCCESS)
}

fn say(postgres: &Postgres, minio: &Minio) {
    println!("PostgreSQL  {}", postgres.url("postgres"));
    println!("MinIO       {}", minio.endpoint());
    println!(
        "export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_REGION=us-east-1",
        minio.access_key(),
        minio.secret_key()
    );
}
