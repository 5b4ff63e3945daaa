//! The binary: built once, kept in the user's cache folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::place;
use crate::process::{on_path, output};

/// The version that everything is tested with. MinIO publishes sources only.
const VERSION: &str = "v0.0.0-20260212201848-7aac2a2c5b7c";

/// The binary of the version, built if it is not in the cache; `MUSTER_MINIO` names another one.
pub(super) fn find() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("MUSTER_MINIO").map(PathBuf::from) {
        if !binary.is_file() {
            bail!("MUSTER_MINIO names `{}`, which is no file", binary.display());
        }
        return Ok(binary);
    }
    let cache = place::cache_dir()?;
    let binary = cache.join(format!("minio-{VERSION}"));
    if !binary.is_file() {
        let _lock = place::lock(&cache)?;
        if !binary.is_file() {
            build(&cache, &binary)?;
        }
    }
    Ok(binary)
}

#[allow(clippy::print_stderr, reason = "minutes of silence would look like a hang")]
fn build(cache: &std::path::Path, binary: &std::path::Path) -> Result<()> {
    if on_path("go").is_none() {
        bail!(
            "MinIO is built from source, and Go is missing: install it (1.24 or later, https://go.dev/dl), or set \
             MUSTER_MINIO to a `minio` binary"
        );
    }
    eprintln!("building MinIO {VERSION}, once: about 6 minutes on 2 cores");
    let dir =
        tempfile::tempdir_in(cache).with_context(|| format!("cannot write to `{}`", cache.display()))?;
    let mut command = Command::new("go");
    command.arg("install").arg(format!("github.com/minio/minio@{VERSION}"));
    command.env("GOBIN", dir.path()).env("GOFLAGS", "-buildvcs=false").current_dir(dir.path());
    output(&mut command).context("building MinIO failed; it needs Go 1.24 or later and the network")?;
    std::fs::rename(dir.path().join("minio"), binary)
        .with_context(|| format!("cannot write `{}`", binary.display()))
}
