//! A certificate authority of one's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::output;

/// A certificate authority, made by `openssl`, and a certificate of it for 127.0.0.1 and localhost.
#[derive(Debug)]
pub struct Tls {
    dir: TempDir,
}

impl Tls {
    /// A new authority and a certificate, valid for a few days.
    ///
    /// # Errors
    /// `openssl` is missing.
    pub fn create() -> Result<Self> {
        let tls = Self { dir: TempDir::with_prefix("muster-tls-").context("cannot create a folder")? };
        let openssl = |args: &[&str]| {
            output(Command::new("openssl").args(args).current_dir(tls.dir.path()))
                .context("openssl is needed for certificates (Debian: apt-get install openssl)")
        };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7"];
        let authority =
            ["req", "-x509", "-subj", "/CN=Muster test authority", "-keyout", "ca.key", "-out", "ca.crt"];
        openssl(&[&authority[..], &key].concat())?;
        let server =
            ["req", "-x509", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.crt"];
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key"];
        let names = [
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        openssl(&[&server[..], &key, &signed, &names].concat())?;
        Ok(tls)
    }

    /// The authority's certificate as PEM: what clients have to trust.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The server's certificate as PEM.
    pub(crate) fn certificate(&self) -> Result<Vec<u8>> {
        read(&self.dir.path().join("server.crt"))
    }

    /// The server's key as PEM.
    pub(crate) fn key(&self) -> Result<Vec<u8>> {
        read(&self.dir.path().join("server.key"))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}
