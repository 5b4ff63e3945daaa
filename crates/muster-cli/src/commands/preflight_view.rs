//! A preflight for people.

use std::collections::BTreeSet;

use muster_types::preflight::{Preflight, Subject};

use crate::print;

/// Subjects that are listed one by one; `--json` has all.
const LISTED_MAX: usize = 20;

/// Differences of each kind that one message lists.
const DIFFERENCES_MAX: usize = 8;

/// Prints what the list names, what would be lost, what stands in the way or the hash.
pub(crate) fn show(preflight: &Preflight) {
    let rows = preflight.subjects.iter().take(LISTED_MAX).map(|subject| {
        vec![
            subject.typed(),
            subject.kind.as_ref().map_or_else(|| "whole site".to_owned(), ToString::to_string),
            subject.facts.name.clone().unwrap_or_else(|| subject.site.to_string()),
            subject.facts.customer.clone().unwrap_or_default(),
            print::count(subject.stores.len() as u64),
            print::count(subject.stores.iter().map(|store| store.rows).sum()),
            oldest(subject, preflight),
        ]
    });
    let header = ["id", "is", "of", "customer", "stores", "rows", "recovery point, s ago"];
    print::data(print::table(&header, &["stores", "rows", "recovery point, s ago"], rows));
    let more = preflight.subjects.len().saturating_sub(LISTED_MAX);
    if more > 0 {
        print::data(format!("… and {} more; --json lists all", print::count(more as u64)));
    }
    let loss = &preflight.loss;
    print::data(format!(
        "would be lost: {} sites whole, {} in part; {} customers, {} users, {} products, {} apps, {} rows",
        print::count(loss.sites),
        print::count(loss.sites_in_part),
        print::count(loss.customers),
        print::count(loss.users),
        print::count(loss.products),
        print::count(loss.apps),
        print::count(loss.rows),
    ));
    let expected = &preflight.expected;
    if preflight.refusals.is_empty() {
        print::data(format!("{} of type {}, as was said", print::count(expected.count), expected.id_type));
        print::data(format!("hash: {}", preflight.hash));
        print::talk(format!(
            "for the asking side to approve; the acting side runs `muster preflight confirm {} --ids FILE` right \
             before, until {}",
            preflight.hash, preflight.expires_at
        ));
        return;
    }
    for refusal in &preflight.refusals {
        print::data(format!("refused, {}: {}; {}", refusal.code, refusal.text, refusal.hint));
    }
    print::talk("delete nothing: the list is not what was said");
}

/// Age of the oldest among the newest recovery points of its stores, in seconds.
fn oldest(subject: &Subject, preflight: &Preflight) -> String {
    if subject.stores.iter().any(|store| store.recovery_point.is_none()) || subject.stores.is_empty() {
        return "none".to_owned();
    }
    let oldest = subject.stores.iter().filter_map(|store| store.recovery_point).min();
    oldest.map_or_else(String::new, |at| format!("{:.0}", preflight.made_at.seconds_since(at).max(0.0)))
}

/// What a list names that the approved one does not, and the other way round.
pub(crate) fn differences(approved: &Preflight, now: &Preflight) -> String {
    let of = |preflight: &Preflight| -> BTreeSet<String> {
        let one = |subject: &Subject| {
            let kind = subject.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
            let name = subject.facts.name.as_deref().unwrap_or_default();
            format!("{}{kind} of {} {name}", subject.typed(), subject.site)
        };
        preflight.subjects.iter().map(one).collect()
    };
    let (before, after) = (of(approved), of(now));
    let mut lines: Vec<String> =
        now.refusals.iter().map(|refusal| format!("  {}: {}", refusal.code, refusal.text)).collect();
    for (what, these, those) in [("new", &after, &before), ("gone", &before, &after)] {
        let all: Vec<&String> = these.difference(those).collect();
        lines.extend(all.iter().take(DIFFERENCES_MAX).map(|one| format!("  {what}: {one}")));
        if all.len() > DIFFERENCES_MAX {
            lines.push(format!("  … and {} more {what}", print::count((all.len() - DIFFERENCES_MAX) as u64)));
        }
    }
    lines.join("\n")
}
