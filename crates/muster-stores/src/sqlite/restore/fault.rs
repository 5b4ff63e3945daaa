//! Faults that tests plant into a publish, to see that they are caught.

use rusqlite::Connection;

/// A fault of a publish transaction.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(any(test, feature = "fault-injection")),
    expect(dead_code, unreachable_pub, reason = "faults exist only where tests plant them")
)]
pub enum Fault {
    /// Runs more SQL in the transaction; `{mark}` in it stands for the id of the transaction's mark.
    StrayWrite {
        /// What is run.
        sql: String,
    },
    /// As [`Fault::StrayWrite`], with the check of real effects switched off, so that the outer proofs must see it.
    HiddenStrayWrite {
        /// What is run.
        sql: String,
    },
    /// Gives up just before the commit, as a crash would.
    Abandon,
}

impl Fault {
    pub(super) fn strike(&self, conn: &Connection, mark: i64) -> rusqlite::Result<()> {
        match self {
            Self::StrayWrite { sql } | Self::HiddenStrayWrite { sql } => {
                conn.execute_batch(&sql.replace("{mark}", &mark.to_string()))
            }
            Self::Abandon => Ok(()),
        }
    }

    pub(super) fn blinds(&self) -> bool {
        matches!(self, Self::HiddenStrayWrite { .. })
    }

    pub(super) fn abandons(&self) -> bool {
        matches!(self, Self::Abandon)
    }
}
