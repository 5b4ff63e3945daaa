//! What the write-ahead log of a cluster says of its transactions, by `pg_waldump`: PostgreSQL's own word on which
//! commit came after which, and when.

use std::process::Command;

use muster_services::Postgres;
use muster_types::{Position, Timestamp};

/// The end of a transaction, as its record in the write-ahead log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Where the record begins.
    pub position: Position,
    /// Its time.
    pub at: Timestamp,
    /// The transaction.
    pub xid: u32,
    /// Its subtransactions, which rows name as their makers.
    pub subtransactions: Vec<u32>,
    /// It was a commit, not a roll-back.
    pub committed: bool,
}

/// Every end of a transaction at or behind `from`, in the order of the log. The cluster has to keep its log
/// (`wal_keep_size`).
pub fn transaction_ends(cluster: &Postgres, from: Position) -> Vec<TransactionEnd> {
    // Writes everything out. `pg_waldump` would take any file for its first look, also one that is not in use yet.
    let from = lsn(from);
    let sql = format!(
        "CHECKPOINT; SELECT flushed, pg_walfile_name('{from}'::pg_lsn + 1), pg_walfile_name(flushed)
         FROM pg_current_wal_flush_lsn() flushed"
    );
    let answer = cluster.psql("postgres", &sql).expect("a checkpoint");
    let answer: Vec<&str> = answer.trim().split('|').collect();
    let mut dump = Command::new(cluster.bin("pg_waldump"));
    dump.arg("-p").arg(cluster.data_dir().join("pg_wal")).args(["-r", "Transaction"]);
    dump.args(["-s", &from, "-e"]).args(answer).env("TZ", "UTC");
    let said = cluster.run_as_owner(&mut dump).expect("pg_waldump reads the log");
    said.lines().filter_map(end_of_transaction).collect()
}

/// A position as PostgreSQL writes it.
pub fn lsn(position: Position) -> String {
    format!("{:X}/{:X}", position.0 >> 32, position.0 & 0xffff_ffff)
}

/// A position from how PostgreSQL writes it.
pub fn position(lsn: &str) -> Position {
    let (high, low) = lsn.trim().split_once('/').unwrap_or_else(|| panic!("`{lsn}` is no LSN"));
    let part = |text| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("`{lsn}` is no LSN"));
    Position(part(high) << 32 | part(low))
}

/// `rmgr: Transaction … tx: 745, lsn: 0/0199028, prev …, desc: COMMIT 2026-11-23 00:22:37.144512 UTC; …`
fn end_of_transaction(line: &str) -> Option<TransactionEnd> {
    let behind = |label: &str| Some(line.split_once(label)?.1.trim_start());
    let what = behind("desc: ")?;
    let committed = what.starts_with("COMMIT ");
    let time = what.strip_prefix("COMMIT ").or_else(|| what.strip_prefix("ABORT "))?;
    let mut words = time.split([' ', ';']);
    let time = format!("{}T{}Z", words.next()?, words.next()?);
    let number = |text: &str| text.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
    Some(TransactionEnd {
        position: position(behind("lsn: ")?.split(',').next()?),
        at: time.parse().unwrap_or_else(|error| panic!("{error}: {line}")),
        xid: number(behind("tx: ")?.split(',').next()?),
        // `…; subxacts: 746 747; …`
        subtransactions: behind("subxacts: ")
            .and_then(|rest| rest.split(';').next())
            .map(|list| list.split_whitespace().map(number).collect())
            .unwrap_or_default(),
        committed,
    })
}
