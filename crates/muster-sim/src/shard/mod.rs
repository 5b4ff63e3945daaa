//! The model of a shard: rows, a change log, epochs, claims, staging, publish records.
//!
//! It keeps to what [`StoreDriver`](muster_engine::driver::StoreDriver) promises, written anew and as plainly as can be,
//! and tells the auditor of everything that others could see.

mod driver;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use muster_engine::driver::StoreDriver;
use muster_rows::{Class, Row, RowBuilder};
use muster_types::table::CapturedTable;
use muster_types::{Kind, RunId, ShardName, SiteId};
use tokio::sync::RwLock;

use crate::faults::ShardFaults;
use crate::life::Life;
use crate::world::{View, World, lock};
pub(crate) use state::State;

/// A row of the model: its id and its site.
pub(crate) fn row(id: &str, site: &str) -> Row {
    RowBuilder::new().push(Class::Text, id.as_bytes()).push(Class::Text, site.as_bytes()).take()
}

/// The first field of a row.
pub(crate) fn id_of(row: &Row) -> String {
    row.get(0).map(|field| String::from_utf8_lossy(field.bytes).into_owned()).unwrap_or_default()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) name: ShardName,
    pub(crate) number: usize,
    pub(crate) tables: Vec<CapturedTable>,
    state: Mutex<State>,
    /// Open publish transactions of a run hold its gate shared; raising the epoch waits for them.
    gates: Mutex<BTreeMap<RunId, Arc<RwLock<()>>>>,
    world: Arc<World>,
}

impl Shard {
    /// A shard that holds these rows: table, site, id.
    pub(crate) fn new(
        world: &Arc<World>,
        name: ShardName,
        number: usize,
        tables: Vec<CapturedTable>,
        rows: impl IntoIterator<Item = (String, SiteId, String)>,
    ) -> Arc<Self> {
        let mut state = State::default();
        for (table, site, id) in rows {
            world.audit().neighbour_wrote(&name, &table, &id, true);
            state.insert(&table, &site, None, row(&id, site.as_str()));
        }
        Arc::new(Self {
            name,
            number,
            tables,
            state: Mutex::new(state),
            gates: Mutex::default(),
            world: Arc::clone(world),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn faults(&self) -> &ShardFaults {
        &self.world.faults.shards[self.number]
    }

    fn gate(&self, run: &RunId) -> Arc<RwLock<()>> {
        Arc::clone(lock(&self.gates).entry(run.clone()).or_default())
    }

    fn kind_of(&self, table: &str) -> Option<&Kind> {
        self.tables.iter().find(|known| known.def.name == table).map(|known| &known.kind)
    }

    /// A neighbour writes: a new row, or its last one is gone.
    pub(crate) fn neighbour_writes(&self, site: &SiteId, removes: bool) {
        let Some(table) = self.tables.first().map(|table| table.def.name.clone()) else { return };
        let mut state = self.state();
        let own = state.rows.iter().rev().find(|((of, _), (owner, _))| *of == table && owner == site);
        let last = own.map(|((_, id), _)| id.clone());
        if let (true, Some(id)) = (removes, last) {
            state.remove(&table, &id, None);
            self.world.audit().neighbour_wrote(&self.name, &table, &id, false);
        } else {
            let id = format!("{site}-new-{:06}", state.position());
            state.insert(&table, site, None, row(&id, site.as_str()));
            self.world.audit().neighbour_wrote(&self.name, &table, &id, true);
        }
    }

    /// The shard as an engine is given it.
    pub(crate) fn driver(self: &Arc<Self>, life: &Arc<Life>) -> Arc<dyn StoreDriver> {
        let view = View { world: Arc::clone(&self.world), life: Arc::clone(life) };
        Arc::new(driver::Handle::new(Arc::clone(self), view))
    }
}
