//! Journal records: what a run did, in the order it became durable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{Epoch, PlanId, RunId, ShardName};
use crate::plan::StepKey;
use crate::position::Position;
use crate::table::TableDef;
use crate::time::Timestamp;

/// One object of the journal: a group of records, created if absent under the next sequence number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Format version.
    pub format: u32,
    /// The run.
    pub run: RunId,
    /// Number in the journal, from 1.
    pub sequence: u64,
    /// The epoch of the writer.
    pub epoch: Epoch,
    /// The writing engine: process-unique.
    pub writer: String,
    /// Unique among the writer's entries; tells one's own success from another's.
    pub attempt: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The records.
    pub records: Vec<Record>,
    /// What held steps back when it was written, where that has changed since the writer's last entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restraint: Option<Restraint>,
}

/// What holds the steps of an engine back, beside its pools' capacities. For people: nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restraint {
    /// Units that may be held of pools that throttling has lowered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u64>,
    /// Sides that failed several steps in a row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<Pause>,
}

/// A side that nothing is started on, but a step at a time to see whether it is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The shard; none: the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardName>,
    /// When a step may try it next; none: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_at: Option<Timestamp>,
    /// Steps that tried it in vain.
    pub failed_probes: u32,
    /// It was away for so long that each step has but one attempt left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// The run exists.
    Opened {
        /// The plan.
        plan: PlanId,
        /// When.
        at: Timestamp,
        /// Who started it, host and process.
        operator: String,
    },
    /// An engine took the run.
    Taken {
        /// Its epoch.
        epoch: Epoch,
        /// Host and process.
        by: String,
        /// When.
        at: Timestamp,
    },
    /// A step is about to have effects.
    Started {
        /// The step.
        step: StepKey,
        /// Attempt, from 1.
        attempt: u32,
        /// When it became ready.
        ready_at: Timestamp,
        /// When it started.
        at: Timestamp,
    },
    /// A step is done.
    Succeeded {
        /// The step.
        step: StepKey,
        /// Attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
        /// What it did.
        outcome: Outcome,
    },
    /// An attempt failed.
    Failed {
        /// The step.
        step: StepKey,
        /// Attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
        /// The error, with its cause and the way out.
        error: String,
        /// Another attempt follows.
        will_retry: bool,
    },
    /// A step will not run, because one before it failed.
    Blocked {
        /// The step.
        step: StepKey,
        /// The step that failed.
        by: StepKey,
        /// When.
        at: Timestamp,
    },
    /// Nothing is left to do.
    Finished {
        /// When.
        at: Timestamp,
        /// Sites handed back.
        sites_restored: u64,
        /// Sites that were not.
        sites_failed: u64,
    },
    /// The operator gave the run up.
    Abandoned {
        /// When.
        at: Timestamp,
        /// Why.
        reason: String,
    },
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Outcome {
    /// Of `provision`.
    Provisioned {
        /// Tables made.
        tables: u64,
        /// Reference rows loaded, and read back.
        rows: u64,
    },
    /// Of `stage`.
    Staged {
        /// Rows loaded.
        rows: u64,
        /// Compressed bytes read.
        bytes: u64,
        /// By table: rows and order-free digest, computed from the repository.
        tables: BTreeMap<String, TableDigest>,
    },
    /// Of `verify`.
    Verified {
        /// Rows read back.
        rows: u64,
        /// Digest over all tables.
        digest: Digest,
        /// What declared migrations made of them afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        migrated: Option<Box<Migrated>>,
    },
    /// Of `publish`.
    Published(Published),
    /// Of `check`.
    Checked {
        /// Marked row changes read back.
        changes: u64,
        /// Tables that capture read again whole meanwhile, so that the log does not hold all marked changes: their live
        /// rows were compared with the staged ones instead.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        compared_live: Vec<String>,
        /// The shard was provisioned by the run, and may not be captured yet: all live rows were read and compared, and
        /// the log was not asked.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        read_whole: bool,
    },
    /// Of `references`: none that was not there before leads nowhere.
    ReferencesCounted {
        /// By reference, in the order of the plan.
        counts: Vec<ReferenceCount>,
    },
    /// Of `kind-check`: it passed.
    KindChecked {
        /// Tail of what it said.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        output: String,
    },
    /// Of `handback`.
    HandedBack,
    /// Of `digest-before`.
    DigestedBefore(NeighbourDigest),
    /// Of `digest-after`.
    DigestedAfter {
        /// What was read.
        digest: NeighbourDigest,
        /// Logged changes of neighbours between the two.
        changes: u64,
    },
    /// Of a `rebuilt` or `external` kind: the command's last output lines.
    CommandRan {
        /// Tail of its output.
        output: String,
    },
}

/// What one reference of one site leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceCount {
    /// The reference, as reports write it.
    pub reference: String,
    /// Live rows of the site that refer.
    pub rows: u64,
    /// Of these, rows that lead nowhere, as rows at the recovery points did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub orphans_before: u64,
    /// Why the rows are not counted, where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference to the field")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Staged rows that declared migrations brought into the shape of the live tables. They are published in place of what was
/// staged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrated {
    /// What was applied, in order.
    pub applied: Vec<AppliedMigration>,
    /// By table that was migrated: its shape since, and its rows.
    pub tables: BTreeMap<String, MigratedTable>,
}

/// A migration that was applied to the rows of one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedMigration {
    /// The table.
    pub table: String,
    /// The migration's name in the topology.
    pub name: String,
    /// Rows before it.
    pub rows_before: u64,
    /// Rows after it.
    pub rows_after: u64,
}

/// A migrated table of one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigratedTable {
    /// Its shape. Its statements name the store, since its rows lie in a staging table of their own.
    pub def: TableDef,
    /// Its rows, in the columns of `def`.
    pub digest: TableDigest,
}

/// Rows of one table and their order-free digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    /// Rows.
    pub rows: u64,
    /// `RowsDigest` of `muster-rows`.
    pub digest: Digest,
}

/// What a publish transaction did; also kept in the shard, written by the same transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Rows inserted.
    pub rows: u64,
    /// Live rows replaced.
    pub replaced: u64,
    /// First and last position of its changes in the shard's history; none if it changed nothing.
    pub positions: Option<(Position, Position)>,
    /// How long it held the shard's write lock, in microseconds; published in a group, how long that did.
    pub blocked_micros: u64,
    /// When it committed.
    pub at: Timestamp,
}

/// The neighbours of a shard at one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourDigest {
    /// The position.
    pub position: Position,
    /// Rows of sites that the run does not restore, and reference rows.
    pub rows: u64,
    /// The state of the order-free hash, so that changes can be added to it.
    pub state: String,
    /// Its digest.
    pub digest: Digest,
}
