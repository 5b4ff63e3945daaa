//! Benchmarks against physical limits.
