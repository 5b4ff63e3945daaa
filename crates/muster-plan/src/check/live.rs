//! Findings about a plan's own content, and about the live state of its stores.

use std::collections::BTreeMap;

use muster_types::catalog::Catalog;
use muster_types::plan::{CREATED_AGAIN, LiveStore, Note, Plan, Restoration, Severity, SitePlan, StorePlan};
use muster_types::request::ProofLevel;
use muster_types::topology::Topology;
use muster_types::{StoreId, Timestamp};

use crate::estimate::Demands;
use crate::forecast::forecast;
use crate::stores::note;

/// How an entry of [`LiveStore::differences`] starts that names a key, name or address of the site which a living
/// site holds now.
pub const KEY_HELD: &str = "key-held: ";

/// Findings about content, capacity and live state.
pub(crate) fn plan_notes(
    plan: &Plan,
    topology: &Topology,
    catalog: &Catalog,
    live: &BTreeMap<StoreId, LiveStore>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    if plan.topology != topology.digest {
        let hint = "plan again with the topology as it is now";
        notes.push(note(
            Severity::Fatal,
            "topology-changed",
            "plan",
            "the topology changed since the plan was made",
            hint,
        ));
    }
    notes.extend(proof_notes(plan, live));
    let mut checks = Checks { plan, demands: Demands::new(catalog), notes, unprobed: 0 };
    for site in &plan.sites {
        for store in &site.stores {
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            checks.target(site, store, &id);
            checks.capacity(store, &id);
            if store.restoration == Restoration::Restored {
                let unasked = !live.contains_key(&id) && store.live.definitions.is_none();
                let empty = plan.provisions.contains_key(&store.shard);
                checks.unprobed += u64::from(unasked && !empty);
                checks.live(store, &id, live.get(&id).unwrap_or(&store.live));
            }
        }
    }
    if checks.unprobed > 0 {
        let text =
            format!("{} stores were planned without asking their shards for the live state", checks.unprobed);
        let hint = "nothing: each publish asks again, under its claim";
        checks.notes.push(note(Severity::Warning, "not-probed", "plan", text, hint));
    }
    checks.notes
}

/// Shards in which the full form of the proof, which was asked for, is not to be had.
fn proof_notes(plan: &Plan, live: &BTreeMap<StoreId, LiveStore>) -> Vec<Note> {
    if plan.request.proof != ProofLevel::Full {
        return Vec::new();
    }
    let mut lacking = BTreeMap::new();
    for site in &plan.sites {
        for store in site.stores.iter().filter(|store| store.restoration == Restoration::Restored) {
            let id = StoreId { site: site.site.clone(), kind: store.kind.clone() };
            if let Some(lacks) = &live.get(&id).unwrap_or(&store.live).full_proof_lacks {
                lacking.entry(&store.shard).or_insert(lacks);
            }
        }
    }
    let text =
        "the full proof of neighbours needs whole old rows in the log, and some tables log only their keys";
    let found = lacking.into_iter().map(|(shard, lacks)| {
        let hint = format!("plan without --proof full, or run there, then plan again: {lacks}");
        note(Severity::Fatal, "full-proof-impossible", shard.to_string(), text, &hint)
    });
    found.collect()
}

struct Checks<'a> {
    plan: &'a Plan,
    demands: Demands<'a>,
    notes: Vec<Note>,
    unprobed: u64,
}

impl Checks<'_> {
    fn push(&mut self, severity: Severity, code: &str, id: &StoreId, text: String, hint: &str) {
        self.notes.push(note(severity, code, id.to_string(), text, hint));
    }

    /// Never after the target, whatever the planner thought.
    fn target(&mut self, site: &SitePlan, store: &StorePlan, id: &StoreId) {
        let late = match &store.before {
            Some(before) => {
                store.reached.position >= before.position && store.incarnation == before.incarnation
            }
            None => store.reached.at > site.target && store.restoration == Restoration::Restored,
        };
        if late {
            let text = format!(
                "the plan reaches {} (position {}), behind its target",
                store.reached.at, store.reached.position
            );
            self.push(Severity::Fatal, "after-target", id, text, "plan again; this plan is wrong");
        }
    }

    fn capacity(&mut self, store: &StorePlan, id: &StoreId) {
        let costs = match store.restoration {
            Restoration::Restored => {
                vec![self.demands.stage(store), self.demands.verify(store), self.demands.publish(store)]
            }
            Restoration::Rebuilt { .. } => vec![self.demands.publish(store)],
            Restoration::External { .. } => vec![],
        };
        let mut above: BTreeMap<String, u64> = BTreeMap::new();
        for (pool, units) in costs.iter().flat_map(|(demand, _)| demand.iter()) {
            if units > self.plan.pools.get(pool).copied().unwrap_or(0) {
                let most = above.entry(pool.to_owned()).or_default();
                *most = units.max(*most);
            }
        }
        for (pool, units) in above {
            let capacity = self.plan.pools.get(&pool).copied().unwrap_or(0);
            let text = format!("a step needs {units} of pool {pool}, which holds {capacity}");
            self.push(Severity::Error, "demand-above-capacity", id, text, "raise the limit in the topology");
        }
    }

    fn live(&mut self, store: &StorePlan, id: &StoreId, live: &LiveStore) {
        if live.rows > 0 {
            let severity = if store.overwrite { Severity::Warning } else { Severity::Error };
            let text = format!("{} live rows of the site are in shard {}", live.rows, store.shard);
            let hint =
                "leave the site out, or replace its rows with --overwrite (they are kept until sign-off)";
            self.push(severity, "site-alive", id, text, hint);
        }
        for difference in &live.differences {
            match difference.strip_prefix(KEY_HELD) {
                Some(held) => {
                    let hint = "free the key on the side that holds it, or leave this site out";
                    self.push(Severity::Error, "key-held", id, held.to_owned(), hint);
                }
                None if difference.starts_with(CREATED_AGAIN) => {
                    let text = difference[CREATED_AGAIN.len()..].to_owned();
                    let hint = "nothing, if that is all that was in the schema: views and what else Muster does not hold \
                                is named in docs/postgresql.md";
                    self.push(Severity::Info, "table-created-again", id, text, hint);
                }
                None => {
                    let hint =
                        "look at the restored rows of that table; its definition is not the one they had";
                    self.push(Severity::Warning, "definition-changed", id, difference.clone(), hint);
                }
            }
        }
        if let Some(run) = &live.claimed_by {
            let text = format!("run {run} holds it");
            let hint =
                format!("wait for that run (`muster status {run}`), or give it up: `muster abandon {run}`");
            self.push(Severity::Error, "claimed-by-run", id, text, &hint);
        }
        if let Some(reason) = &live.unwritable {
            let text = format!("shard {} takes no writes: {reason}", store.shard);
            self.push(
                Severity::Error,
                "shard-unwritable",
                id,
                text,
                "make the shard writable and plan again",
            );
        }
        self.block(store, id);
    }

    fn block(&mut self, store: &StorePlan, id: &StoreId) {
        let Some(shard) = self.plan.shards.get(&store.shard) else { return };
        let (estimate, bound) = (store.publish_block_milliseconds, shard.writer_block_milliseconds_max);
        if estimate <= bound {
            return;
        }
        let accepted = self.plan.request.accept_block.contains(id);
        let severity = if accepted { Severity::Warning } else { Severity::Error };
        let text = format!(
            "publishing {} rows would block writers of shard {} for about {estimate} ms; its bound is {bound} ms",
            store.rows, store.shard
        );
        let hint = format!("accept it for this store with --accept-block {id}, or raise the shard's bound");
        self.push(severity, "publish-blocks-too-long", id, text, &hint);
    }
}

/// Sites that the forecast sees back later than their tier's target, counted from the declaration.
pub(crate) fn forecast_notes(plan: &Plan) -> Vec<Note> {
    let forecast = forecast(plan);
    let declared: Timestamp = plan.request.incident.declared_at;
    let passed = plan.created_at.seconds_since(declared).max(0.0);
    let mut missed: BTreeMap<u64, (u64, f64)> = BTreeMap::new();
    let targets: BTreeMap<_, _> = plan.sites.iter().map(|site| (&site.site, site.rto_seconds)).collect();
    for site in &forecast.sites {
        let back = passed + site.back_after_micros as f64 / 1e6;
        let target = targets.get(&site.site).copied().unwrap_or(u64::MAX);
        if back > target as f64 {
            let entry = missed.entry(target).or_default();
            *entry = (entry.0 + 1, entry.1.max(back));
        }
    }
    let lines = missed.into_iter().map(|(target, (sites, latest))| {
        let text = format!(
            "{sites} sites with a recovery time target of {target} s are forecast to miss it; the last is back \
             {latest:.0} s after the declaration"
        );
        let hint = "restore fewer sites at once, or give the run more slots in the topology";
        note(Severity::Warning, "rto-missed", "plan", text, hint)
    });
    lines.collect()
}
