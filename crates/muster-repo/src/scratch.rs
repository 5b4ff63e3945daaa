//! Folders for files that are on their way to the repository.
//!
//! # Invariants
//! - A folder goes with its [`Scratch`]; one that a killed process left is removed by the next process that makes one beside it.
//! - The folder of a living process is never removed: each holds a lock on the file `lock` in it, which gets its name when it
//!   is locked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

const PREFIX: &str = "muster-scratch-";
const LOCK: &str = "lock";

/// Where this process has looked for what others left.
static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A folder of one process, removed at the end.
#[derive(Debug)]
pub struct Scratch {
    // Goes before the lock is given up.
    dir: TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes a folder in `parent`, or where temporary files go (`TMPDIR`).
    ///
    /// # Errors
    /// What the file system answers.
    pub fn new(parent: Option<&Path>) -> io::Result<Self> {
        let temporary = std::env::temp_dir();
        let parent = parent.unwrap_or(&temporary);
        fs::create_dir_all(parent)?;
        // Once: capture makes a folder for each segment.
        if SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(parent.to_owned()) {
            sweep(parent);
        }
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let unlocked = dir.path().join("lock.new");
        let lock = File::create(&unlocked)?;
        lock.lock()?;
        fs::rename(&unlocked, dir.path().join(LOCK))?;
        Ok(Self { dir, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes what processes left that are gone. Others may do the same at once, and what is not ours stays.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::debug!(%error, folder = %entry.path().display(), "a folder that was left stays");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_uses_stays() {
        let parent = tempfile::tempdir().unwrap();
        let living = Scratch::new(Some(parent.path())).unwrap();
        fs::write(living.path().join("pack"), "in use").unwrap();
        let left = parent.path().join("muster-scratch-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        fs::write(left.join("pack"), "large").unwrap();
        let not_ours = parent.path().join("other");
        fs::create_dir(&not_ours).unwrap();

        let second = Scratch::new(Some(parent.path())).unwrap();
        sweep(parent.path());
        assert!(!left.exists() && not_ours.exists());
        assert_eq!(fs::read_to_string(living.path().join("pack")).unwrap(), "in use");
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
    }
}
