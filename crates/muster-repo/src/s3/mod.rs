//! [`Objects`](crate::Objects) over `aws-sdk-s3`: AWS, MinIO and the embedded server alike.
//!
//! # Invariants
//! - A semaphore bounds the requests in flight of one client.
//! - Retries are bounded twice: a few attempts inside the SDK, and [`RETRY_FOR`] of patience around them, which
//!   rides out a restart of the server.
//!
//! # Errors
//! `error.rs` sorts what S3 answers into [`RepoErrorKind`](crate::RepoErrorKind)s.

mod client;
mod config;
mod error;
mod read;
mod trust;
mod upload;

pub use client::S3Objects;
pub use config::S3Config;

/// How long failures that may pass are retried: longer than the restart of a server, shorter than a responder's
/// patience.
pub const RETRY_FOR: std::time::Duration = std::time::Duration::from_secs(20);
