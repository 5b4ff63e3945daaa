//! The capture side of a SQLite shard.
