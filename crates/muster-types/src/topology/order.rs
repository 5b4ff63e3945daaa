//! Kinds: which there are, what each comes after, and the order that follows.

use std::collections::{BTreeMap, BTreeSet};

use super::declare::{KindEntry, OwnerlessEntry, ShardEntry, SiteTableEntry, TableEntry};
use super::error::suggestion;
use super::raw::{At, Findings, quoted};
use super::{KindConfig, KindMode, Topology};
use crate::ids::Kind;

/// A kind, or all of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// One kind.
    Exact(Kind),
    /// `product:*`
    Products,
    /// `app:*`
    Apps,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "product:*" => Some(Self::Products),
            "app:*" => Some(Self::Apps),
            exact => exact.parse().ok().map(Self::Exact),
        }
    }

    pub(super) fn matches(&self, kind: &Kind) -> bool {
        match self {
            Self::Exact(exact) => exact == kind,
            Self::Products => kind.product().is_some(),
            Self::Apps => kind.app().is_some(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Exact(kind) => kind.as_str(),
            Self::Products => "product:*",
            Self::Apps => "app:*",
        }
    }
}

/// What comes after what where nothing is declared: the order in which such sites are provisioned. Apps are declared
/// after their own product where it is known; after all products is always safe.
const DEFAULT_ORDER: [(&str, &[&str]); 6] = [
    ("metadata", &[]),
    ("identity", &["metadata"]),
    ("media", &["metadata"]),
    ("product:*", &["metadata", "identity"]),
    ("app:*", &["metadata", "identity", "product:*"]),
    ("licence", &["metadata", "identity", "media", "product:*", "app:*"]),
];

fn default_after(kind: &Kind) -> Option<Vec<Pattern>> {
    let matches = |name: &str| Pattern::parse(name).is_some_and(|pattern| pattern.matches(kind));
    let found = DEFAULT_ORDER.iter().find(|(name, _)| matches(name))?;
    Some(found.1.iter().filter_map(|name| Pattern::parse(name)).collect())
}

/// Every kind that anything names, with the place that names it first: its own entry, a table, a shard.
pub(super) fn mentioned(
    entries: &[KindEntry],
    tables: &[TableEntry],
    (site_tables, ownerless): (&[SiteTableEntry], &[OwnerlessEntry]),
    shards: &[ShardEntry],
) -> BTreeMap<Kind, usize> {
    let exact = |pattern: &At<Pattern>| match &pattern.value {
        Pattern::Exact(kind) => Some((kind.clone(), pattern.at)),
        _ => None,
    };
    let in_shards = shards.iter().flat_map(|shard| &shard.kinds).filter_map(exact);
    let in_tables = tables.iter().map(|table| (table.kind.value.clone(), table.kind.at));
    let of_sites = site_tables.iter().map(|table| (table.kind.value.clone(), table.kind.at));
    let ownerless = ownerless.iter().map(|table| (table.kind.value.clone(), table.kind.at));
    let in_tables = in_tables.chain(of_sites).chain(ownerless);
    let in_entries = entries.iter().filter_map(|entry| exact(&entry.pattern));
    let mut kinds = BTreeMap::new();
    for (kind, at) in in_entries.chain(in_tables).chain(in_shards) {
        kinds.entry(kind).or_insert(at);
    }
    kinds
}

/// Resolves entries, patterns and defaults into one configuration per kind.
pub(super) fn resolve(
    findings: &mut Findings<'_>,
    entries: &[KindEntry],
    mentioned: &BTreeMap<Kind, usize>,
) -> BTreeMap<Kind, KindConfig> {
    check_entries(findings, entries, mentioned);
    let mut kinds = BTreeMap::new();
    for (kind, at) in mentioned {
        let own = entries.iter().find(|entry| entry.pattern.value == Pattern::Exact(kind.clone()));
        let entry = own.or_else(|| entries.iter().find(|entry| entry.pattern.value.matches(kind)));
        let default = default_after(kind);
        if entry.is_none() && default.is_none() {
            let hint = format!(
                "{}add [kinds.{}] with `after = [...]` if it is a kind of your own",
                suggestion(kind.as_str(), mentioned.keys().filter(|other| *other != kind).map(Kind::as_str)),
                quoted(kind.as_str())
            );
            findings.add(*at, format!("kind `{kind}` is not declared"), hint);
            continue;
        }
        let declared = entry.and_then(|entry| entry.after.as_ref());
        let after: Vec<Pattern> = match declared {
            Some(after) => after.iter().map(|pattern| pattern.value.clone()).collect(),
            None => default.unwrap_or_default(),
        };
        let mode = entry.map_or(KindMode::Restored, |entry| entry.mode.clone());
        let stage_waits = entry.is_some_and(|entry| entry.stage_waits);
        let checks = entry.map(|entry| entry.checks.clone()).unwrap_or_default();
        let after = expand(&after, kind, mentioned);
        kinds.insert(kind.clone(), KindConfig { after, stage_waits, mode, checks });
    }
    kinds
}

/// Kinds that the patterns match; what is after itself by a pattern's breadth is not meant.
fn expand(after: &[Pattern], kind: &Kind, mentioned: &BTreeMap<Kind, usize>) -> Vec<Kind> {
    let mut kinds = BTreeSet::new();
    for pattern in after {
        let itself = |other: &Kind| other == kind && !matches!(pattern, Pattern::Exact(_));
        kinds.extend(mentioned.keys().filter(|other| pattern.matches(other) && !itself(other)).cloned());
    }
    kinds.into_iter().collect()
}

fn check_entries(findings: &mut Findings<'_>, entries: &[KindEntry], mentioned: &BTreeMap<Kind, usize>) {
    for after in entries.iter().filter_map(|entry| entry.after.as_ref()).flatten() {
        let Pattern::Exact(kind) = &after.value else { continue };
        if !mentioned.contains_key(kind) {
            let hint = format!(
                "{}no table, shard or [kinds] section names it; declare it or remove it from `after`",
                suggestion(kind.as_str(), mentioned.keys().map(Kind::as_str))
            );
            findings.add(after.at, format!("`after` names kind `{kind}`, which does not exist"), hint);
        }
    }
}

/// Reports circles among the kinds.
pub(super) fn check_cycles(
    findings: &mut Findings<'_>,
    kinds: &BTreeMap<Kind, KindConfig>,
    mentioned: &BTreeMap<Kind, usize>,
) {
    let next = |kind: &Kind| kinds.get(kind).map_or(&[][..], |config| config.after.as_slice());
    let Some(circle) = circle(kinds.keys(), next) else { return };
    let at = circle.iter().filter_map(|kind| mentioned.get(kind)).min().copied().unwrap_or_default();
    let path = circle.iter().chain(circle.first()).map(|kind| format!("`{kind}`")).collect::<Vec<_>>();
    findings.add(
        at,
        format!("kinds come after each other in a circle: {}", path.join(" after ")),
        "remove one of them from the `after` of the one before it",
    );
}

/// Nodes that lead back to themselves, in order, if there are any.
pub(super) fn circle<'n, N: Ord>(
    nodes: impl Iterator<Item = &'n N>,
    next: impl Fn(&'n N) -> &'n [N],
) -> Option<Vec<&'n N>> {
    let mut done = BTreeSet::new();
    for start in nodes {
        // Each entry of the path with how many of its followers have been walked.
        let mut path: Vec<(&N, usize)> = vec![(start, 0)];
        while let Some((node, walked)) = path.last_mut() {
            let Some(follower) = next(node).get(*walked).filter(|_| !done.contains(*node)) else {
                done.insert(*node);
                path.pop();
                continue;
            };
            *walked += 1;
            if let Some(begin) = path.iter().position(|(node, _)| *node == follower) {
                return Some(path[begin..].iter().map(|(node, _)| *node).collect());
            }
            if !done.contains(follower) {
                path.push((follower, 0));
            }
        }
    }
    None
}

impl Topology {
    /// All kinds, each behind those that it comes after; kinds that could stand in either order stand by name.
    pub fn kinds_in_order(&self) -> Vec<&Kind> {
        let mut ordered: Vec<&Kind> = Vec::new();
        let mut rest: BTreeSet<&Kind> = self.kinds.keys().collect();
        while !rest.is_empty() {
            let free = |kind: &&&Kind| {
                self.kinds.get(**kind).is_none_or(|own| !own.after.iter().any(|a| rest.contains(a)))
            };
            // A validated topology has no circle, so one is always free.
            let Some(kind) = rest.iter().find(free).copied() else { break };
            rest.remove(kind);
            ordered.push(kind);
        }
        ordered
    }

    /// The kinds that `kind` comes after, also through others, in the order of [`Self::kinds_in_order`].
    pub fn kind_depends(&self, kind: &Kind) -> Vec<&Kind> {
        let mut found = BTreeSet::new();
        let mut open = vec![kind];
        while let Some(kind) = open.pop() {
            let after = self.kinds.get(kind).map_or(&[][..], |config| config.after.as_slice());
            open.extend(after.iter().filter(|kind| found.insert(*kind)));
        }
        self.kinds_in_order().into_iter().filter(|kind| found.contains(kind)).collect()
    }
}
