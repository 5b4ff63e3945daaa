//! A bank with several shards, what is true of it at every commit, and Muster beside it.

pub(crate) mod bank;
pub(crate) mod branch;
pub(crate) mod responder;
pub(crate) mod truth;
