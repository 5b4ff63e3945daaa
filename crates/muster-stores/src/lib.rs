//! Store drivers: each has a capture and a restore side.

pub mod capture;
pub mod sqlite;
