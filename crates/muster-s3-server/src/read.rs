//! Bodies on their way out.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use bytes::Bytes;
use futures::stream::{self, Stream};
use s3s::dto::StreamingBlob;

/// Read at once: large enough that the hop to a blocking thread is small beside it, small enough for many readers.
const CHUNK_BYTES: u64 = 512 * 1024;

/// The bytes `range` of an open file.
pub(crate) fn body(file: File, range: std::ops::Range<u64>) -> StreamingBlob {
    StreamingBlob::wrap(chunks(file, range))
}

fn chunks(file: File, range: std::ops::Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    stream::try_unfold((file, range), |(file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || read_chunk(file, range));
        read.await.map_err(io::Error::other)?.map(Some)
    })
}

type Rest = (File, std::ops::Range<u64>);

fn read_chunk(mut file: File, range: std::ops::Range<u64>) -> io::Result<(Bytes, Rest)> {
    let bytes = CHUNK_BYTES.min(range.end - range.start);
    file.seek(SeekFrom::Start(range.start))?;
    let mut chunk = Vec::new();
    (&file).take(bytes).read_to_end(&mut chunk)?;
    if chunk.len() as u64 != bytes {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the object's file became shorter"));
    }
    Ok((chunk.into(), (file, range.start + bytes..range.end)))
}
