//! The repository kept fit, beside capture and restores.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "the seed that reproduces a failure")]

mod checking;
mod compaction;
mod folding;
mod following;
mod forgetting;
mod pruning;
mod topologies;
mod world;

/// Seeds of a property test: that of the environment alone, or `count` of them.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let only = std::env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..count, |seed: u64| seed..seed + 1);
    seeds.inspect(|seed| println!("MUSTER_SEED={seed} cargo test -p muster-upkeep --test upkeep"))
}
