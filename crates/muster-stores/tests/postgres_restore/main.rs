//! The restore side of PostgreSQL shards, on a real server.

#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

mod crashes;
mod fitness;
mod groups;
mod migrations;
mod neighbours;
mod publishing;
mod races;
mod refusals;
mod schema;
mod states;
#[path = "../type_table/mod.rs"]
mod type_table;
mod types;
mod world;
