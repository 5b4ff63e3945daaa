//! Chunks: zstd frames of at most 1 MiB of COPY text, written to spool files and checked when read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use muster_types::Digest;
use muster_types::snapshot::{Chunk, ObjectInfo};

use crate::document::compressor;
use crate::error::RepoError;

/// Text in one zstd frame: large enough to compress well, small enough that a small store's read is small. A line
/// longer than this gets a frame of its own.
pub(crate) const CHUNK_RAW_BYTES: usize = 1024 * 1024;

/// Writes chunks to a spool file and digests the whole of it.
pub(crate) struct ChunkWriter {
    path: PathBuf,
    file: BufWriter<File>,
    compressor: zstd::bulk::Compressor<'static>,
    hasher: blake3::Hasher,
    offset: u64,
    text: Vec<u8>,
    rows: u64,
}

impl ChunkWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self, RepoError> {
        let file = File::create(&path).map_err(|error| RepoError::local(&path, "create", &error))?;
        let compressor =
            compressor().map_err(|error| RepoError::misuse(format!("zstd cannot be set up: {error}")))?;
        Ok(Self {
            path,
            file: BufWriter::new(file),
            compressor,
            hasher: blake3::Hasher::new(),
            offset: 0,
            text: Vec::new(),
            rows: 0,
        })
    }

    /// Compressed bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.offset
    }

    /// Appends a line, whole with its line end; `rows` is 1, or 0 for the first line of a pair. Returns the chunk
    /// that had to end before it.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<Option<Chunk>, RepoError> {
        let full = !self.text.is_empty() && self.text.len() + line.len() > CHUNK_RAW_BYTES;
        let ended = if full { self.end()? } else { None };
        self.text.extend_from_slice(line);
        self.rows += bytecount(line);
        Ok(ended)
    }

    /// Ends the chunk under way, if there is one.
    pub(crate) fn end(&mut self) -> Result<Option<Chunk>, RepoError> {
        if self.text.is_empty() {
            return Ok(None);
        }
        let failed = |error| RepoError::local(&self.path, "write", &error);
        let packed = self.compressor.compress(&self.text).map_err(failed)?;
        self.file.write_all(&packed).map_err(failed)?;
        self.hasher.update(&packed);
        let chunk = Chunk {
            offset: self.offset,
            bytes: packed.len() as u64,
            raw_bytes: self.text.len() as u64,
            rows: self.rows,
            digest: Digest::of(&packed),
        };
        self.offset += chunk.bytes;
        self.text.clear();
        self.rows = 0;
        Ok(Some(chunk))
    }

    /// Flushes the file and tells its size and digest. The chunk under way must have ended.
    pub(crate) fn finish(mut self) -> Result<SpoolFile, RepoError> {
        self.file.flush().map_err(|error| RepoError::local(&self.path, "write", &error))?;
        Ok(SpoolFile {
            path: self.path,
            bytes: self.offset,
            digest: Digest(*self.hasher.finalize().as_bytes()),
        })
    }
}

fn bytecount(line: &[u8]) -> u64 {
    // Line ends inside fields are escaped, so that each one ends a line.
    line.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// A finished spool file.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
}

impl SpoolFile {
    pub(crate) fn object(&self, key: String) -> ObjectInfo {
        ObjectInfo { key, bytes: self.bytes, digest: self.digest }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks and decompresses a chunk.
///
/// # Errors
/// [`RepoErrorKind::Damaged`](crate::RepoErrorKind::Damaged) naming the object, the byte range and what differs.
pub(crate) fn decode(key: &str, chunk: &Chunk, bytes: &Bytes) -> Result<Vec<u8>, RepoError> {
    let damaged = |what: &str| RepoError::damaged_range(key, chunk.offset, chunk.bytes, what);
    if bytes.len() as u64 != chunk.bytes {
        return Err(damaged(&format!("{} bytes came", bytes.len())));
    }
    let found = Digest::of(bytes);
    if found != chunk.digest {
        return Err(damaged(&format!(
            "their digest is {} and not {} as the manifest says",
            found.short(),
            chunk.digest.short()
        )));
    }
    let capacity = usize::try_from(chunk.raw_bytes).unwrap_or(usize::MAX);
    let text = zstd::bulk::decompress(bytes, capacity).map_err(|error| damaged(&format!("zstd: {error}")))?;
    if text.len() as u64 != chunk.raw_bytes || bytecount(&text) != chunk.rows {
        return Err(damaged("their text is not as long as the manifest says"));
    }
    Ok(text)
}
