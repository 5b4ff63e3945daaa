//! A folder in which drills make shard files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use muster_types::DrillId;
use muster_types::topology::{DriverConfig, MADE_PREFIX, Topology};

/// What lies beside a file of that name.
const BESIDE: [&str; 5] = [".db", ".db-wal", ".db-shm", ".db-journal", ".db.muster"];

/// Why the folder holds something alive, if it does. Links are followed.
pub(crate) fn is_live(topology: &Topology, dir: &Path) -> Result<Option<String>, String> {
    let resolved = |path: &Path| path.canonicalize().ok();
    let Some(folder) = resolved(dir) else {
        return match dir.parent().and_then(resolved) {
            Some(_) => Ok(None),
            None => {
                Err(format!("`{}` is not there, nor is the folder above it; make that folder", dir.display()))
            }
        };
    };
    if !folder.is_dir() {
        return Ok(Some(format!("`{}` is a file and not a folder", dir.display())));
    }
    for (shard, config) in &topology.shards {
        let DriverConfig::Sqlite { path } = &config.driver else { continue };
        let Some(file) = resolved(path) else { continue };
        let named = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MADE_PREFIX));
        if named && file.parent() == Some(folder.as_path()) {
            return Ok(Some(format!("live shard `{shard}` is the file `{}` in it", file.display())));
        }
        if folder.starts_with(format!("{}.muster", file.display())) {
            return Ok(Some(format!("it lies in the staging folder of live shard `{shard}`")));
        }
    }
    let embedded = topology.repository.embedded.as_deref().and_then(resolved);
    if embedded.is_some_and(|embedded| folder.starts_with(embedded)) {
        return Ok(Some("it lies in the folder of the repository".to_owned()));
    }
    Ok(None)
}

/// The folder.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The file of a shard.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.db"))
    }

    /// A lock that ends with the process; its file is listed as the drill's, too.
    pub(crate) fn hold(&self, drill: &DrillId) -> Result<Option<File>, String> {
        std::fs::create_dir_all(&self.0).map_err(|error| self.failed("make the folder", &error))?;
        let path = self.0.join(format!("{MADE_PREFIX}{drill}_lock.db"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(|error| self.failed("make a lock file", &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(self.failed("lock a file", &error)),
        }
    }

    pub(crate) fn make(&self, name: &str) -> Result<(), String> {
        let made = OpenOptions::new().write(true).create_new(true).open(self.path(name));
        made.map(drop).map_err(|error| self.failed(&format!("make `{name}.db`"), &error))
    }

    pub(crate) fn list(&self) -> Result<Vec<String>, String> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("list the folder", &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed("list the folder", &error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let made = name.split_once(".db").map(|(made, _)| made.to_owned());
            names.extend(made.filter(|made| made.starts_with(MADE_PREFIX)));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), String> {
        for suffix in BESIDE {
            let path = self.0.join(format!("{name}{suffix}"));
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.failed(&format!("remove `{}`", path.display()), &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> String {
        let hint = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free space on its disk",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "let this user write there",
            _ => "look at the folder",
        };
        format!("could not {doing} in `{}`: {error}; {hint}", self.0.display())
    }
}
