//! Each promise broken on purpose, and seen by the auditor.

use muster_sim::Mutation;

/// The auditor has to see a broken promise within so many drawn runs. Most are seen by the first; a publish that comes after
/// its engine was fenced takes a slow shard and a takeover at the right moment, and was seen by the 21st; stores that such an
/// engine gives back, by the 573rd.
const SEEDS: u64 = 2000;

#[test]
fn every_broken_promise_is_seen() {
    let mut unseen = Vec::new();
    for mutation in Mutation::ALL {
        let seen = (1..=SEEDS).find_map(|seed| {
            let verdict = muster_sim::run_mutated(seed, mutation).unwrap();
            verdict.violations.first().cloned().map(|violation| (seed, violation))
        });
        match seen {
            Some((seed, violation)) => println!("{mutation:?} is seen by seed {seed}: {violation}"),
            None => unseen.push(mutation),
        }
    }
    assert!(unseen.is_empty(), "not seen within {SEEDS} seeds: {unseen:?}");
}
