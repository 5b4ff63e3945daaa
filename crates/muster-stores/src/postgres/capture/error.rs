//! What the server answers, as errors of capture.

use pgwire_replication::PgWireError;

use crate::capture::CaptureError;
use crate::postgres::connect::{PostgresConfig, error_text, is_transient_state, split_sqlstate};

/// An error of a statement; `doing` continues "cannot".
pub(super) fn explain(config: &PostgresConfig, doing: &str, error: &tokio_postgres::Error) -> CaptureError {
    let code = error.code().map_or("", |state| state.code());
    answered(config, doing, &error_text(error), code, error.is_closed())
}

/// An error of the replication session.
pub(super) fn explain_replication(config: &PostgresConfig, doing: &str, error: &PgWireError) -> CaptureError {
    let text = error.to_string();
    match error {
        PgWireError::Server(answer) => {
            let (message, code) = split_sqlstate(answer);
            answered(config, doing, message, code, false)
        }
        PgWireError::Io(_) | PgWireError::Task(_) | PgWireError::Internal(_) => {
            answered(config, doing, &text, "", true)
        }
        _ => answered(config, doing, &text, "", false),
    }
}

fn answered(config: &PostgresConfig, doing: &str, text: &str, code: &str, closed: bool) -> CaptureError {
    let message = format!("{config}: cannot {doing}: {text}");
    match code {
        "42501" => CaptureError::new(
            message,
            "grant the capturing role what it lacks, then run `muster capture init`",
        ),
        "53400" => CaptureError::new(
            message,
            "raise max_replication_slots and max_wal_senders, and restart the server",
        ),
        // The state of slot and tables is looked at again before the next try. XX000 is what the server says of a table that
        // is dropped while its definition is read.
        "3F000" | "42704" | "42P01" | "55000" | "58P01" | "XX000" => {
            CaptureError::transient(message, "capture looks again")
        }
        _ if closed || is_transient_state(code) => CaptureError::transient(message, "capture tries again"),
        _ => CaptureError::new(message, "see the server's log"),
    }
}
