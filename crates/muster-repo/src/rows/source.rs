//! Chunks, fetched ahead of their use.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use muster_types::snapshot::{Chunk, ObjectInfo};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::chunk;
use crate::error::{RepoError, RepoErrorKind};
use crate::range::RangeReader;

/// Chunks fetched ahead: with chunks of 1 MiB of text, enough to keep a core busy at 20 ms a request.
const CHUNKS_AHEAD: usize = 4;

/// Where chunks come from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) reader: RangeReader,
    pub(super) runtime: Handle,
    pub(super) bytes_read: Arc<AtomicU64>,
}

/// The chunks of one frame or slice, in order.
pub(super) struct Chunks {
    source: Source,
    object: ObjectInfo,
    waiting: VecDeque<Chunk>,
    coming: VecDeque<(Chunk, JoinHandle<Result<Bytes, RepoError>>)>,
}

impl Chunks {
    pub(super) fn new(source: &Source, object: &ObjectInfo, chunks: &[Chunk]) -> Self {
        Self {
            source: source.clone(),
            object: object.clone(),
            waiting: chunks.iter().cloned().collect(),
            coming: VecDeque::new(),
        }
    }

    pub(super) fn object(&self) -> &ObjectInfo {
        &self.object
    }

    /// Starts fetching, so that it runs while something else is done.
    pub(super) fn prefetch(&mut self) {
        while self.coming.len() < CHUNKS_AHEAD {
            let Some(chunk) = self.waiting.pop_front() else { return };
            let reader = self.source.reader.clone();
            let (object, wanted) = (self.object.clone(), chunk.clone());
            let fetch = self.source.runtime.spawn(async move { reader.chunk(&object, &wanted).await });
            self.coming.push_back((chunk, fetch));
        }
    }

    /// The next chunk's text, checked.
    pub(super) async fn next_text(&mut self) -> Result<Option<(Chunk, Vec<u8>)>, RepoError> {
        self.prefetch();
        let Some((chunk, fetch)) = self.coming.pop_front() else { return Ok(None) };
        let ended = |error| RepoError::misuse(format!("a fetching task ended early: {error}"));
        let bytes = fetch.await.map_err(ended)??;
        self.source.bytes_read.fetch_add(chunk.bytes, Ordering::Relaxed);
        let text = match chunk::decode(&self.object.key, &chunk, &bytes) {
            Err(error) if matches!(error.kind, RepoErrorKind::Damaged { .. }) => {
                let again = self.source.reader.chunk_again(&self.object, &chunk).await?;
                chunk::decode(&self.object.key, &chunk, &again)?
            }
            decoded => decoded?,
        };
        Ok(Some((chunk, text)))
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // After an error no one waits for these.
        self.coming.iter().for_each(|(_, fetch)| fetch.abort());
    }
}
