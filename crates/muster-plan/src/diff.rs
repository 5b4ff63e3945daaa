//! What differs between two plans.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::plan::{Note, Plan, SitePlan, StorePlan};
use muster_types::{Kind, SiteId};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    /// What differs: the plan, a shard's pool, a site, a store or a note.
    pub subject: String,
    /// In the first plan; none if it is not there.
    pub was: Option<String>,
    /// In the second one; none if it is not there.
    pub is: Option<String>,
}

/// Everything that differs between `old` and `new`, in the order plan, pools, sites and stores, notes.
///
/// Ids, times of making and the steps, which follow from the rest, are not compared.
pub fn diff(old: &Plan, new: &Plan) -> Vec<PlanChange> {
    let mut changes = Changes::default();
    changes.field("plan/topology", &old.topology.short(), &new.topology.short());
    changes.field("plan/repository", &old.repository, &new.repository);
    changes.field("plan/proof", &format!("{:?}", old.request.proof), &format!("{:?}", new.request.proof));
    let pools: BTreeSet<&String> = old.pools.keys().chain(new.pools.keys()).collect();
    for pool in pools {
        let units = |plan: &Plan| plan.pools.get(pool).map(ToString::to_string);
        changes.push(format!("pool/{pool}"), units(old), units(new));
    }
    let (old_sites, new_sites) = (by_site(old), by_site(new));
    let sites: BTreeSet<&&SiteId> = old_sites.keys().chain(new_sites.keys()).collect();
    for site in sites {
        changes.site(site, old_sites.get(site).copied(), new_sites.get(site).copied());
    }
    changes.notes(&old.notes, &new.notes);
    changes.list
}

#[derive(Default)]
struct Changes {
    list: Vec<PlanChange>,
}

impl Changes {
    fn push(&mut self, subject: String, was: Option<String>, is: Option<String>) {
        if was != is {
            self.list.push(PlanChange { subject, was, is });
        }
    }

    fn field(&mut self, subject: &str, was: &str, is: &str) {
        self.push(subject.to_owned(), Some(was.to_owned()), Some(is.to_owned()));
    }

    fn site(&mut self, id: &SiteId, old: Option<&SitePlan>, new: Option<&SitePlan>) {
        let summary = |site: &SitePlan| {
            format!("target {}, wave {}, {} stores", site.target, site.wave, site.stores.len())
        };
        self.push(id.to_string(), old.map(summary), new.map(summary));
        let (old, new) = (by_kind(old), by_kind(new));
        let kinds: BTreeSet<&&Kind> = old.keys().chain(new.keys()).collect();
        for kind in kinds {
            self.push(
                format!("{id}/{kind}"),
                old.get(kind).map(|store| store_summary(store)),
                new.get(kind).map(|store| store_summary(store)),
            );
        }
    }

    fn notes(&mut self, old: &[Note], new: &[Note]) {
        let text = |note: &Note| (format!("note/{}/{}", note.code, note.subject), note.text.clone());
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (old.iter().map(text).collect(), new.iter().map(text).collect());
        for (subject, was) in old.difference(&new) {
            self.push(subject.clone(), Some(was.clone()), None);
        }
        for (subject, is) in new.difference(&old) {
            self.push(subject.clone(), None, Some(is.clone()));
        }
    }
}

fn by_site(plan: &Plan) -> BTreeMap<&SiteId, &SitePlan> {
    plan.sites.iter().map(|site| (&site.site, site)).collect()
}

fn by_kind(site: Option<&SitePlan>) -> BTreeMap<&Kind, &StorePlan> {
    site.into_iter().flat_map(|site| &site.stores).map(|store| (&store.kind, store)).collect()
}

fn store_summary(store: &StorePlan) -> String {
    let live = if store.live.rows > 0 { format!(", {} live rows", store.live.rows) } else { String::new() };
    format!(
        "{} to {}, {} position {} at {}, {} rows, {} bytes{live}",
        store.source,
        store.shard,
        store.incarnation,
        store.reached.position,
        store.reached.at,
        store.rows,
        store.bytes
    )
}
