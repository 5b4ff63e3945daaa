//! Ranged reads of many parts of few objects, coalesced.
