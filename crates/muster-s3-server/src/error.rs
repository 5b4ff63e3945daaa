//! What keeps a server from running.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What keeps a server from running.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServerError {
    /// Another process serves the folder.
    #[error(
        "`{}` is already served by another process ({holder}); use that one, stop it, or serve another folder",
        .dir.display()
    )]
    Owned {
        /// The folder.
        dir: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The port is taken by something that does not serve this folder.
    #[error(
        "`{listen}` is in use by another program; choose another port in the endpoint, or stop that program"
    )]
    AddressInUse {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The server is for one machine; the network needs a real S3.
    #[error(
        "`{listen}` is not a loopback address; serve on 127.0.0.1, or use a real S3 service across machines"
    )]
    NotLoopback {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The folder is served, on another address.
    #[error("`{}` is served on {found} and not on {listen}; use that endpoint, or stop the process ({holder})", .dir.display())]
    Elsewhere {
        /// The folder.
        dir: PathBuf,
        /// The address asked for.
        listen: SocketAddr,
        /// The address that the holder serves.
        found: SocketAddr,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// Nobody answers in time.
    #[error("nothing accepts connections on `{listen}` after {waited_seconds} s, though `{}` is held by {holder}; stop that process", .dir.display())]
    NotReady {
        /// The folder.
        dir: PathBuf,
        /// The address asked for.
        listen: SocketAddr,
        /// How long was waited.
        waited_seconds: u64,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The credentials file is there and cannot be understood.
    #[error("`{}` is not a credentials file of this server; remove it and a new one is made", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("failed to {what} `{}`: {reason}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl ServerError {
    /// Names what was tried on which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, path: path.to_owned(), reason: error.to_string() }
    }
}
