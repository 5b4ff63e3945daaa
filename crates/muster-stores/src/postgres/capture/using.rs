//! Who uses a database that is about to be released.

use std::collections::BTreeMap;

use muster_types::{ShardName, StoreId};

use super::error::explain;
use super::{slot, state};
use crate::capture::CaptureError;
use crate::postgres::connect::{PostgresConfig, block_on};
use crate::postgres::restore::claims;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Using {
    /// Capture is installed.
    pub installed: bool,
    /// A session streams from its slot.
    pub followed: bool,
    /// Stores that open runs hold, with the runs.
    pub claims: BTreeMap<StoreId, String>,
}

/// Who uses the database of `shard`. Blocks; reads only.
///
/// # Errors
/// [`CaptureError`] when it cannot be reached or read; one that is not there is `gone`.
pub fn using(shard: &ShardName, connection: &str) -> Result<Using, CaptureError> {
    let config = PostgresConfig::parse(connection)?;
    let slot = slot::name_of(shard);
    block_on(async {
        let client = config.connect().await.map_err(|error| {
            let gone = error.is_of_missing_database();
            CaptureError { gone, ..CaptureError::from(error) }
        })?;
        let look = async {
            let installed = state::exists(&client).await?;
            let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)";
            let followed = client.query_one(sql, &[&slot]).await?.get(0);
            Ok(Using { installed, followed, claims: claims(&client).await? })
        };
        look.await.map_err(|error| explain(&config, "look who uses it", &error))
    })?
}
