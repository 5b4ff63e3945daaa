//! Why a site cannot be looked at.

use muster_plan::inputs::InputError;
use muster_plan::planner::PlanError;
use muster_repo::RepoError;
use muster_types::{SiteId, StoreId, Timestamp};

/// Why a site cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The repository failed or is damaged.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// The rows at that moment cannot be told.
    #[error(transparent)]
    Inputs(#[from] InputError),
    /// The topology cannot be planned with.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nothing of the site at that moment.
    #[error("the repository holds no rows of {site} at {at}; `muster history {site}` shows when it had any")]
    Nothing {
        /// The site.
        site: SiteId,
        /// The moment.
        at: Timestamp,
    },
    /// The store had no such table then.
    #[error("{store} had no table `{table}`")]
    NoTable {
        /// The store.
        store: StoreId,
        /// The table.
        table: String,
    },
    /// A value that the format of an export cannot hold.
    #[error("{0}")]
    Unwritable(String),
}
