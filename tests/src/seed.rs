//! Seeds, said and settable.

/// The seed of a test: `MUSTER_SEED`, or `default`. Says how to run the test again with it.
pub fn seed(default: u64) -> u64 {
    let seed = number("MUSTER_SEED").unwrap_or(default);
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    eprintln!("seed {seed}; again: MUSTER_SEED={seed} cargo test -p muster-tests {test}");
    seed
}

/// How many cases a property test tries: `MUSTER_CASES`, or `default`.
pub fn cases(default: u64) -> u64 {
    number("MUSTER_CASES").unwrap_or(default)
}

/// How many rounds a loop of faults goes: `MUSTER_FAULT_ROUNDS`, or a few.
pub fn fault_rounds() -> usize {
    let rounds = number("MUSTER_FAULT_ROUNDS").unwrap_or(4);
    usize::try_from(rounds).expect("so many rounds have no end")
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: `{text}`")))
}
