//! Charts as inline SVG.

mod axis;
mod curve;
mod timeline;

pub(crate) use curve::curve;
pub(crate) use timeline::timeline;
