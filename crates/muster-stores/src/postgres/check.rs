//! Whether a database can be captured and restored into, before either is needed.

use muster_types::ShardName;
use muster_types::topology::Declared;

use super::capture::capture_notes;
use super::connect::block_on;
use super::restore::Fitness;
use super::{PostgresDriver, PostgresSource};
use crate::capture::CaptureError;

/// Settings, slots, rights and triggers of `shard`, for its declared `tables`. Blocks; reads only.
///
/// # Errors
/// The database cannot be reached.
pub fn check(shard: &ShardName, connection: &str, tables: &Declared) -> Result<Fitness, CaptureError> {
    let captured = PostgresSource::new(shard.clone(), connection, tables.clone()).check();
    let driver = PostgresDriver::new(shard.clone(), connection, tables.clone());
    let fitness = block_on(driver.fitness())?;
    let mut found = fitness.map_err(|error| CaptureError::new(error.message, error.hint))?;
    found.notes.extend(capture_notes(connection)?);
    if let Err(error) = captured {
        found.problems.insert(0, error.to_string());
    }
    Ok(found)
}
