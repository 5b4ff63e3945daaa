//! Ranges of objects, read by `curl`: a client that everyone has.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Minio;
use crate::process::output;

/// A part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The object's key.
    pub key: String,
    /// Where it begins.
    pub offset: u64,
    /// Its length; not zero.
    pub bytes: u64,
}

impl Minio {
    /// Reads ranges of a bucket's objects by one `curl`, so many at once, and throws them away; the bytes read.
    ///
    /// # Errors
    /// `curl` is missing, or the server answers anything but each range whole.
    pub fn read_ranges(&self, bucket: &str, ranges: &[Range], at_once: usize) -> Result<u64> {
        let config = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
        std::fs::write(config.path(), self.transfers(bucket, ranges)).context("cannot write to it")?;
        let mut command = self.curl();
        command.args(["--parallel", "--parallel-max", &at_once.to_string(), "--config"]).arg(config.path());
        let answers =
            output(&mut command).context("curl 7.86 or later is needed (Debian: apt-get install curl)")?;
        let mut bytes = 0;
        for answer in answers.lines() {
            let read = answer.strip_prefix("206 ").and_then(|read| read.parse::<u64>().ok());
            bytes += read.with_context(|| format!("MinIO answered a range with `{answer}`"))?;
        }
        let wanted: u64 = ranges.iter().map(|range| range.bytes).sum();
        ensure!(bytes == wanted, "MinIO sent {bytes} bytes of {wanted}");
        Ok(bytes)
    }

    /// A configuration file with a transfer for each range.
    fn transfers(&self, bucket: &str, ranges: &[Range]) -> String {
        let mut text = String::new();
        for (number, range) in ranges.iter().enumerate() {
            let (from, to) = (range.offset, range.offset + range.bytes - 1);
            // Options hold up to `next`, the first ones too.
            let next = if number > 0 { "next\nsilent\nshow-error\nnoproxy = \"*\"\n" } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{next}url = \"{}/{bucket}/{}\"\nrange = \"{from}-{to}\"\noutput = \"/dev/null\"\n\
                 aws-sigv4 = \"aws:amz:us-east-1:s3\"\nuser = \"{}:{}\"\n\
                 header = \"x-amz-content-sha256: UNSIGNED-PAYLOAD\"\nwrite-out = \"%{{http_code}} %{{size_download}}\\n\"\n",
                self.endpoint(),
                range.key,
                self.access_key(),
                self.secret_key(),
            );
        }
        text
    }

    /// The version of the `curl` that [`Self::read_ranges`] runs.
    ///
    /// # Errors
    /// `curl` is missing.
    pub fn curl_version() -> Result<String> {
        let text = output(Command::new("curl").arg("--version"))?;
        Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    /// The version of the server: what it is built from says more than what it calls itself.
    pub fn version(&self) -> String {
        let name = self.binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_prefix("minio-").map_or_else(|| self.binary.display().to_string(), str::to_owned)
    }
}
