//! What can go wrong while capturing a shard.

use muster_repo::{ChainError, RepoError};
use muster_stores::capture::CaptureError;
use muster_types::ShardName;

/// An error of one shard's capture.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaptureFailure {
    /// The shard.
    #[error("shard `{shard}`: {error}")]
    Shard {
        /// Its name.
        shard: ShardName,
        /// What it said.
        error: CaptureError,
    },
    /// The repository.
    #[error("shard `{shard}`: {error}")]
    Repository {
        /// The shard whose capture met it.
        shard: ShardName,
        /// What it said.
        error: RepoError,
    },
    /// Another capture follows the same shard; it is named.
    #[error("{error}")]
    Lost {
        /// The shard.
        shard: ShardName,
        /// Who has the slot.
        error: ChainError,
    },
    /// Another capture wrote while this one looked where to go on.
    #[error(
        "the log of shard `{shard}` grew while this capture began: another `muster capture` follows it: stop one of them"
    )]
    Raced {
        /// The shard.
        shard: ShardName,
    },
}

impl CaptureFailure {
    /// The shard.
    pub fn shard(&self) -> &ShardName {
        match self {
            Self::Shard { shard, .. } | Self::Repository { shard, .. } | Self::Lost { shard, .. } => shard,
            Self::Raced { shard } => shard,
        }
    }

    /// Another capture follows the shard.
    pub fn is_rivalry(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Raced { .. })
    }

    /// Trying again later may help without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Shard { error, .. } => error.transient,
            Self::Repository { error, .. } => error.is_transient(),
            Self::Lost { .. } | Self::Raced { .. } => false,
        }
    }
}

/// An error of the repository as one of the capture side, for sinks that are called from within it.
pub(crate) fn spool_error(error: &RepoError) -> CaptureError {
    CaptureError {
        message: error.message.clone(),
        hint: error.hint.clone(),
        transient: error.is_transient() || error.kind == muster_repo::RepoErrorKind::Full,
        gone: false,
    }
}
