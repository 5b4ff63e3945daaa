//! What a run will be like: the real scheduler under virtual time.
//!
//! | module | what |
//! |---|---|
//! | [`mod@virtual_run`] | the scheduler driven by given durations instead of effects |
//! | [`pace`] | how fast steps go: stated defaults, corrected by what was measured |
//! | [`forecast`] | when a run and its sites will be done, with a range; how wrong that was |
//! | [`mod@simulate`] | an incident of a given shape, run through four strategies |
//!
//! # Invariants
//! - Pure: no I/O, no clock, no runtime; time and seeds are arguments, and equal input gives equal output.

pub mod forecast;
pub mod pace;
pub mod simulate;
pub mod virtual_run;

pub use forecast::{Forecast, Range, SiteForecast, forecast_plan, forecast_report, forecast_run};
pub use pace::Pace;
pub use virtual_run::{Course, Work, virtual_run};
