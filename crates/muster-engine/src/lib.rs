//! Scheduler, executor, journal and the store driver trait.

pub mod driver;
