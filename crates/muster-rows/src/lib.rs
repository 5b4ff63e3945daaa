//! Rows as text fields, changes, the fold and order-free digests.
//!
//! - [`Row`]: the stored columns of one row as text, each with its storage [`Class`].
//! - [`Change`]: one row change with its place and time in a shard's history.
//! - [`encode_row`], [`encode_change`], [`RowReader`], [`ChangeReader`]: their lines in packs and segments.
//! - [`RowsDigest`]: order-free digests of sets of rows.
//! - [`Fold`], [`Overlay`]: snapshot rows and the changes behind them give the rows at T, in bounded memory.
//!
//! # Not here
//! I/O. Where lines come from and go to is the repository's and the drivers' business.

mod change;
mod copy;
mod digest;
mod fold;
mod line;
mod row;

pub use change::{Change, Op};
pub use digest::{RowsDigest, RowsDigestError};
pub use fold::{Fold, FoldError, MovedKeys, Overlay, Part, parts_for, parts_for_changes};
pub use line::{ChangeReader, LineError, LineReason, RowReader, decode_row, encode_change, encode_row};
pub use row::{Class, Field, Row, RowBuilder};
