//! Overwriting chunks in place.

use std::io::Write;
use std::path::Path;

use muster_types::Digest;
use muster_types::forget::RewrittenObject;
use muster_types::snapshot::{Chunk, ObjectInfo};

use crate::error::RepoError;
use crate::repository::Repository;

/// Bytes of an object in memory at once.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// First bytes of a zstd frame that decoders pass over; its length follows, as four bytes.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();

/// Bytes of its head. No chunk is shorter: a frame with a checksum has 13 at least.
const HEAD_BYTES: u64 = 8;

/// What was overwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erased {
    /// The object as it is now.
    pub object: RewrittenObject,
    /// Older versions of it that were removed.
    pub versions_removed: u64,
    /// Why older versions, if there are any, were not removed.
    pub versions_kept: Option<String>,
}

/// Overwrites `chunks` of an object, spooled into the folder `dir`. `before` is the digest that it had.
///
/// # Errors
/// See [`crate::forget`]. The object is what it was, or as it shall be.
pub async fn erase(
    repository: &Repository,
    (object, chunks): (&ObjectInfo, &[Chunk]),
    before: Digest,
    dir: &Path,
) -> Result<Erased, RepoError> {
    let path = dir.join("object");
    let mut file = std::fs::File::create(&path).map_err(|error| RepoError::local(&path, "create", &error))?;
    let (mut was, mut is, mut offset) = (blake3::Hasher::new(), blake3::Hasher::new(), 0);
    while offset < object.bytes {
        let wanted = WINDOW_BYTES.min(object.bytes - offset);
        let bytes = repository.objects().get_range(&object.key, offset, wanted).await?;
        was.update(&bytes);
        let mut bytes = bytes.to_vec();
        chunks.iter().try_for_each(|chunk| overwrite(&mut bytes, offset, chunk, &object.key))?;
        is.update(&bytes);
        file.write_all(&bytes).map_err(|error| RepoError::local(&path, "write", &error))?;
        offset += bytes.len() as u64;
    }
    file.flush().map_err(|error| RepoError::local(&path, "write", &error))?;
    let (was, after) = (Digest(*was.finalize().as_bytes()), Digest(*is.finalize().as_bytes()));
    if was != after {
        if was != before {
            let what = format!("its digest is {} and not {}", was.short(), before.short());
            return Err(RepoError::damaged(&object.key, what));
        }
        repository.objects().put_file(&object.key, &path).await?;
    }
    std::fs::remove_file(&path).map_err(|error| RepoError::local(&path, "remove", &error))?;
    let (versions_removed, versions_kept) =
        match repository.objects().remove_older_versions(&object.key).await {
            Ok(removed) => (removed, None),
            Err(error) => (0, Some(format!("{}: {error}", object.key))),
        };
    let (key, bytes, chunks) = (object.key.clone(), object.bytes, chunks.len() as u64);
    Ok(Erased {
        object: RewrittenObject { key, bytes, chunks, before, after },
        versions_removed,
        versions_kept,
    })
}

/// Overwrites what of `chunk` lies in `bytes`, which begin at `offset` of the object.
fn overwrite(bytes: &mut [u8], offset: u64, chunk: &Chunk, key: &str) -> Result<(), RepoError> {
    let rest = chunk.bytes.checked_sub(HEAD_BYTES).and_then(|rest| u32::try_from(rest).ok());
    let rest = rest.ok_or_else(|| RepoError::damaged(key, "a chunk of it has no length that a frame has"))?;
    let mut head = [0; HEAD_BYTES as usize];
    head[..4].copy_from_slice(&SKIPPABLE);
    head[4..].copy_from_slice(&rest.to_le_bytes());
    let from = chunk.offset.max(offset);
    let to = (chunk.offset + chunk.bytes).min(offset + bytes.len() as u64);
    for place in from..to {
        // Within a window, which is in memory.
        let within = (place - chunk.offset) as usize;
        bytes[(place - offset) as usize] = head.get(within).copied().unwrap_or(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use super::*;

    #[test]
    fn an_overwritten_frame_is_passed_over_wherever_windows_end() {
        let frame = |text: &str| zstd::bulk::compress(text.as_bytes(), 3).unwrap();
        let parts = [frame("one\n"), frame(&"two\n".repeat(40)), frame("three\n")];
        let whole = parts.concat();
        let (offset, bytes) = (parts[0].len() as u64, parts[1].len() as u64);
        let chunk = Chunk { offset, bytes, raw_bytes: 160, rows: 40, digest: Digest::of(&parts[1]) };
        for cut in 0..whole.len() {
            let mut erased = whole.clone();
            let (first, second) = erased.split_at_mut(cut);
            overwrite(first, 0, &chunk, "k").unwrap();
            overwrite(second, cut as u64, &chunk, "k").unwrap();
            assert_eq!(zstd::stream::decode_all(&erased[..]).unwrap(), b"one\nthree\n", "cut at {cut}");
        }
    }
}
