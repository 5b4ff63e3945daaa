//! The capture side: snapshots through exported states, changes through logical decoding.
//!
//! - `source`: [`PostgresSource`]. `install`, `triggers`: what has to be in the shard. `state`: what capture remembers there.
//! - `using`: who uses a database. `slot`: slot, cluster and timeline. `layout`: the captured tables as they are.
//! - `session`: the server's messages. `stream`, `pgoutput`: the log, item by item. `ddl`: changes of tables in it. `poll`, `buffer`: changes by site.
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
mod session;
mod slot;
mod snapshot;
mod source;
mod state;
mod stream;
mod triggers;
mod using;

pub use source::PostgresSource;
pub use triggers::capture_notes;
pub use using::{Using, using};

use super::random_number;
