//! Charts as inline SVG.

mod axis;
mod curve;
mod recovery;
mod timeline;

pub(crate) use curve::curve;
pub use recovery::{KnownPoint, RecoveryCurve, RecoveryPanel, recovery_svg};
pub(crate) use timeline::timeline;
