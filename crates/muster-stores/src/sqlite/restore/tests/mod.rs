//! Tests of the driver as a whole, on a real file.

mod captured_again;
mod faults;
mod fixture;
mod proofs;
mod publishing;
mod refusals;
