//! Charts as inline SVG.

mod axis;
mod calendar;
mod curve;
mod dates;
mod days;
mod recovery;
mod timeline;
mod trend;

pub(crate) use calendar::calendar;
pub(crate) use curve::curve;
pub(crate) use days::days;
pub use recovery::{KnownPoint, RecoveryCurve, RecoveryPanel, recovery_svg};
pub(crate) use timeline::timeline;
pub(crate) use trend::{Figure, Unit, trend};
