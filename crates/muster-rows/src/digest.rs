//! Order-free digests of sets of rows.
//!
//! LtHash16-1024: each row is hashed to 1,024 lanes of 16 bits, and the digest of a set is the lane-wise sum modulo
//! 2^16. Sums can be taken in any order, merged, and undone, so that "rows before + changes = rows after" can be
//! checked without holding the rows. The construction is Bellare and Micciancio's AdHash/LtHash ("A New Paradigm for
//! Collision-Free Hashing: Incrementality at Reduced Cost", EUROCRYPT 1997); the parameters and their analysis (above
//! 200 bits against collisions of sums, taking rows' lanes as random) are those of Lewi, Kim, Maykov and Weis,
//! "Securing Update Propagation with Homomorphic Hashing", IACR ePrint 2019/227.
//!
//! The lanes of a row, read as little-endian, are the ChaCha12 key stream (nonce 0, counter from 0) under the row's
//! BLAKE3 hash: 128 bits against collisions, as BLAKE3 itself. BLAKE3's own extended output would be as good, but
//! most processors compute it one block at a time, three times slower, and a restore digests every row several times.
//!
//! # Invariants
//! - It depends on the rows and their table's name only; not on order, chunks or the time of reading.
//! - It counts: a row added twice is not a row added once. (Only 2^16 times the same row would vanish; rows with a
//!   primary key are there once.)

use std::fmt;

use muster_types::Digest;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::line::encode_fields;
use crate::row::Row;

const DOMAIN: &[u8] = b"muster rows LtHash16-1024 v1\n";
const LANES: usize = 1024;
const STATE_BYTES: usize = 2 * LANES;

/// The running digest of a set of rows.
#[derive(Clone)]
pub struct RowsDigest {
    lanes: Box<[u16; LANES]>,
    /// What is hashed; kept for its capacity.
    text: Vec<u8>,
}

/// A text that is not the state of a [`RowsDigest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of a rows digest has {} hexadecimal digits; this has {bytes} bytes or other characters", 2 * STATE_BYTES)]
pub struct RowsDigestError {
    bytes: usize,
}

impl RowsDigest {
    /// The digest of no rows.
    pub fn new() -> Self {
        Self { lanes: Box::new([0; LANES]), text: Vec::new() }
    }

    /// Adds a row of `table`.
    pub fn add(&mut self, table: &str, row: &Row) {
        self.with_row(table, row, u16::wrapping_add);
    }

    /// Takes away a row of `table`; undoes [`Self::add`], also before it.
    pub fn remove(&mut self, table: &str, row: &Row) {
        self.with_row(table, row, u16::wrapping_sub);
    }

    /// Adds all that `other` holds.
    pub fn merge(&mut self, other: &Self) {
        for (lane, other) in self.lanes.iter_mut().zip(other.lanes.iter()) {
            *lane = lane.wrapping_add(*other);
        }
    }

    /// Takes away all that `other` holds; undoes [`Self::merge`].
    pub fn unmerge(&mut self, other: &Self) {
        for (lane, other) in self.lanes.iter_mut().zip(other.lanes.iter()) {
            *lane = lane.wrapping_sub(*other);
        }
    }

    /// The digest of what was added and not taken away.
    pub fn finish(&self) -> Digest {
        Digest::of(&self.state())
    }

    /// The state as 4,096 hexadecimal digits, to go on elsewhere.
    pub fn to_hex(&self) -> String {
        let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
        self.state().iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// From what [`Self::to_hex`] has written.
    ///
    /// # Errors
    /// When `text` is something else.
    pub fn from_hex(text: &str) -> Result<Self, RowsDigestError> {
        let error = RowsDigestError { bytes: text.len() };
        if text.len() != 2 * STATE_BYTES {
            return Err(error);
        }
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u16);
        let mut digest = Self::new();
        for (lane, digits) in digest.lanes.iter_mut().zip(text.as_bytes().chunks_exact(4)) {
            // Little-endian bytes, each with its high digit first.
            for (digit, shift) in digits.iter().zip([4, 0, 12, 8]) {
                *lane |= nibble(*digit).ok_or_else(|| error.clone())? << shift;
            }
        }
        Ok(digest)
    }

    fn state(&self) -> [u8; STATE_BYTES] {
        let mut state = [0; STATE_BYTES];
        for (bytes, lane) in state.chunks_exact_mut(2).zip(self.lanes.iter()) {
            bytes.copy_from_slice(&lane.to_le_bytes());
        }
        state
    }

    fn with_row(&mut self, table: &str, row: &Row, combine: impl Fn(u16, u16) -> u16) {
        self.text.clear();
        self.text.extend_from_slice(DOMAIN);
        self.text.extend_from_slice(&(table.len() as u64).to_le_bytes());
        self.text.extend_from_slice(table.as_bytes());
        encode_fields(row, &mut self.text);
        let mut expanded = [0; STATE_BYTES];
        ChaCha12Rng::from_seed(*blake3::hash(&self.text).as_bytes()).fill_bytes(&mut expanded);
        for (lane, bytes) in self.lanes.iter_mut().zip(expanded.chunks_exact(2)) {
            *lane = combine(*lane, u16::from_le_bytes([bytes[0], bytes[1]]));
        }
    }
}

impl Default for RowsDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for RowsDigest {
    fn eq(&self, other: &Self) -> bool {
        self.lanes == other.lanes
    }
}

impl Eq for RowsDigest {}

impl fmt::Debug for RowsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowsDigest({})", self.finish().short())
    }
}
