//! A world at one moment, to return to.

use std::path::{Path, PathBuf};

use crate::shard::copy_shard;
use crate::world::{World, files};

/// Shards and repository as they were.
#[derive(Debug)]
pub struct Saved {
    shards: PathBuf,
    objects: Vec<PathBuf>,
}

impl Saved {
    /// Remembers a world that nobody writes to.
    pub fn of(world: &World) -> Self {
        let shards = world.path("saved");
        std::fs::create_dir_all(&shards).expect("a folder");
        for shard in &world.fleet.shards {
            copy_shard(&shard.path, &shards.join(&shard.name));
        }
        Self { shards, objects: files(&world.repository()) }
    }

    /// Makes the world what it was: runs since then never happened.
    pub fn restore(&self, world: &World) {
        for shard in &world.fleet.shards {
            for suffix in ["-wal", "-shm"] {
                // Absent after a clean close.
                let _ = std::fs::remove_file(with_suffix(&shard.path, suffix));
            }
            let _ = std::fs::remove_dir_all(with_suffix(&shard.path, ".muster"));
            std::fs::copy(self.shards.join(&shard.name), &shard.path).expect("the copy is there");
            let wal = rusqlite::Connection::open(&shard.path).expect("a shard");
            wal.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
        }
        for file in files(&world.repository()) {
            if self.objects.binary_search(&file).is_err() {
                std::fs::remove_file(&file).expect("an object goes");
            }
        }
    }
}

/// A path with something behind its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}
