//! A demo fleet, its writers, the deletion script and an independent oracle.
