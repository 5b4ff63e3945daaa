//! What `repo check` found.

use muster_repo::{RepoError, Repository, check};
use muster_types::alarm::{AlarmName, Condition};

/// Objects that are damaged or missing as far as the last checks saw.
///
/// # Errors
/// What the object store answers; a damaged or newer note.
pub async fn damages(repository: &Repository) -> Result<Vec<Condition>, RepoError> {
    let Some(progress) = check::progress(repository).await? else { return Ok(Vec::new()) };
    let Some(first) = progress.damages.values().next() else { return Ok(Vec::new()) };
    Ok(vec![Condition {
        name: AlarmName::DamageFound,
        subject: "repository".to_owned(),
        since: progress.ended_at,
        text: format!("{} objects are damaged or missing; the first: {first}", progress.damages.len()),
        way_out: "bring them back from another copy, or take a new snapshot; muster repo check looks again"
            .to_owned(),
    }])
}
