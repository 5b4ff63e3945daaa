//! Work that would hold up the runtime, such as decompression: it goes to threads that may block.
//!
//! A model under virtual time cannot have that: its clock stands still while such a thread works, and who is first is
//! the machine's choice. There (`inline`, with feature `virtual-time`) the work is done where it was asked for.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::RepoError;

#[cfg(feature = "virtual-time")]
mod here {
    use std::cell::Cell;

    thread_local! {
        static INLINE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn is_inline() -> bool {
        INLINE.get()
    }

    /// From now on, this thread does such work itself. For runtimes of one thread.
    pub fn inline() {
        INLINE.set(true);
    }
}

#[cfg(feature = "virtual-time")]
pub use here::inline;
#[cfg(feature = "virtual-time")]
use here::is_inline;

#[cfg(not(feature = "virtual-time"))]
fn is_inline() -> bool {
    false
}

/// Does work that takes a while.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepoError> + Send + 'static,
) -> Result<T, RepoError> {
    if is_inline() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RepoError::misuse(format!("a decoding task ended early: {error}"))),
    }
}

/// Starts work that takes a while between the moments at which it waits.
pub(crate) fn start<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    if is_inline() {
        return tokio::spawn(work);
    }
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work))
}
