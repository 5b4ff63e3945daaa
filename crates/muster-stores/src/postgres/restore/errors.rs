//! What an error of PostgreSQL means for a run.
//!
//! # Invariants
//! Every error names the shard and what was being done; its class follows from the SQLSTATE, or from the connection's
//! loss where there is none.

use muster_engine::driver::{DriverError, ErrorClass};
use tokio_postgres::error::SqlState;

use super::shard::Shard;
use crate::postgres::schema::sql_text;

impl Shard {
    /// The error for the engine; `doing` completes "could not …".
    pub(super) fn error(&self, doing: &str, error: &tokio_postgres::Error) -> DriverError {
        let (class, hint) = judge(error.code().map(SqlState::code));
        let text = sql_text(error);
        DriverError::new(class, format!("shard `{}`: could not {doing}: {text}", self.name()), hint)
    }

    /// As [`Shard::error`] for a commit: without an answer it is open whether it took place.
    pub(super) fn commit_error(&self, doing: &str, error: &tokio_postgres::Error) -> DriverError {
        let mut judged = self.error(doing, error);
        let refused = error.code().is_some_and(|code| !code.code().starts_with("57"));
        if !refused {
            judged.class = ErrorClass::Ambiguous;
            judged.hint =
                "whether it was committed is read from the shard's publish records on the next attempt"
                    .into();
        }
        judged
    }

    /// An error that no further attempt can mend.
    pub(super) fn permanent(&self, message: impl AsRef<str>, hint: impl Into<String>) -> DriverError {
        let message = format!("shard `{}`: {}", self.name(), message.as_ref());
        DriverError::new(ErrorClass::Permanent, message, hint)
    }

    /// An error that may pass.
    pub(super) fn transient(&self, message: impl AsRef<str>, hint: impl Into<String>) -> DriverError {
        let message = format!("shard `{}`: {}", self.name(), message.as_ref());
        DriverError::new(ErrorClass::Transient, message, hint)
    }
}

impl Shard {
    /// The error where a transaction that is to write could not begin because the server is a standby.
    pub(super) fn standby_error(&self, doing: &str, error: &tokio_postgres::Error) -> Option<DriverError> {
        let standby = error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED);
        standby.then(|| {
            let mut judged = self.error(doing, error);
            (judged.class, judged.hint) = judge(Some(SqlState::READ_ONLY_SQL_TRANSACTION.code()));
            judged
        })
    }

    /// As [`Shard::error`] for a wait for an earlier attempt that the server is still busy with: it may be a minute until
    /// it notices that nobody listens any more.
    pub(super) fn busy_error(&self, doing: &str, error: &tokio_postgres::Error) -> DriverError {
        let mut judged = self.error(doing, error);
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) || is_out_of_time(error) {
            judged.class = ErrorClass::Unavailable;
            judged.hint = "an earlier attempt at it is still under way in the server, which ends it by itself; the step is \
                tried again"
                .into();
        }
        judged
    }
}

/// Whether `error` says that a lock could not be had in time, or that a statement took too long.
pub(super) fn is_out_of_time(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::QUERY_CANCELED)
}

/// Class and way out of a SQLSTATE; none where the connection broke.
pub(super) fn judge(code: Option<&str>) -> (ErrorClass, String) {
    use ErrorClass::{Permanent, Throttled, Transient, Unavailable};
    let (class, hint) = match code {
        None => (Transient, "the connection broke; the step is tried again over a new one"),
        Some("40001" | "40P01") => (Transient, "another transaction was in the way; the step is tried again"),
        Some("55P03") => (
            Transient,
            "another transaction holds the lock; the step is tried again, and long transactions of \
              writers should be ended if this stays",
        ),
        Some("57014") => {
            (Transient, "the statement took longer than its limit, or was cancelled; the step is tried again")
        }
        // Of statements that were sent together, the first that failed says more.
        Some("25P02") => (Transient, "a statement before it failed; the step is tried again"),
        Some("57P05" | "25P03") => (Transient, "the server ended the connection; the step is tried again"),
        Some("57P01" | "57P02" | "57P03") => {
            (Unavailable, "the server stops or starts up; the step is tried again when it is back")
        }
        Some("53300") => (Throttled, "the server is short of connections; Muster asks for fewer"),
        Some("53100") => (Permanent, "the server's disk is full: free space there, then resume the run"),
        Some("53200") => (Throttled, "the server is short of memory; Muster asks for less"),
        Some("25006") => (
            Unavailable,
            "the server takes no writes: a standby that is not promoted yet is waited for; point the topology at the \
             primary, or set default_transaction_read_only off, if this stays",
        ),
        Some("42501") => {
            (Permanent, "give the role the privilege, see the list in the documentation of PostgreSQL shards")
        }
        Some("42P01" | "42703" | "3F000") => {
            (Transient, "a definition changed meanwhile; the step is tried again")
        }
        Some(code) if code.starts_with("08") => {
            (Transient, "the connection broke; the step is tried again over a new one")
        }
        Some(code) if code.starts_with("23") => {
            (Permanent, "the live table no longer takes such a row: compare its definition with the plan's")
        }
        Some(code) if code.starts_with("22") => (
            Permanent,
            "a live type no longer takes such a value: compare the types with those at the recovery point",
        ),
        // Most often a definition that went at that very moment; damage has codes of its own.
        Some("XX000") => (
            Transient,
            "the server met an inner fault, as when a table goes that is being looked at; the step is tried again",
        ),
        Some(code) if code.starts_with("58") || code.starts_with("XX") => {
            (Permanent, "the server has a fault of its own: look at its log, mend it and resume the run")
        }
        Some(_) => (Permanent, "look at the server's log; if the server is sound, report this"),
    };
    (class, hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_follows_from_the_state() {
        let class = |code| judge(Some(code)).0;
        for code in ["40001", "40P01", "55P03", "57014", "08006", "57P05", "XX000"] {
            assert_eq!(class(code), ErrorClass::Transient, "{code}");
        }
        for code in ["53300", "53200"] {
            assert_eq!(class(code), ErrorClass::Throttled, "{code}");
        }
        for code in ["57P01", "57P02", "57P03", "25006"] {
            assert_eq!(class(code), ErrorClass::Unavailable, "{code}");
        }
        for code in ["23505", "42501", "53100", "22P02", "XX001"] {
            assert_eq!(class(code), ErrorClass::Permanent, "{code}");
        }
        assert_eq!(judge(None).0, ErrorClass::Transient);
    }
}
