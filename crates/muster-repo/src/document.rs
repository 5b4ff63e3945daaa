//! JSON documents, plain or in zstd, whose format is checked before anything else of them is read.

use std::io::Read;

use bytes::Bytes;
use muster_types::format;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RepoError;

/// zstd's own default: fast, and within a few percent of the ratio of the levels above on COPY text.
pub(crate) const ZSTD_LEVEL: i32 = 3;

/// Largest document after decompression: a damaged header must not make Muster ask for all memory. A segment index
/// of a million frames is about 500 MiB.
const DOCUMENT_BYTES_MAX: u64 = 1 << 30;

/// The one field that documents of every format have.
#[derive(Deserialize)]
struct Probe {
    format: u32,
}

pub(crate) fn to_json<T: Serialize>(document: &T) -> Result<Bytes, RepoError> {
    let json = serde_json::to_vec(document)
        .map_err(|error| RepoError::misuse(format!("a document cannot be written as JSON: {error}")))?;
    Ok(json.into())
}

pub(crate) fn from_json<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, RepoError> {
    let unreadable = |error: serde_json::Error| RepoError::damaged(key, format!("its JSON: {error}"));
    let probe: Probe = serde_json::from_slice(bytes).map_err(unreadable)?;
    format::accept(&format!("`{key}`"), probe.format)?;
    serde_json::from_slice(bytes).map_err(unreadable)
}

pub(crate) fn to_json_zstd<T: Serialize>(document: &T) -> Result<Bytes, RepoError> {
    let json = to_json(document)?;
    let packed = compressor().and_then(|mut compressor| compressor.compress(&json));
    packed
        .map(Bytes::from)
        .map_err(|error| RepoError::misuse(format!("a document cannot be compressed: {error}")))
}

pub(crate) fn from_json_zstd<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, RepoError> {
    let mut json = Vec::new();
    let unreadable = |error: std::io::Error| RepoError::damaged(key, format!("its zstd frame: {error}"));
    let decoder = zstd::stream::read::Decoder::new(bytes).map_err(unreadable)?;
    decoder.take(DOCUMENT_BYTES_MAX).read_to_end(&mut json).map_err(unreadable)?;
    from_json(key, &json)
}

/// A compressor whose frames carry a checksum, so that `zstd -t` tells damage too.
pub(crate) fn compressor() -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
    Ok(compressor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RepoErrorKind;

    #[derive(Debug, Deserialize)]
    struct Known {
        #[expect(dead_code, reason = "only its absence matters")]
        field: String,
    }

    #[test]
    fn a_newer_format_is_refused_before_its_fields_are_read() {
        let newer = serde_json::json!({ "format": format::FORMAT + 1, "field": [1, 2] });
        let refused = from_json_zstd::<Known>("some/key", &to_json_zstd(&newer).unwrap()).unwrap_err();
        assert_eq!(refused.kind, RepoErrorKind::NewerFormat);
        assert!(refused.to_string().contains("some/key"), "{refused}");
    }

    #[test]
    fn every_flipped_bit_of_a_document_is_noticed_or_harmless() {
        let packed = to_json_zstd(&serde_json::json!({ "format": 1, "text": "hello hello hello" })).unwrap();
        let original: serde_json::Value = from_json_zstd("k", &packed).unwrap();
        for bit in 0..packed.len() * 8 {
            let mut damaged = packed.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = from_json_zstd::<serde_json::Value>("k", &damaged) {
                assert_eq!(read, original, "bit {bit}");
            }
        }
    }
}
