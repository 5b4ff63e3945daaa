//! The simulator: the real engine against model stores and a faulty object store, under virtual time.
//!
//! Scheduler, executor, journal, run state and resume logic are the real ones, as are pruning and the service's job runner;
//! shards and object store are models. Everything that is left to chance is drawn from a seed, so that a seed is a run.
//!
//! | module | what |
//! |---|---|
//! | [`scenario`] | what is drawn, played and judged |
//! | [`faults`] | what goes wrong |
//! | [`operator`] | who starts engines, and what happens to them |
//! | [`life`] | a process, and where it can die |
//! | [`actor`] | the seam for others who live beside runs |
//! | [`mutation`] | promises broken on purpose |
//! | [`every`] | crash points, ambiguous answers and takeovers, enumerated |
//! | `audit` | the rules, and the truth |
//! | `s3`, `shard` | the models |
//!
//! # Invariants
//! - Same seed, same event log: one thread, a paused clock, no real I/O while a run is played but files of its own that
//!   are read at once, no order that is the machine's choice.
//! - A model never waits for the engine, and an effect under way goes on when the process that asked for it dies.

pub mod actor;
mod actors;
mod audit;
pub mod dice;
pub mod every;
pub mod faults;
mod fleet;
pub mod life;
pub mod mutation;
pub mod operator;
mod s3;
pub mod scenario;
mod shard;
pub mod stage;
mod tamper;
pub mod trace;
pub mod world;

pub use mutation::Mutation;
pub use scenario::{Verdict, run, run_mutated, run_whole};
