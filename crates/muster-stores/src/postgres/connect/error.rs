//! Why there is no connection.

use std::error::Error as _;
use std::fmt;

use muster_engine::driver::{DriverError, ErrorClass};
use pgwire_replication::PgWireError;
use tokio_postgres::error::SqlState;

use super::PostgresConfig;
use crate::capture::CaptureError;

/// A connection that cannot be had, with what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError {
    /// `user@host:port/database`, once that is known.
    server: Option<String>,
    reason: String,
    hint: String,
    transient: bool,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message(), self.hint)
    }
}

impl std::error::Error for ConnectError {}

impl ConnectError {
    /// Something in the connection text or the environment.
    pub(super) fn setting(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { server: None, reason: reason.into(), hint: hint.into(), transient: false }
    }

    pub(super) fn at(
        config: &PostgresConfig,
        reason: impl Into<String>,
        hint: impl Into<String>,
        transient: bool,
    ) -> Self {
        Self { server: Some(config.to_string()), reason: reason.into(), hint: hint.into(), transient }
    }

    /// The server is there, and has no such database.
    pub(crate) fn is_of_missing_database(&self) -> bool {
        self.reason.contains("SQLSTATE 3D000")
    }

    /// Where to and why, without the way out.
    pub fn message(&self) -> String {
        match &self.server {
            Some(server) => format!("cannot connect to {server}: {}", self.reason),
            None => format!("the connection cannot be used: {}", self.reason),
        }
    }

    /// What to do.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Trying again later may help: the server restarts, or has no connection to spare.
    pub fn is_transient(&self) -> bool {
        self.transient
    }

    pub(super) fn of_sql(config: &PostgresConfig, error: &tokio_postgres::Error) -> Self {
        if let Some(answer) = error.as_db_error() {
            return Self::answered(config, answer.message(), answer.code().code());
        }
        let mut source = error.source();
        let mut transient = error.is_closed();
        while let Some(inner) = source {
            transient |= inner.downcast_ref::<std::io::Error>().is_some_and(is_passing);
            source = inner.source();
        }
        Self::at(config, error_text(error), unreached_hint(transient), transient)
    }

    pub(crate) fn of_replication(config: &PostgresConfig, error: &PgWireError) -> Self {
        match error {
            PgWireError::Server(text) => {
                let (message, code) = split_sqlstate(text);
                Self::answered(config, message, code)
            }
            PgWireError::Io(inner) => {
                let transient = is_passing(inner);
                Self::at(config, inner.to_string(), unreached_hint(transient), transient)
            }
            other => Self::at(config, other.to_string(), unreached_hint(false), false),
        }
    }

    fn answered(config: &PostgresConfig, message: &str, code: &str) -> Self {
        let (hint, transient) = match code {
            "28P01" => ("set PGPASSWORD, or put the password into the password file", false),
            "28000" => ("let the role in by pg_hba.conf, for `replication` too", false),
            "3D000" => ("correct the database's name in the topology", false),
            "53300" => ("raise max_connections or max_wal_senders, or let fewer clients in", true),
            _ if is_transient_state(code) => ("Muster tries again", true),
            _ => ("see the server's log", false),
        };
        Self::at(config, format!("{message} (SQLSTATE {code})"), hint, transient)
    }
}

/// What an error and those below it say: often the error itself says only where.
pub(crate) fn error_text(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        let detail = answer.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
        return format!("{}{detail}", answer.message());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let below = inner.to_string();
        if !text.contains(&below) {
            text = format!("{text}: {below}");
        }
        source = inner.source();
    }
    text
}

/// The message and the SQLSTATE of an error text of the replication client.
pub(crate) fn split_sqlstate(text: &str) -> (&str, &str) {
    let Some(start) = text.find(" (SQLSTATE ") else { return (text, "XX000") };
    let code = text.get(start + 11..start + 16).unwrap_or("XX000");
    (&text[..start], code)
}

/// Errors that pass: the connection broke, the server starts or stops, or is short of something.
pub(crate) fn is_transient_state(code: &str) -> bool {
    let passing = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::OBJECT_IN_USE,
    ];
    code.starts_with("08") || code.starts_with("53") || passing.iter().any(|state| state.code() == code)
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    // A socket's file is missing while its server restarts.
    !matches!(
        error.kind(),
        Kind::PermissionDenied | Kind::InvalidInput | Kind::InvalidData | Kind::Unsupported
    )
}

fn unreached_hint(transient: bool) -> &'static str {
    if transient {
        "check that the server runs and that host and port are right; Muster tries again"
    } else {
        "check host, port, TLS settings and password"
    }
}

impl From<ConnectError> for CaptureError {
    fn from(error: ConnectError) -> Self {
        Self { message: error.message(), hint: error.hint.clone(), transient: error.transient, gone: false }
    }
}

impl From<ConnectError> for DriverError {
    fn from(error: ConnectError) -> Self {
        let class = if error.transient { ErrorClass::Unavailable } else { ErrorClass::Permanent };
        Self::new(class, error.message(), error.hint)
    }
}
