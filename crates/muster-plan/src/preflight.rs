//! Judges a list of ids that is about to be deleted: is it what was said, and could it be brought back?
//!
//! # Invariants
//! - An id that names nothing, two things, or something of another type than was said refuses the list, as does a wrong count,
//!   an id named twice, a store without a recovery point that is new enough, or one that an open run holds.
//! - Each reason is one refusal, with its number and some examples: a list of 883 wrong ids is told in one line.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::SiteFacts;
use muster_types::plan::LiveStore;
use muster_types::preflight::{Expectation, Loss, Refusal, Subject, SubjectStore};
use muster_types::topology::{SITE_ID_TYPE, Topology};
use muster_types::{Kind, SiteId, StoreId, Timestamp};

use crate::planner::StoreToProbe;

/// Examples that one refusal names.
const EXAMPLES_MAX: usize = 5;

/// An id of the list, with its place for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenId {
    /// Where it stands, as `FILE:LINE`.
    pub place: String,
    /// The type that it says, if it says one.
    pub id_type: Option<String>,
    /// The bare id.
    pub id: String,
}

impl GivenId {
    /// Reads `TYPE:ID` or a bare `ID`. Where ids are given out anew in each region, `ID@SITE` says which one is meant.
    pub fn read(place: impl Into<String>, text: &str) -> Self {
        let (id_type, id) = match text.split_once(':') {
            Some((id_type, id)) => (Some(id_type.trim().to_owned()), id.trim()),
            None => (None, text.trim()),
        };
        Self { place: place.into(), id_type, id: id.to_owned() }
    }

    /// The id before the last `@`, and the site behind it: what is meant unless something has the whole text as its id.
    fn of_site(&self) -> Option<(&str, &str)> {
        self.id.rsplit_once('@')
    }

    /// What rows are to be looked for.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.of_site().map(|(id, _)| id))
    }

    fn as_given(&self) -> String {
        match &self.id_type {
            Some(id_type) => format!("{id_type}:{}", self.id),
            None => self.id.clone(),
        }
    }
}

/// A row of a live shard that has one of the ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundId {
    /// The type of ids that the row is of.
    pub id_type: String,
    /// The bare id.
    pub id: String,
    /// The row's site.
    pub site: SiteId,
    /// The kind of the one store that it stands for; none for a whole site.
    pub kind: Option<Kind>,
}

/// What the judgement rests on.
#[derive(Clone, Copy, Debug)]
pub struct PreflightInput<'a> {
    /// For tiers and types of ids.
    pub topology: &'a Topology,
    /// What was said.
    pub expected: &'a Expectation,
    /// The list.
    pub given: &'a [GivenId],
    /// Rows that the live shards have for them.
    pub found: &'a BTreeSet<FoundId>,
    /// What the live directory says of their sites.
    pub facts: &'a BTreeMap<SiteId, SiteFacts>,
    /// What [`crate::select_stores`] gave for these sites at `now`.
    pub stores: &'a [StoreToProbe],
    /// What the drivers said of these stores.
    pub live: &'a BTreeMap<StoreId, LiveStore>,
    /// When they were asked.
    pub now: Timestamp,
}

/// The judgement of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What the ids name, in the order of the list; those that name nothing are not in it.
    pub subjects: Vec<Subject>,
    /// What a deletion would take.
    pub loss: Loss,
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
}

/// Judges a list.
pub fn judge(input: PreflightInput<'_>) -> Judgement {
    let mut reasons = Reasons::default();
    let mut stores: BTreeMap<&SiteId, Vec<&StoreToProbe>> = BTreeMap::new();
    for store in input.stores {
        stores.entry(&store.store.site).or_default().push(store);
    }
    let mut named: BTreeMap<&str, Vec<&FoundId>> = BTreeMap::new();
    for found in input.found {
        named.entry(&found.id).or_default().push(found);
    }
    let mut seen = BTreeSet::new();
    let mut subjects = Vec::new();
    for given in input.given {
        let Some(found) = resolve(given, &candidates(given, &named), &mut reasons) else { continue };
        if !seen.insert(found) {
            reasons.add("repeated-id", format!("`{}` ({})", given.as_given(), given.place));
            continue;
        }
        let of_site = stores.get(&found.site).map(Vec::as_slice).unwrap_or_default();
        let subject = subject(&input, found, of_site);
        judge_subject(&input, &subject, of_site, &mut reasons);
        subjects.push(subject);
    }
    let loss = loss(&subjects);
    Judgement { refusals: refusals(&input, reasons), subjects, loss }
}

/// Everything that an id of the list may mean, whatever type it says.
fn candidates<'a>(given: &GivenId, named: &BTreeMap<&str, Vec<&'a FoundId>>) -> Vec<&'a FoundId> {
    let of = |id: &str| named.get(id).cloned().unwrap_or_default();
    match (of(&given.id), given.of_site()) {
        (none, Some((id, site))) if none.is_empty() => {
            of(id).into_iter().filter(|found| found.site.as_str() == site).collect()
        }
        (found, _) => found,
    }
}

/// Examples by reason.
#[derive(Default)]
struct Reasons(BTreeMap<&'static str, Vec<String>>);

impl Reasons {
    fn add(&mut self, code: &'static str, example: String) {
        self.0.entry(code).or_default().push(example);
    }
}

fn resolve<'a>(given: &GivenId, named: &[&'a FoundId], reasons: &mut Reasons) -> Option<&'a FoundId> {
    let fits = |found: &&FoundId| given.id_type.as_ref().is_none_or(|id_type| *id_type == found.id_type);
    let fitting: Vec<&FoundId> = named.iter().copied().filter(fits).collect();
    let place = &given.place;
    match (fitting.as_slice(), named.first()) {
        ([one], _) => return Some(one),
        ([], None) => reasons.add("unknown-id", format!("`{}` ({place})", given.as_given())),
        ([], Some(other)) => reasons.add(
            "unknown-id",
            format!("`{}` ({place}), where {}:{} is there", given.as_given(), other.id_type, other.id),
        ),
        (many, _) => {
            let all: Vec<String> = many.iter().map(|found| described(found)).collect();
            reasons.add("ambiguous-id", format!("`{}` ({place}): {}", given.as_given(), all.join(" and ")));
        }
    }
    None
}

fn described(found: &FoundId) -> String {
    match &found.kind {
        Some(kind) => format!("{}:{} ({kind} of {})", found.id_type, found.id, found.site),
        None => format!("{}:{}", found.id_type, found.id),
    }
}

fn subject(input: &PreflightInput<'_>, found: &FoundId, of_site: &[&StoreToProbe]) -> Subject {
    let wanted = |store: &&&StoreToProbe| found.kind.as_ref().is_none_or(|kind| *kind == store.store.kind);
    let stores = of_site.iter().filter(wanted).map(|store| SubjectStore {
        kind: store.store.kind.clone(),
        shard: store.shard.clone(),
        rows: input.live.get(&store.store).map_or(store.rows, |live| live.rows),
        recovery_point: store.point.gap.is_none().then_some(store.point.boundary.at),
    });
    Subject {
        id_type: found.id_type.clone(),
        id: found.id.clone(),
        site: found.site.clone(),
        kind: found.kind.clone(),
        facts: input.facts.get(&found.site).cloned().unwrap_or_default(),
        stores: stores.collect(),
    }
}

fn judge_subject(
    input: &PreflightInput<'_>,
    subject: &Subject,
    of_site: &[&StoreToProbe],
    reasons: &mut Reasons,
) {
    let name = subject.facts.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    let called = format!("{}{name}", subject.typed());
    if subject.id_type != input.expected.id_type {
        reasons.add("wrong-type", called.clone());
    }
    // A site that the repository knows nothing of cannot be brought back; of a known one, an app without rows can.
    if of_site.is_empty() {
        reasons.add("no-recovery-point", called.clone());
    }
    let age_seconds_max = age_seconds_max(input, &subject.facts);
    for store in &subject.stores {
        let what = || format!("{called}/{}", store.kind);
        match store.recovery_point {
            None => reasons.add("no-recovery-point", what()),
            Some(at) => {
                let age_seconds = input.now.seconds_since(at).max(0.0) as u64;
                if age_seconds > age_seconds_max {
                    reasons.add(
                        "old-recovery-point",
                        format!("{}: {age_seconds} s old, {age_seconds_max} s at most", what()),
                    );
                }
            }
        }
        let id = StoreId { site: subject.site.clone(), kind: store.kind.clone() };
        if let Some(run) = input.live.get(&id).and_then(|live| live.claimed_by.as_ref()) {
            reasons.add("held-by-run", format!("{}: run {run}", what()));
        }
    }
}

/// What was said, or the RPO of the site's tier; of a site without a known tier, the strictest there is.
fn age_seconds_max(input: &PreflightInput<'_>, facts: &SiteFacts) -> u64 {
    let tiers = &input.topology.tiers;
    let of_tier = facts.tier.as_ref().and_then(|tier| tiers.get(tier)).map(|tier| tier.rpo_seconds);
    let strictest = || tiers.values().map(|tier| tier.rpo_seconds).min();
    input.expected.recovery_point_age_seconds_max.or(of_tier).or_else(strictest).unwrap_or(0)
}

fn loss(subjects: &[Subject]) -> Loss {
    let mut whole: BTreeMap<&SiteId, &Subject> = BTreeMap::new();
    let mut parts: BTreeMap<&SiteId, &Subject> = BTreeMap::new();
    let mut stores: BTreeMap<(&SiteId, &Kind), u64> = BTreeMap::new();
    for subject in subjects {
        let sites = if subject.kind.is_none() { &mut whole } else { &mut parts };
        sites.insert(&subject.site, subject);
        stores.extend(subject.stores.iter().map(|store| ((&subject.site, &store.kind), store.rows)));
    }
    parts.retain(|site, _| !whole.contains_key(site));
    let customers: BTreeSet<&str> =
        whole.values().chain(parts.values()).filter_map(|one| one.facts.customer.as_deref()).collect();
    let count = |wanted: fn(&Kind) -> bool| stores.keys().filter(|(_, kind)| wanted(kind)).count() as u64;
    Loss {
        sites: whole.len() as u64,
        sites_in_part: parts.len() as u64,
        customers: customers.len() as u64,
        users: whole.values().map(|site| site.facts.users).sum(),
        products: count(|kind| kind.product().is_some()),
        apps: count(|kind| kind.app().is_some()),
        rows: stores.values().sum(),
    }
}

fn refusals(input: &PreflightInput<'_>, reasons: Reasons) -> Vec<Refusal> {
    let (given, said) = (input.given.len() as u64, input.expected.count);
    let id_type = &input.expected.id_type;
    let mut refusals = Vec::new();
    if given == 0 {
        let hint = "check that the right file was given: it has one id a line";
        refusals.push(refusal("empty-list", "the list names nothing".into(), hint.into()));
    }
    if given != said {
        let text = format!("the list has {given} ids, and {said} were said");
        refusals.push(refusal("wrong-count", text, "ask who made the list which of the two is right".into()));
    }
    let known: Vec<&str> =
        std::iter::once(SITE_ID_TYPE).chain(input.topology.ids.keys().map(String::as_str)).collect();
    for (code, examples) in reasons.0 {
        let count = examples.len();
        let ids = if count == 1 { "id" } else { "ids" };
        let (what, hint) = match code {
            "unknown-id" => (
                format!("{count} {ids} of {given} name nothing that is live"),
                format!("ask who made the list; ids that can be told are of the types {}", known.join(", ")),
            ),
            "ambiguous-id" => (
                format!("{count} {ids} of {given} name more than one thing"),
                format!(
                    "write each with its type, as `{id_type}:ID`, or also with its site, as `{id_type}:ID@SITE`"
                ),
            ),
            "repeated-id" => (format!("{count} {ids} are in the list twice"), "name each once".into()),
            "wrong-type" => (
                format!("{count} {ids} of {given} name no {id_type}"),
                format!("stop: the list is not one of {id_type} ids; ask who made it"),
            ),
            "no-recovery-point" => (
                format!("{count} of what would be deleted cannot be brought back"),
                "run `muster capture`, and `muster capture wait --covers now`, then ask again".into(),
            ),
            "old-recovery-point" => (
                format!("{count} of what would be deleted can only be brought back to an older moment"),
                "let `muster capture` catch up: `muster capture wait --covers now`, then ask again".into(),
            ),
            _ => (
                format!("{count} of what would be deleted is held by an open run"),
                "wait until the run has ended: `muster runs`".into(),
            ),
        };
        refusals.push(refusal(code, format!("{what}: {}", shown(&examples)), hint));
    }
    refusals
}

fn refusal(code: &str, text: String, hint: String) -> Refusal {
    Refusal { code: code.to_owned(), text, hint }
}

fn shown(examples: &[String]) -> String {
    let some = examples.iter().take(EXAMPLES_MAX).cloned().collect::<Vec<_>>().join(", ");
    match examples.len().saturating_sub(EXAMPLES_MAX) {
        0 => some,
        more => format!("{some}, and {more} more"),
    }
}
