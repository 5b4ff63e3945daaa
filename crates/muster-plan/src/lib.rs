//! Catalog and request to dependency graph, plan, checks, forecast; and what a responder reads from the change log.
//!
//! Table of contents:
//! - [`planner`]: [`select_stores`] and [`fn@plan`], the two phases of planning.
//! - [`mod@check`]: the separate checker; its codes and severities.
//! - [`stores`], [`recovery`], [`inputs`]: which stores a site had at a target, the recovery points, what to read.
//! - [`graph`], [`groups`], [`estimate`], [`mod@forecast`]: steps, which may run together, what they take, how long they
//!   last.
//! - [`provision`]: what an empty shard is given before stores of another one come into it.
//! - [`mod@detect`], [`mod@history`]: what was lost and when; what happened to a site.
//! - [`drill`]: which sites a drill restores, and to which moment.
//! - [`fold`]: what a whole shard at a recovery point is read from.
//! - [`mod@diff`]: what differs between two plans.
//! - [`preflight`]: what a list of ids that is about to be deleted really names.
//! - [`synthetic`]: a made-up fleet for benchmarks and tests.
//! - [`index`], [`schema`], [`order`]: lookups over a catalog, its tables by kind and site; parents before children.
//!
//! # Invariants
//! - Pure: no I/O, no clock, no randomness. Equal input gives equal output.
//! - Planning k sites costs O(k log n); no history is scanned per site.

pub mod check;
pub mod detect;
pub mod diff;
pub mod drill;
pub mod estimate;
pub mod fold;
pub mod forecast;
pub mod graph;
pub mod groups;
pub mod history;
pub mod index;
pub mod inputs;
pub mod order;
pub mod planner;
pub mod points;
pub mod preflight;
pub mod provision;
pub mod recovery;
mod references;
pub mod retention;
pub mod schema;
pub mod stores;
pub mod synthetic;

pub use check::check;
pub use detect::{DetectOptions, DetectedSite, DetectedStore, Detection, detect};
pub use diff::{PlanChange, diff};
pub use forecast::{Forecast, SiteForecast, forecast};
pub use history::{Activity, history};
pub use inputs::{InputError, StoreInputs, store_inputs};
pub use planner::{PlanError, PlanInput, StoreToProbe, plan, plan_placed, select_placed, select_stores};
pub use recovery::{NoRecoveryPoint, RecoveryPoint, Target, recovery_point};
