//! PostgreSQL and MinIO for demos, tests and benchmarks: found, installed or built, started, stopped.
//!
//! Of each there is a *shared* server, which `make services` starts, on a port of its own with its data in the clone's
//! ignored folder `.services`; and servers *of one's own*, in a temporary folder, for whoever restarts, kills or fills
//! them. Everything listens on loopback only and holds nothing of worth.
//!
//! # Invariants
//! - A shared server is started once, however many processes ask for it at the same time, and outlives them.
//! - A server of one's own ends with its value, and also when its process is killed: a watchdog that reads a pipe from
//!   that process stops the server and removes its folder.
//! - PostgreSQL never runs as root: started by root, it and its files belong to the user `postgres`.
//! - pgBackRest is used where it is installed, and not installed by us.
//! - MinIO is built once for each version, into the user's cache folder.
//!
//! # Errors
//! Each says what is missing and how to get it.
//!
//! # Not here
//! Muster itself: nothing of it is used, so that every crate's tests can use this one.

mod binaries;
mod minio;
mod owner;
mod pgbackrest;
mod place;
mod postgres;
mod process;
mod tls;
mod watchdog;

pub use minio::{Minio, Range};
pub use pgbackrest::{PgBackRest, SideInstance};
pub use postgres::{Postgres, StopMode};
pub use tls::Tls;
