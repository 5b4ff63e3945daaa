//! The repository over objects in memory and over the embedded S3 server.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chain;
mod creation;
mod damage;
mod log;
mod model;
mod range;
mod round_trip;
mod runs;
mod s3;
