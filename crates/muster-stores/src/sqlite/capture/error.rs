//! SQLite's errors as errors of capture, naming the shard's file and the way out.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::capture::CaptureError;

/// What `doing` something to the shard at `path` met.
pub(super) fn explain(path: &Path, doing: &str, error: &rusqlite::Error) -> CaptureError {
    let message = format!("shard file `{}`: cannot {doing}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SchemaChanged) => {
            CaptureError::transient(message, "another writer holds the file; capture tries again")
        }
        Some(ErrorCode::DiskFull) => CaptureError::transient(
            message,
            "the disk of the shard or of temporary files is full: free space on it",
        ),
        Some(ErrorCode::SystemIoFailure) => CaptureError::transient(
            message,
            "check the disk that holds the shard and the space for temporary files (SQLITE_TMPDIR)",
        ),
        Some(ErrorCode::ReadOnly) => CaptureError::new(
            message,
            "make the file and its folder writable for capture's user: it installs triggers and removes what is acknowledged",
        ),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => CaptureError::new(
            message,
            "check the shard's path in the topology, and that capture's user may read and write file and folder",
        ),
        Some(ErrorCode::NotADatabase) => CaptureError::new(
            message,
            "the shard's path in the topology must name a SQLite file, not encrypted",
        ),
        Some(ErrorCode::DatabaseCorrupt) => CaptureError::new(
            message,
            "run `PRAGMA integrity_check` on the file and restore it if it is damaged",
        ),
        _ => CaptureError::new(message, "look at the message of SQLite; this is not expected to happen"),
    }
}
