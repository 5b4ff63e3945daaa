//! The rows of one table at a recovery point.
pub struct TableRows;
