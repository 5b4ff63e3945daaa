//! Random fleets, what they can take at least, and other ways to order their steps.

pub(crate) mod bound;
pub(crate) mod exact;
pub(crate) mod fleet;
pub(crate) mod list;
pub(crate) mod worse;
