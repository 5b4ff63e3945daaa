//! Create-if-absent that recognises its own write.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{RepoError, RepoErrorKind};
use crate::objects::Creation;

/// How one conditional write ended.
#[derive(Debug)]
pub enum Attempt {
    /// Written.
    Done,
    /// Refused because the object exists, or because another conditional write of it is under way.
    Refused,
    /// No answer: it may have been written, or may still be.
    Unknown(RepoError),
}

/// The two requests that a create is made of.
///
/// # Errors
/// What will not pass by itself; for the look, also what did not pass.
pub trait ConditionalStore {
    /// One conditional write.
    fn try_create(&self, body: Bytes) -> impl Future<Output = Result<Attempt, RepoError>> + Send;
    /// Reads the object.
    fn read_back(&self) -> impl Future<Output = Result<Option<Bytes>, RepoError>> + Send;
}

/// Sends of one body; each also has the client's own retries, so this many failures are an outage, not a hiccup.
const SENDS_MAX: u32 = 8;

/// Sends `body` until it is known whose object is there. The same body is sent every time, so that a try that lands
/// late is recognised.
///
/// # Errors
/// What reading it back answers; the last answer to a send when patience is used up.
pub async fn settle(store: &impl ConditionalStore, key: &str, body: Bytes) -> Result<Creation, RepoError> {
    let mut last = None;
    for send in 0..SENDS_MAX {
        if send > 0 {
            // A 409 means that another write is under way: it needs a moment to become visible.
            tokio::time::sleep(Duration::from_millis(20 << send)).await;
        }
        match store.try_create(body.clone()).await? {
            Attempt::Done => return Ok(Creation::Mine),
            Attempt::Refused => {}
            Attempt::Unknown(error) => last = Some(error),
        }
        match store.read_back().await {
            Ok(Some(found)) if found == body => return Ok(Creation::Mine),
            Ok(Some(found)) => return Ok(Creation::Other(found)),
            Ok(None) => {}
            // Reading has patience of its own: when it gives up, so does this.
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        RepoError::new(
            RepoErrorKind::Unavailable,
            format!("object `{key}` is neither there nor can it be created, {SENDS_MAX} times in a row"),
            "check the object store for a stuck conditional write, then run the command again",
        )
    }))
}
