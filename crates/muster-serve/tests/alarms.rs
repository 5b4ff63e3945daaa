//! Edges: each is written once, whatever the servers see when.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};

use muster_serve::alarms::{Alarms, LOOKS_MAX};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, AlarmRecord, Change, Condition};
use proptest::prelude::*;

const NAMES: [AlarmName; 2] = [AlarmName::CaptureLag, AlarmName::JobOverdue];

fn condition(name: AlarmName, subject: &str) -> Condition {
    let (text, way_out) = ("late".to_owned(), "look".to_owned());
    Condition { name, subject: subject.to_owned(), since: Timestamp::EPOCH, text, way_out }
}

/// Lets a server look and write what it must; the record it wrote.
fn look(
    server: &mut Alarms,
    name: &str,
    found: &[&str],
    chain: &mut Vec<AlarmRecord>,
) -> Option<AlarmRecord> {
    let found = found.iter().map(|subject| condition(AlarmName::CaptureLag, subject)).collect();
    server.saw(&[AlarmName::CaptureLag], found);
    let record = server.record(chain.last(), name, Timestamp::EPOCH)?;
    server.wrote(&record);
    chain.push(record.clone());
    Some(record)
}

fn changes(record: Option<AlarmRecord>) -> Vec<(Change, String)> {
    let edges = record.map(|record| record.edges).unwrap_or_default();
    edges.into_iter().map(|edge| (edge.change, edge.alarm.subject)).collect()
}

#[test]
fn of_two_servers_one_raises_and_one_clears() {
    let (mut a, mut b, mut chain) = (Alarms::default(), Alarms::default(), Vec::new());
    assert_eq!(changes(look(&mut a, "a", &["x"], &mut chain)), [(Change::Raised, "x".to_owned())]);
    // The other has not seen it yet, and leaves it.
    assert_eq!(changes(look(&mut b, "b", &[], &mut chain)), []);
    assert_eq!(changes(look(&mut b, "b", &["x"], &mut chain)), []);
    assert_eq!(changes(look(&mut b, "b", &[], &mut chain)), [(Change::Cleared, "x".to_owned())]);
    // The first still sees it, for a moment.
    assert_eq!(changes(look(&mut a, "a", &["x"], &mut chain)), []);
    assert_eq!(changes(look(&mut a, "a", &[], &mut chain)), []);
    assert!(chain.last().unwrap().standing.is_empty());
}

#[test]
fn what_a_dead_server_raised_is_cleared_by_another() {
    let (mut a, mut chain) = (Alarms::default(), Vec::new());
    look(&mut a, "a", &["x", "y"], &mut chain);
    let mut b = Alarms::default();
    let mut looks = 0;
    while changes(look(&mut b, "b", &["y"], &mut chain)) != [(Change::Cleared, "x".to_owned())] {
        looks += 1;
        assert!(looks <= LOOKS_MAX, "x stands for ever");
    }
    let standing: Vec<_> = chain.last().unwrap().standing.iter().map(|alarm| alarm.subject.clone()).collect();
    assert_eq!(standing, ["y"]);
}

#[test]
fn a_look_speaks_of_its_own_names_only() {
    let (mut a, mut chain) = (Alarms::default(), Vec::new());
    a.saw(&[AlarmName::JobOverdue], vec![condition(AlarmName::JobOverdue, "nightly")]);
    chain.push(a.record(None, "a", Timestamp::EPOCH).unwrap());
    for _ in 0..=LOOKS_MAX {
        assert_eq!(changes(look(&mut a, "a", &[], &mut chain)), []);
        // A server that never looked at jobs leaves them alone.
        assert_eq!(changes(look(&mut Alarms::default(), "b", &[], &mut chain)), []);
    }
    assert_eq!(chain.last().unwrap().standing.len(), 1);
}

#[test]
fn a_fleet_of_alarms_is_bounded() {
    let (mut a, mut chain) = (Alarms::default(), Vec::new());
    let subjects: Vec<String> = (0..4_000).map(|number| format!("shard-{number:04}")).collect();
    let found: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let record = look(&mut a, "a", &found, &mut chain).unwrap();
    assert_eq!(record.standing.len(), 51);
    assert!(record.standing.iter().any(|alarm| alarm.text.starts_with("3950 more")), "{record:?}");
}

proptest! {
    /// Servers that look in any order, at views that differ, and race for slots: along the chain every alarm is raised and
    /// cleared in turn, what stands is what the edges say, and once all see the same for a while, the chain says so.
    #[test]
    fn edges_alternate_and_agree(
        steps in prop::collection::vec((0..3usize, prop::collection::btree_set((0..2usize, 0..3u8), 0..4), any::<bool>()), 1..120),
    ) {
        let mut servers = vec![Alarms::default(); 3];
        let mut chain: Vec<AlarmRecord> = Vec::new();
        let found = |view: &BTreeSet<(usize, u8)>| -> Vec<Condition> {
            view.iter().map(|(name, subject)| condition(NAMES[*name], &subject.to_string())).collect()
        };
        for (server, view, stale) in &steps {
            servers[*server].saw(&NAMES, found(view));
            // A racing server decided on what was there before, loses the slot, and decides again.
            let known = if *stale { chain.len().saturating_sub(1) } else { chain.len() };
            let name = server.to_string();
            if let Some(record) = servers[*server].record(chain[..known].last(), &name, Timestamp::EPOCH) {
                let won = record.sequence as usize == chain.len() + 1;
                let mut again = || servers[*server].record(chain.last(), &name, Timestamp::EPOCH);
                if let Some(record) = if won { Some(record) } else { again() } {
                    servers[*server].wrote(&record);
                    chain.push(record);
                }
            }
        }
        let last_view = steps.last().map(|(_, view, _)| view.clone()).unwrap_or_default();
        for _ in 0..=LOOKS_MAX + 1 {
            for (number, server) in servers.iter_mut().enumerate() {
                server.saw(&NAMES, found(&last_view));
                if let Some(record) = server.record(chain.last(), &number.to_string(), Timestamp::EPOCH) {
                    server.wrote(&record);
                    chain.push(record);
                }
            }
        }
        let mut standing = BTreeMap::new();
        for (number, record) in (1..).zip(&chain) {
            prop_assert_eq!(record.sequence, number);
            for edge in &record.edges {
                let key = (edge.alarm.name, edge.alarm.subject.clone());
                match edge.change {
                    Change::Raised => prop_assert!(standing.insert(key, ()).is_none(), "raised twice: {:?}", edge),
                    Change::Cleared => prop_assert!(standing.remove(&key).is_some(), "cleared twice: {:?}", edge),
                }
            }
            let said: Vec<_> = record.standing.iter().map(|alarm| (alarm.name, alarm.subject.clone())).collect();
            prop_assert_eq!(said, standing.keys().cloned().collect::<Vec<_>>());
        }
        let wanted: Vec<_> = found(&last_view).iter().map(|alarm| (alarm.name, alarm.subject.clone())).collect();
        prop_assert_eq!(standing.keys().cloned().collect::<Vec<_>>(), wanted);
    }
}
