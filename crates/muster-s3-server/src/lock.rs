//! The lock that makes one process the owner of a folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::error::ServerError;

/// The server's own files, beside the buckets. The leading dot makes it an impossible bucket name.
const PRIVATE_DIR: &str = ".muster";

/// The folder for the server's own files.
pub(crate) fn private_dir(dir: &Path) -> PathBuf {
    dir.join(PRIVATE_DIR)
}

/// Makes the folder and its private part.
pub(crate) fn make_private_dir(dir: &Path) -> Result<PathBuf, ServerError> {
    let private = private_dir(dir);
    fs::create_dir_all(&private).map_err(ServerError::io("create the folder", &private))?;
    Ok(private)
}

/// A folder's lock file, opened and perhaps not yet locked.
pub(crate) struct LockFile {
    dir: PathBuf,
    file: File,
}

/// Ownership of a folder; ends when this is dropped or the process is gone, however it goes.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
}

/// What the owner says about itself in the lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) process: u32,
    pub(crate) addr: SocketAddr,
}

impl LockFile {
    /// Opens the lock file of `dir`, making both if they are not there.
    pub(crate) fn open(dir: &Path) -> Result<Self, ServerError> {
        let path = make_private_dir(dir)?.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(ServerError::io("open the lock file", &path))?;
        Ok(Self { dir: dir.to_owned(), file })
    }

    /// Takes the lock if it is free; gives the file back if it is not.
    pub(crate) fn try_lock(self) -> Result<Result<FolderLock, Self>, ServerError> {
        match self.file.try_lock() {
            Ok(()) => Ok(Ok(FolderLock { file: self.file })),
            Err(TryLockError::WouldBlock) => Ok(Err(self)),
            Err(TryLockError::Error(error)) => Err(ServerError::io("lock", &self.dir)(error)),
        }
    }

    /// Waits for the lock, without a bound: it is free when the owner's process is gone.
    pub(crate) fn lock(self) -> Result<FolderLock, ServerError> {
        self.file.lock().map_err(ServerError::io("lock", &self.dir))?;
        Ok(FolderLock { file: self.file })
    }
}

impl FolderLock {
    /// Notes who serves the folder and where, for the messages of those who find it locked.
    pub(crate) fn announce(&self, addr: SocketAddr) -> std::io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        std::io::Seek::rewind(&mut file)?;
        file.write_all(format!("{} {addr}\n", std::process::id()).as_bytes())
    }
}

/// Who serves `dir`, or did last.
pub(crate) fn holder(dir: &Path) -> Option<Holder> {
    let text = fs::read_to_string(private_dir(dir).join("lock")).ok()?;
    let (process, addr) = text.trim_end().split_once(' ')?;
    Some(Holder { process: process.parse().ok()?, addr: addr.parse().ok()? })
}

/// [`holder`] for a message.
pub(crate) fn holder_text(dir: &Path) -> String {
    match holder(dir) {
        Some(holder) => format!("process {} on {}", holder.process, holder.addr),
        None => "a process that has not said which".to_owned(),
    }
}
