//! What an error of SQLite means for a run.
//!
//! # Invariants
//! Every error names the shard and what was being done; its class follows from the result code alone.

use muster_engine::driver::{DriverError, ErrorClass};
use rusqlite::ErrorCode;

use super::shard::Shard;

/// Extended result codes of unique and primary key violations.
const KEY_VIOLATIONS: [i32; 3] = [
    rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE,
    rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
    rusqlite::ffi::SQLITE_CONSTRAINT_ROWID,
];

impl Shard {
    /// The error for the engine; `doing` completes "could not …".
    pub(super) fn error(&self, doing: &str, error: &rusqlite::Error) -> DriverError {
        let (class, hint) = judge(error.sqlite_error_code(), &self.path().display().to_string());
        DriverError::new(class, format!("shard `{}`: could not {doing}: {error}", self.name()), hint)
    }

    /// As [`Shard::error`] for a commit: an error of the device leaves open whether it took place.
    pub(super) fn commit_error(&self, doing: &str, error: &rusqlite::Error) -> DriverError {
        let mut judged = self.error(doing, error);
        if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
            judged.class = ErrorClass::Ambiguous;
            judged.hint =
                "whether it was committed is read from the shard's publish records on the next attempt"
                    .into();
        }
        judged
    }

    /// The error of a file operation beside the shard.
    pub(super) fn file_error(&self, doing: &str, error: &std::io::Error) -> DriverError {
        use std::io::ErrorKind;
        let hint = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                "free space on the disk that holds the shard, then resume the run"
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "the staging files lie in a folder beside the shard: let this user write there, then resume the run"
            }
            _ => "look at the folder beside the shard that ends in `.muster`, then resume the run",
        };
        DriverError::new(
            ErrorClass::Permanent,
            format!("shard `{}`: could not {doing}: {error}", self.name()),
            hint,
        )
    }

    /// An error that no further attempt can mend.
    pub(super) fn permanent(&self, message: impl AsRef<str>, hint: impl Into<String>) -> DriverError {
        DriverError::new(
            ErrorClass::Permanent,
            format!("shard `{}`: {}", self.name(), message.as_ref()),
            hint,
        )
    }
}

/// Whether a unique or primary key refused a row.
pub(super) fn is_key_violation(error: &rusqlite::Error) -> bool {
    extended_code(error).is_some_and(|code| KEY_VIOLATIONS.contains(&code))
}

/// Whether a foreign key refused a row or the commit.
pub(super) fn is_foreign_key_violation(error: &rusqlite::Error) -> bool {
    extended_code(error) == Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// Whether a progress handler stopped the statement.
pub(super) fn is_interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|inner| inner.extended_code)
}

fn judge(code: Option<ErrorCode>, path: &str) -> (ErrorClass, String) {
    use ErrorClass::{Permanent, Transient};
    match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            Transient,
            "another writer holds the shard; the step is tried again, and writers with long transactions \
             should be paused if this stays"
                .into(),
        ),
        Some(ErrorCode::SchemaChanged) => {
            (Transient, "the schema changed meanwhile; the step is tried again".into())
        }
        Some(ErrorCode::OutOfMemory) => {
            (Transient, "memory ran out; lower the pools of the plan if it stays".into())
        }
        Some(ErrorCode::SystemIoFailure) => {
            (Transient, format!("the device under `{path}` failed; look at the system's log"))
        }
        Some(ErrorCode::DiskFull) => (
            Permanent,
            format!("the disk that holds `{path}` is full: free space there, then resume the run"),
        ),
        Some(
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied,
        ) => (
            Permanent,
            format!(
                "`{path}` does not take writes: make the file and its folder writable, then resume the run"
            ),
        ),
        Some(ErrorCode::CannotOpen) => {
            (Permanent, format!("check that `{path}` exists and that its folder may be written to"))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => (
            Permanent,
            format!("`{path}` is damaged: run `PRAGMA integrity_check` on it and bring the shard back first"),
        ),
        Some(ErrorCode::ConstraintViolation) => (
            Permanent,
            "the live table no longer takes such a row: compare its definition with the plan's".into(),
        ),
        _ => (Permanent, format!("look at `{path}` with the sqlite3 shell; if it is sound, report this")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_follows_from_the_code() {
        let class = |code| judge(Some(code), "x.db").0;
        assert_eq!(class(ErrorCode::DatabaseBusy), ErrorClass::Transient);
        assert_eq!(class(ErrorCode::DiskFull), ErrorClass::Permanent);
        assert_eq!(class(ErrorCode::ReadOnly), ErrorClass::Permanent);
        assert_eq!(class(ErrorCode::DatabaseCorrupt), ErrorClass::Permanent);
        assert_eq!(judge(None, "x.db").0, ErrorClass::Permanent);
    }
}
