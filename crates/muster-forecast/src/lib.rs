//! What a run will be like: the real scheduler under virtual time.
//!
//! | module | what |
//! |---|---|
//! | [`mod@virtual_run`] | the scheduler driven by given durations instead of effects |
//! | [`mod@simulate`] | an incident of a given shape, run through four strategies |
//!
//! # Invariants
//! - Pure: no I/O, no clock, no runtime; time and seeds are arguments, and equal input gives equal output.

pub mod simulate;
pub mod virtual_run;

pub use virtual_run::{Course, Work, virtual_run};
