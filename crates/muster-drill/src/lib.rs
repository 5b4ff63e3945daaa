//! Drills: restores that are rehearsed in sandboxes and judged.
//!
//! - [`spec`]: the drill file. [`mod@choice`]: which sites, which moment.
//! - [`DrillPlan`]: a plan whose shards are all a drill's own. [`rehearse`]: takes it through, by the engine that restores.
//! - [`compare`](mod@compare): what came back, beside what the repository holds. [`clean`](mod@clean): what was left behind.
//! - [`Drill`]: all of it. [`history`]: what was proven, what never was, and whether it takes longer.
//! - [`past_runs`]: how fast runs and drills went, for forecasts.
//!
//! # Invariants
//! - A drill cannot publish to a live shard. [`rehearse`] takes a [`DrillPlan`] and [`SandboxDrivers`]; the former is made by
//!   [`DrillPlan::make`] alone, which refuses a plan with any other shard, the latter from `[sandbox.NAME]` sections alone.
//! - What a drill makes is noted in the repository before, and removed after, whatever came of it. What a crash leaves is
//!   removed by the next drill.
//! - Every drill that began leaves a record.
//!
//! The drivers of live shards are no drivers for a drill:
//!
//! ```compile_fail,E0308
//! # async fn drill(repository: &muster_repo::Repository, topology: &muster_types::topology::Topology,
//! #     plan: &muster_drill::DrillPlan, made: &[muster_types::topology::SandboxShard], run: &muster_types::RunId,
//! #     options: muster_engine::Options) {
//! let drivers = muster_stores::drivers(topology);
//! let _ = muster_drill::rehearse(repository, plan, &drivers, run, options, &Default::default()).await;
//! # }
//! ```
//!
//! those of made shards are:
//!
//! ```
//! # async fn drill(repository: &muster_repo::Repository, topology: &muster_types::topology::Topology,
//! #     plan: &muster_drill::DrillPlan, made: &[muster_types::topology::SandboxShard], run: &muster_types::RunId,
//! #     options: muster_engine::Options) {
//! let drivers = muster_stores::sandbox::SandboxDrivers::open(topology, made).unwrap();
//! let _ = muster_drill::rehearse(repository, plan, &drivers, run, options, &Default::default()).await;
//! # }
//! ```
//!
//! A plan is no drill's plan:
//!
//! ```compile_fail,E0423
//! # fn drill(plan: muster_types::plan::Plan) -> muster_drill::DrillPlan {
//! muster_drill::DrillPlan(plan)
//! # }
//! ```
//!
//! nor is a place that someone names a shard of a sandbox:
//!
//! ```compile_fail,E0451
//! # fn drill(of: muster_types::ShardName, place: muster_types::topology::SandboxPlace)
//! #     -> muster_types::topology::SandboxShard {
//! muster_types::topology::SandboxShard { name: of.clone(), of, sandbox: String::new(), place }
//! # }
//! ```
//!
//! # Errors
//! [`DrillError`] where nothing could be rehearsed: wrong input, a refusal, what cannot be reached. What a rehearsal found is
//! in its record instead.

pub mod choice;
pub mod clean;
pub mod compare;
mod drill;
mod error;
mod forecasts;
pub mod history;
pub mod look;
mod open_runs;
pub mod past_runs;
mod plan;
pub mod spec;

pub use drill::{Drill, RUN_PREFIX};
pub use error::DrillError;
pub use plan::{DrillPlan, rehearse};

/// See [`muster_stores::sandbox`].
pub use muster_stores::sandbox::SandboxDrivers;
