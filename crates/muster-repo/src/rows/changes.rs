//! The changes of a table, by ascending key.

use std::collections::VecDeque;

use muster_rows::{Change, ChangeReader};
use muster_types::plan::ChangesInput;
use muster_types::snapshot::ObjectInfo;

use super::source::{Chunks, Source};
use crate::error::RepoError;

/// The changes of one frame that count.
struct Frame<'a> {
    input: &'a ChangesInput,
    chunks: Chunks,
    reader: Option<ChangeReader>,
    ready: VecDeque<Change>,
}

impl<'a> Frame<'a> {
    fn new(source: &Source, object: &ObjectInfo, input: &'a ChangesInput, columns: usize) -> Self {
        let mut chunks = Chunks::new(source, object, &input.chunks);
        chunks.prefetch();
        Self { input, chunks, reader: Some(ChangeReader::new(columns)), ready: VecDeque::new() }
    }

    /// Makes the next change ready; `false` when there is none.
    async fn advance(&mut self) -> Result<bool, RepoError> {
        while self.ready.is_empty() {
            let Some(reader) = &mut self.reader else { return Ok(false) };
            let key = &self.chunks.object().key.clone();
            let Some((chunk, text)) = self.chunks.next_text().await? else {
                let ended = self.reader.take().map_or(Ok(()), ChangeReader::finish);
                ended.map_err(|error| RepoError::damaged(key, format!("the end of a frame: {error}")))?;
                return Ok(false);
            };
            let unreadable =
                |error| RepoError::damaged_range(key, chunk.offset, chunk.bytes, &format!("{error}"));
            for change in reader.changes(&text) {
                let change = change.map_err(unreadable)?;
                if self.input.holds(change.stamp.key.position) {
                    self.ready.push_back(change);
                }
            }
        }
        Ok(true)
    }
}

/// All changes of a table that count. Frames of one object may overlap, since each mark has its own, and are merged by key;
/// objects follow one another.
pub(super) struct Changes<'a> {
    source: &'a Source,
    objects: &'a [ObjectInfo],
    inputs: &'a [ChangesInput],
    columns: usize,
    frames: Vec<Frame<'a>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(
        source: &'a Source,
        objects: &'a [ObjectInfo],
        inputs: &'a [ChangesInput],
        columns: usize,
    ) -> Self {
        Self { source, objects, inputs, columns, frames: Vec::new() }
    }

    /// The next change.
    pub(super) async fn next(&mut self) -> Result<Option<Change>, RepoError> {
        loop {
            if self.frames.is_empty() && !self.open_next()? {
                return Ok(None);
            }
            let mut least: Option<(usize, muster_types::ChangeKey)> = None;
            let mut index = 0;
            while index < self.frames.len() {
                if !self.frames[index].advance().await? {
                    self.frames.swap_remove(index);
                    continue;
                }
                let key = self.frames[index].ready.front().map(|change| change.stamp.key);
                if let Some(key) = key.filter(|&key| least.is_none_or(|(_, least)| key < least)) {
                    least = Some((index, key));
                }
                index += 1;
            }
            let Some((index, _)) = least else { continue };
            return Ok(self.frames[index].ready.pop_front());
        }
    }

    fn open_next(&mut self) -> Result<bool, RepoError> {
        let Some(first) = self.inputs.first() else { return Ok(false) };
        let count = self.inputs.iter().take_while(|input| input.object == first.object).count();
        let (these, rest) = self.inputs.split_at(count);
        let object = object(self.objects, first.object)?;
        self.frames =
            these.iter().map(|input| Frame::new(self.source, object, input, self.columns)).collect();
        self.inputs = rest;
        Ok(true)
    }
}

/// The object that a plan's index means.
pub(super) fn object(objects: &[ObjectInfo], index: u32) -> Result<&ObjectInfo, RepoError> {
    objects.get(index as usize).ok_or_else(|| {
        RepoError::misuse(format!("the plan names object {index} and lists {} of them", objects.len()))
    })
}
