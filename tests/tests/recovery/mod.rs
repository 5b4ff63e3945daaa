//! A cluster with an archive of its log and a base backup, what Muster captured of it, and random work in between.

pub(crate) mod archived;
pub(crate) mod captured;
pub(crate) mod schema;
pub(crate) mod statements;
pub(crate) mod work;
