//! Findings that follow from catalog, topology and request alone.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::SiteFacts;
use muster_types::incident::IncidentSite;
use muster_types::plan::{Note, Severity};
use muster_types::request::PlanRequest;
use muster_types::segment::TableEventKind;
use muster_types::topology::{KindMode, Topology};
use muster_types::{Boundary, Kind, ShardName, SiteId, Timestamp};

use crate::planner::tier_targets;
use crate::points::LateCommits;
use crate::references::{self, SiteReferences};
use crate::stores::{Finder, FoundStore, SiteStores, UNREAD_HINT, note};

/// Gathers findings site by site; those of one cause over many sites are counted until [`Survey::finish`].
pub(crate) struct Survey<'a> {
    finder: &'a Finder<'a>,
    request: &'a PlanRequest,
    pub(crate) notes: Vec<Note>,
    /// By shard and reason: stores whose target lies in the gap.
    gaps: BTreeMap<(ShardName, String), Vec<String>>,
    /// By shard: stores whose target the log does not reach.
    uncovered: BTreeMap<ShardName, Vec<String>>,
    /// By shard, incarnation and point reached: commits behind it with times at or before a target, the latest target's,
    /// and the stores that it concerns.
    late: BTreeMap<(ShardName, usize, Boundary), (LateCommits, Vec<String>)>,
    /// Incarnations read from, and up to where.
    read: BTreeMap<(ShardName, usize), Timestamp>,
    /// Sites whose stores stand at different moments, and by how much.
    skewed: Vec<(f64, SiteId)>,
    /// By table that no topology declares any more: stores that hold it.
    undeclared: BTreeMap<String, u64>,
    /// By reference that is not counted, with the reason: sites that it concerns.
    unchecked: BTreeMap<String, Vec<SiteId>>,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(finder: &'a Finder<'a>, request: &'a PlanRequest) -> Self {
        let mut survey = Self {
            finder,
            request,
            notes: Vec::new(),
            gaps: BTreeMap::new(),
            uncovered: BTreeMap::new(),
            late: BTreeMap::new(),
            read: BTreeMap::new(),
            skewed: Vec::new(),
            undeclared: BTreeMap::new(),
            unchecked: BTreeMap::new(),
        };
        survey.duplicates();
        survey
    }

    fn topology(&self) -> &'a Topology {
        self.finder.topology
    }

    fn duplicates(&mut self) {
        let sites = &self.request.incident.sites;
        if sites.is_empty() {
            let hint = "name at least one site, or widen the filter or the window of `muster detect`";
            self.notes.push(note(
                Severity::Fatal,
                "empty-selection",
                "plan",
                "the selection has no sites",
                hint,
            ));
        }
        let mut first: BTreeMap<&SiteId, &IncidentSite> = BTreeMap::new();
        for site in sites {
            let Some(known) = first.get(&site.site) else {
                first.insert(&site.site, site);
                continue;
            };
            let equal = known.target == site.target && known.before == site.before;
            let (severity, text) = if equal {
                (Severity::Warning, "listed more than once with the same target; planned once".to_owned())
            } else {
                let text = format!("listed with different targets: {} and {}", known.target, site.target);
                (Severity::Error, text)
            };
            let hint = "keep one entry of the site in the incident";
            self.notes.push(note(severity, "duplicate-site", site.site.to_string(), text, hint));
        }
    }

    /// Takes in what was found of one site; the references that concern it.
    pub(crate) fn site(&mut self, asked: &IncidentSite, found: &SiteStores) -> SiteReferences {
        self.notes.extend(found.notes.iter().cloned());
        let history = self.finder.index.catalog.sites.get(&asked.site);
        let facts = history.and_then(|history| history.facts.clone()).unwrap_or_default();
        for store in &found.stores {
            self.store(asked, store, &facts);
        }
        if let Some(reason) = history.and_then(|history| history.facts_unread.as_ref()) {
            let text = format!("its directory or licence rows cannot be read: {reason}");
            let hint = "its tier, region and licences are unknown and not compared until then; bring the object back from \
                        the bucket's versions or replica, then plan again";
            self.notes.push(note(Severity::Warning, "facts-unread", asked.site.to_string(), text, hint));
        }
        self.dependencies(asked, found, &facts);
        self.losses(asked, found, &facts);
        let references = references::of_site(self.finder, asked, found);
        for text in &references.unchecked {
            self.unchecked.entry(text.clone()).or_default().push(asked.site.clone());
        }
        references
    }

    fn store(&mut self, asked: &IncidentSite, store: &FoundStore, facts: &SiteFacts) {
        let subject = format!("{}/{}", asked.site, store.kind);
        let read =
            self.read.entry((store.source.clone(), store.point.number)).or_insert(store.point.boundary.at);
        *read = (*read).max(store.point.boundary.at);
        if let Some(reason) = &store.point.gap {
            self.gaps.entry((store.source.clone(), reason.clone())).or_default().push(subject.clone());
        } else if !store.point.covered {
            self.uncovered.entry(store.source.clone()).or_default().push(subject.clone());
        }
        if let Some(late) = store.point.late {
            let place = (store.source.clone(), store.point.number, store.point.boundary);
            let (most, stores) = self.late.entry(place).or_insert((late, Vec::new()));
            if late.commits > most.commits {
                *most = late;
            }
            stores.push(subject.clone());
        }
        let placement = &self.request.placement;
        if placement.to_shard.values().any(|target| *target == store.shard) && store.source != store.shard {
            self.elsewhere(&subject, store);
        } else if store.source != store.shard {
            let text = format!(
                "the site moved since: rows come from shard {} and go to shard {}, which holds it now",
                store.source, store.shard
            );
            let hint = "nothing, if the move was meant";
            self.notes.push(note(Severity::Info, "site-moved", subject.clone(), text, hint));
        }
        self.region(subject, store, facts);
        for table in store.tables.iter() {
            if !self.topology().declares(&table.def.name) {
                *self.undeclared.entry(format!("{}/{}", store.source, table.def.name)).or_default() += 1;
            }
        }
    }

    /// A store that the request plans into another shard must find a place there.
    fn elsewhere(&mut self, subject: &str, store: &FoundStore) {
        let Some(shard) = self.topology().shards.get(&store.shard) else { return };
        let text =
            format!("rows come from shard {} and go to shard {}, as asked for", store.source, store.shard);
        let hint = "what lives in the former is not looked at: close it, or take the site's rows away there";
        self.notes.push(note(Severity::Info, "restored-elsewhere", subject, text, hint));
        if !shard.kinds.contains(&store.kind) {
            let text = format!("shard {} hosts no {}", store.shard, store.kind);
            let hint =
                "name the kind in the shard's `kinds` in the topology, or another shard with --to-shard";
            self.notes.push(note(Severity::Error, "kind-not-hosted", subject, text, hint));
        }
        let other = |of: &&SiteId| !subject.starts_with(&format!("{of}/"));
        if let Some(of) = shard.site.as_ref().filter(other) {
            let text = format!("shard {} is the database of {of} alone", store.shard);
            let hint = "name a shard with --to-shard that is not a single site's";
            self.notes.push(note(Severity::Error, "kind-not-hosted", subject, text, hint));
        }
        let source = self.topology().shards.get(&store.source).map(|source| source.driver.name());
        if source.is_some_and(|source| source != shard.driver.name()) {
            let text = format!(
                "shard {} has driver {}, and {} another",
                store.shard,
                shard.driver.name(),
                store.source
            );
            let hint = "name a shard of the same driver with --to-shard";
            self.notes.push(note(Severity::Error, "other-driver", subject, text, hint));
        }
    }

    fn region(&mut self, subject: String, store: &FoundStore, facts: &SiteFacts) {
        let Some(shard) = self.topology().shards.get(&store.shard) else {
            let text = format!("shard {} is not in the topology", store.shard);
            let hint = "declare the shard that is to hold the site";
            self.notes.push(note(Severity::Error, "unknown-shard", subject, text, hint));
            return;
        };
        let source = self.topology().shards.get(&store.source).map(|source| &source.region);
        let home = facts.region.as_ref().map(|region| (region, "the site's directory says"));
        let wanted = home.or(source.map(|region| (region, "its rows come from")));
        if let Some((region, says)) = wanted.filter(|(region, _)| **region != shard.region) {
            let text = format!("shard {} is in region {}, {says} region {region}", store.shard, shard.region);
            let hint = "restore it to a shard of its own region, allow the other one with --allow-region, or correct the \
                        region in the topology";
            let allowed = self.request.placement.allow_region;
            let severity = if allowed { Severity::Warning } else { Severity::Error };
            self.notes.push(note(severity, "region-mismatch", subject, text, hint));
        }
    }

    /// Products and apps that a site ought to have, and kinds without what they stand on.
    fn dependencies(&mut self, asked: &IncidentSite, found: &SiteStores, facts: &SiteFacts) {
        let mut present: BTreeSet<&Kind> = found.stores.iter().map(|store| &store.kind).collect();
        if present.is_empty() {
            return;
        }
        present.extend(&found.left_out);
        for kind in facts.licensed.iter().filter(|kind| !present.contains(kind)) {
            let declared = self.topology().kinds.get(kind);
            let text = match declared.map(|config| &config.mode) {
                Some(KindMode::Restored) => "licensed, and no row of it at the target".to_owned(),
                Some(_) => continue,
                None => "licensed, and the topology declares no such kind".to_owned(),
            };
            let hint = "compare with an earlier target, if the site used it";
            let subject = format!("{}/{kind}", asked.site);
            self.notes.push(note(Severity::Warning, "licensed-without-store", subject, text, hint));
        }
        for store in &found.stores {
            for missing in self.missing(&store.kind, &present) {
                let text = format!("it comes after {missing}, and the site has no {missing} at the target");
                let hint = "compare with an earlier target, if it was there then";
                let subject = format!("{}/{}", asked.site, store.kind);
                self.notes.push(note(Severity::Warning, "dependency-without-store", subject, text, hint));
            }
        }
    }

    /// Declared dependencies that a store of `kind` cannot do without. A dependency on products is met by one of
    /// them; nothing depends on an app, and licences are published last for their meaning, not for their keys.
    fn missing(&self, kind: &Kind, present: &BTreeSet<&Kind>) -> Vec<&'a Kind> {
        let topology = self.topology();
        let licences = topology.licences.as_ref().map(|licences| &licences.kind);
        let Some(config) = topology.kinds.get(kind).filter(|_| licences != Some(kind)) else {
            return Vec::new();
        };
        let restored =
            |kind: &&Kind| topology.kinds.get(kind).is_some_and(|config| config.mode == KindMode::Restored);
        let has_product =
            config.after.iter().any(|after| after.product().is_some() && present.contains(after));
        let optional = |after: &Kind| {
            after.app().is_some() || (after.product().is_some() && (has_product || kind.app().is_none()))
        };
        let wanted = config.after.iter().filter(restored).filter(|after| !optional(after));
        wanted.filter(|after| !present.contains(after) && licences != Some(*after)).collect()
    }

    /// What the site loses between its outage and the points reached, and how far these lie apart.
    fn losses(&mut self, asked: &IncidentSite, found: &SiteStores, facts: &SiteFacts) {
        let tier = tier_targets(self.topology(), facts.tier.as_deref());
        let outage = asked.outage_at.unwrap_or(asked.target);
        let lossy = found.stores.iter().filter(|store| store.rows > 0 && !store.point.exact);
        let lost = lossy.map(|store| (outage.seconds_since(store.point.boundary.at), store));
        let worst = lost.max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((seconds, store)) = worst.filter(|(seconds, _)| *seconds > tier.rpo_seconds as f64) {
            let text = format!(
                "{} reaches {}, {seconds:.1} s before the outage; the tier's target is {} s",
                store.kind, store.point.boundary.at, tier.rpo_seconds
            );
            let hint = "nothing can be done now; look at capture's lag on that shard";
            self.notes.push(note(Severity::Warning, "rpo-missed", asked.site.to_string(), text, hint));
        }
        let stamps = found.stores.iter().filter(|store| store.rows > 0).map(|store| {
            // Where nothing lies between, the store stands at its target itself.
            if store.point.exact && store.before.is_none() { asked.target } else { store.point.boundary.at }
        });
        let (Some(first), Some(last)) = (stamps.clone().min(), stamps.max()) else { return };
        if last > first {
            self.skewed.push((last.seconds_since(first), asked.site.clone()));
        }
    }

    /// All findings.
    pub(crate) fn finish(mut self) -> Vec<Note> {
        self.unread_notes();
        self.gap_notes();
        for (shard, stores) in &self.uncovered {
            let text = format!("the log does not reach the target of {} yet", some_of(stores));
            let hint =
                "run `muster capture --once` and plan again, or accept what the point reached leaves out";
            self.notes.push(note(Severity::Warning, "target-not-covered", shard.as_str(), text, hint));
        }
        self.late_notes();
        self.table_notes();
        self.skew_note();
        for (text, sites) in &self.unchecked {
            let note = match sites.as_slice() {
                [site] => references::unchecked_note(site.to_string(), text),
                many => references::unchecked_note("plan", format!("{} sites: {text}", many.len())),
            };
            self.notes.push(note);
        }
        self.notes
    }

    fn unread_notes(&mut self) {
        for (shard, history) in &self.finder.index.catalog.shards {
            for snapshot in history.snapshots_unread() {
                let text = format!(
                    "the root of snapshot {snapshot} cannot be read: stores that only it knew look absent"
                );
                self.notes.push(note(
                    Severity::Warning,
                    "snapshot-unread",
                    shard.as_str(),
                    text,
                    UNREAD_HINT,
                ));
            }
        }
    }

    fn gap_notes(&mut self) {
        for ((shard, reason), stores) in &self.gaps {
            let key = format!("{shard}: {reason}");
            let accepted = self.request.accept_gap.contains(&key);
            let severity = if accepted { Severity::Warning } else { Severity::Fatal };
            let text = format!("{key}; the target of {} lies in this gap of the log", some_of(stores));
            let hint = format!("accept the loss with --accept-gap '{key}', or choose another target");
            self.notes.push(note(severity, "log-gap", shard.as_str(), text, hint));
        }
    }

    fn late_notes(&mut self) {
        for ((shard, _, reached), (late, stores)) in &self.late {
            let commits = if late.commits == 1 { "commit" } else { "commits" };
            let text = format!(
                "{} {commits} behind {} (position {}) of the shard's log, from position {} on, have times at or before \
                 the target of {}, and come too late for it: a commit before them is behind the target",
                late.commits,
                reached.at,
                reached.position,
                late.first,
                some_of(stores)
            );
            let hint = "to have them too, name a later time, or a position behind theirs";
            self.notes.push(note(Severity::Info, "late-commits", shard.as_str(), text, hint));
        }
    }

    fn table_notes(&mut self) {
        for (table, stores) in &self.undeclared {
            let text = format!(
                "{stores} stores hold rows or the definition of it, and the topology declares no such table"
            );
            let hint =
                "its rows are restored as they were captured; declare it, so that new ones are captured";
            self.notes.push(note(Severity::Warning, "table-not-declared", table.as_str(), text, hint));
        }
        for ((shard, number), upto) in &self.read {
            let Some(index) = self.finder.index.shard(shard) else { continue };
            let segments = index.incarnations[*number].history.segments.iter();
            let events = segments
                .filter(|segment| segment.boundary.at <= *upto)
                .flat_map(|segment| &segment.table_events);
            let tables: BTreeSet<&str> = events
                .filter(|event| {
                    event.event == TableEventKind::Undeclared && !self.topology().declares(&event.table)
                })
                .map(|event| event.table.as_str())
                .collect();
            for table in tables {
                let text = "present in the shard and not declared: its rows were never captured and are not restored";
                let hint = "declare it in the topology; what it held before is not in the repository";
                let subject = format!("{shard}/{table}");
                self.notes.push(note(Severity::Warning, "table-undeclared", subject, text, hint));
            }
        }
    }

    fn skew_note(&mut self) {
        let worst = self.skewed.iter().max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
        let Some((seconds, site)) = worst else { return };
        let clocks = self.read.keys().filter_map(|(shard, number)| {
            let incarnation = &self.finder.index.shard(shard)?.incarnations[*number];
            let offsets = incarnation.history.segments.iter().map(|segment| segment.clock_offset_micros);
            offsets.map(|(offset, uncertainty)| offset.unsigned_abs() + uncertainty).max()
        });
        let text = format!(
            "{} sites have stores that reach different moments, at most {seconds:.3} s apart ({site}); the shards' \
             clocks were within {:.3} s",
            self.skewed.len(),
            clocks.max().unwrap_or(0) as f64 / 1e6
        );
        let hint =
            "a reference between two stores of a site may break within it; name a position for one of them";
        self.notes.push(note(Severity::Info, "skew", "plan", text, hint));
    }
}

/// A count and the first three.
fn some_of(subjects: &[String]) -> String {
    let shown = subjects.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if subjects.len() > 3 { ", …" } else { "" };
    let noun = if subjects.len() == 1 { "store" } else { "stores" };
    format!("{} {noun} ({shown}{more})", subjects.len())
}
