//! The capture side: snapshots through exported states, changes through logical decoding.
//!
//! - `source`: [`PostgresSource`]. `install`, `triggers`: what has to be in the shard. `state`: what capture remembers there.
//! - `slot`: slot, cluster and timeline. `layout`: the captured tables as they are.
//! - `stream`, `pgoutput`: the log, item by item. `ddl`: changes of tables in it. `poll`, `buffer`: changes by site.
//! - `owner`, `lookup`: whose a row is. `snapshot`, `copy`: tables read whole.
//!
//! # Invariants
//! - The slot moves on only past what was acknowledged, and the shard remembers that before the slot does.
//! - Every commit is a recovery point; a table that is read again whole leaves only the end of its poll.

mod beside;
mod buffer;
mod copy;
mod ddl;
mod error;
mod install;
mod layout;
mod lookup;
mod owner;
mod pgoutput;
mod poll;
mod slot;
mod snapshot;
mod source;
mod state;
mod stream;
mod triggers;

pub use source::PostgresSource;
pub use triggers::capture_notes;

use super::random_number;
