//! Each promise broken on purpose, and seen by the auditor.

use muster_sim::Mutation;

/// The auditor has to see a broken promise within so many drawn runs: nearly all within a few; what takes an engine that
/// is slow, and another that takes its run over meanwhile, within some hundred.
const SEEDS: u64 = 400;

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
