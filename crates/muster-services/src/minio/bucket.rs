//! Buckets, by `curl`, which signs requests.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Minio;
use crate::postgres::unique;
use crate::process::output;

const VERSIONED: &str = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                         <Status>Enabled</Status></VersioningConfiguration>";

impl Minio {
    /// Makes a bucket with a name of its own that begins with `prefix`.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_bucket(&self, prefix: &str) -> Result<String> {
        let name = unique(prefix).replace('_', "-");
        self.request("PUT", &format!("/{name}"), "")?;
        Ok(name)
    }

    /// As [`Self::create_bucket`], and it keeps all versions of its objects.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_versioned_bucket(&self, prefix: &str) -> Result<String> {
        let name = self.create_bucket(prefix)?;
        self.request("PUT", &format!("/{name}?versioning="), VERSIONED)?;
        Ok(name)
    }

    /// Sends a signed request for a path with its query; what was answered.
    ///
    /// # Errors
    /// `curl` is missing, or the server answers with an error.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let mut command = self.curl();
        command.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]);
        command.arg(format!("{}:{}", self.access_key(), self.secret_key()));
        // Older versions of curl sign the hash of a body and do not send it.
        command.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        command.args(["-X", method, "-w", "\n%{http_code}", "--data-binary", body]);
        let answer = output(command.arg(format!("{}{path}", self.endpoint())))
            .context("curl 7.86 or later is needed (Debian: apt-get install curl)")?;
        let (text, code) = answer.rsplit_once('\n').unwrap_or_default();
        ensure!(code.starts_with('2'), "{method} {path} of MinIO: {code} {text}");
        Ok(text.to_owned())
    }

    /// `curl` that trusts this server.
    pub(super) fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.args(["-q", "-sS", "--noproxy", "*"]);
        if let Some(authority) = &self.authority {
            command.arg("--cacert").arg(authority);
        }
        command
    }
}
