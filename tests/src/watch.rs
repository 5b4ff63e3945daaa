//! How far a run has come, told by what it has left behind.

use std::path::PathBuf;

use muster_demo::Database;
use rusqlite::{Connection, OpenFlags};

use crate::world::{World, files};

/// A moment in the life of a run, told by what it has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So many objects are in its journal, where the repository is in files.
    Journal(usize),
    /// So many stores are published.
    Published(usize),
    /// So many stores are staged.
    Staged(usize),
}

/// Where a run leaves its traces.
#[derive(Debug)]
pub(crate) struct Watch {
    run: String,
    journal: PathBuf,
    shards: Vec<Place>,
}

enum Place {
    File(PathBuf),
    /// With the session of the last look.
    Database(Box<(Database, Option<postgres::Client>)>),
}

impl Watch {
    pub(crate) fn of(world: &World, run: &str) -> Self {
        let place = |shard: &muster_demo::Shard| match &shard.database {
            Some(database) => Place::Database(Box::new((database.clone(), None))),
            None => Place::File(shard.path.clone()),
        };
        Self {
            run: run.to_owned(),
            journal: world.repository().join(format!("runs/{run}/journal")),
            shards: world.fleet.shards.iter().map(place).collect(),
        }
    }

    /// Whether the moment has come.
    pub(crate) fn reached(&mut self, moment: Moment) -> bool {
        let run = &self.run;
        let mut sum = |of: fn(&mut Place, &str) -> usize| -> usize {
            self.shards.iter_mut().map(|shard| of(shard, run)).sum()
        };
        match moment {
            Moment::Journal(count) => files(&self.journal).len() >= count,
            Moment::Published(count) => sum(Place::published) >= count,
            Moment::Staged(count) => sum(Place::staged) >= count,
        }
    }
}

impl Place {
    fn published(&mut self, run: &str) -> usize {
        match self {
            Self::File(file) => {
                count_in_file(file, "SELECT count(*) FROM _muster_publish WHERE run = ?1", run)
            }
            Self::Database(..) => self.count("published", run),
        }
    }

    fn staged(&mut self, run: &str) -> usize {
        let Self::File(file) = self else { return self.count("staged", run) };
        let mut dir = file.clone().into_os_string();
        dir.push(format!(".muster/{run}"));
        files(&PathBuf::from(dir)).len()
    }

    /// Rows of the run in one of Muster's tables. A server that is down just now, or a table that is not there yet, is
    /// asked again by the next look.
    fn count(&mut self, table: &str, run: &str) -> usize {
        let Self::Database(place) = self else { return 0 };
        let (database, session) = place.as_mut();
        let Some(mut client) = session.take().or_else(|| database.connect().ok()) else { return 0 };
        let row = client.query_one(&format!("SELECT count(*) FROM muster.{table} WHERE run = $1"), &[&run]);
        if !client.is_closed() {
            *session = Some(client);
        }
        row.map_or(0, |row| usize::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }
}

/// A shard that cannot be read this instant is asked again by the next look.
fn count_in_file(file: &PathBuf, sql: &str, run: &str) -> usize {
    let look = || -> rusqlite::Result<i64> {
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.query_row(sql, [run], |row| row.get(0))
    };
    look().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Database(place) => place.0.fmt(f),
        }
    }
}
