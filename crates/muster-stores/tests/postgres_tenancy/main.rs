//! Tenancies of PostgreSQL: a schema of each site, captured and restored on a real server.

#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

mod capture;
mod schemas;
mod world;
