//! Promises broken on purpose, one at a time, to show that the auditor sees it.
//!
//! All of them sit in the models: an engine that ignores an edge of its plan is one that was given a plan without that
//! edge, while the auditor holds the true one; an engine that forgets a record is one whose records are left out on
//! their way to the object store.

/// A promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// Publishes of a site do not wait for those they depend on.
    StartBeforeDependency,
    /// Publishes do not wait for their verification.
    PublishUnverified,
    /// More steps hold a pool than it has room for.
    PoolExceeded,
    /// A step that could run never does.
    StepLost,
    /// Records are left out of the journal.
    RecordDropped,
    /// Records are in the journal twice.
    RecordDoubled,
    /// Steps that will not run are not told.
    BlockedUnnamed,
    /// Steps that will not run are said to be blocked by another one.
    BlockedByAnother,
    /// Effects do not wait for their record.
    EffectBeforeRecord,
    /// A journal slot that is taken is written over.
    SlotOverwritten,
    /// A shard takes publishes of an engine that lost its run.
    FenceIgnored,
    /// An engine works in shards without raising its epoch there.
    FenceSkipped,
    /// A store is given to a run though another holds it.
    ClaimIgnored,
    /// A publish is repeated where it happened already.
    PublishedTwice,
    /// What is staged is believed to be right, and published whatever it is.
    VerifyBelieves,
    /// Some rows of a store become live without the others.
    HalfPublished,
    /// A publish changes a neighbour's row.
    NeighbourTouched,
    /// A site is given back before it is whole.
    ReleasedEarly,
    /// A shard takes stores back from an engine that lost its run.
    ReleasedLate,
    /// Pruning does not look at open runs and saved plans.
    PruneForgetsRuns,
    /// Two servers win one slot of a job's chain.
    JobClaimedTwice,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::StartBeforeDependency,
        Self::PublishUnverified,
        Self::PoolExceeded,
        Self::StepLost,
        Self::RecordDropped,
        Self::RecordDoubled,
        Self::BlockedUnnamed,
        Self::BlockedByAnother,
        Self::EffectBeforeRecord,
        Self::SlotOverwritten,
        Self::FenceIgnored,
        Self::FenceSkipped,
        Self::ClaimIgnored,
        Self::PublishedTwice,
        Self::VerifyBelieves,
        Self::HalfPublished,
        Self::NeighbourTouched,
        Self::ReleasedEarly,
        Self::ReleasedLate,
        Self::PruneForgetsRuns,
        Self::JobClaimedTwice,
    ];
}
