//! The embedded S3 server: `s3s-fs` made safe for conditional writes, on a loopback port, with credentials.
//!
//! It stands in for a bucket where there is none, so that Muster has one way to reach its repository. Buckets are
//! folders and objects are files with the object's bytes, so a repository can be copied with `cp`.
//!
//! - [`start`] serves a folder; [`RunningServer`] is the running server.
//! - [`guard`] is what every command uses: it serves the folder if nobody does, and takes over, on the same port, when
//!   the process that does goes away; [`Guard::ready`] waits until the endpoint answers.
//! - [`ensure_credentials`] makes the access key once, as a file that every AWS client reads.
//!
//! # Invariants
//! - At most one process serves a folder: it holds a lock on `.muster/lock` until its last write has ended.
//! - An object is exactly one file and gets its name only when it is whole, checked and on the disk. A process killed at
//!   any moment leaves whole objects and a staging folder, which the next start empties.
//! - Writes and deletes of one key happen one after another, conditions included. An answer, also the refusal that
//!   tells a loser that another won, is given only when the state that it rests on is durable.
//! - A listing shows what is there all the while, in the order of keys; what comes and goes meanwhile does not make it fail.
//! - Nothing under `.muster` is a bucket or an object.
//!
//! # Errors
//! [`ServerError`] for what keeps a server from running. Requests are answered with S3's own codes; a full disk with
//! status 507 and the code `StorageFull`, which clients do not retry.
//!
//! # Not here
//! Versions, access lists, user metadata and content types: the first three are refused or not implemented, types are
//! not kept. Clients: Muster's is in `muster-repo`.

mod credentials;
mod error;
mod guard;
mod listing;
mod lock;
mod read;
mod serial;
mod server;
mod service;
mod spool;
mod tree;

pub use credentials::ensure_credentials;
pub use error::ServerError;
pub use guard::{Guard, guard};
pub use server::{RunningServer, ServerConfig, start};
