//! Real faults on SQLite and the embedded S3 server; `make faults ROUNDS=50` runs them longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed test may say so by a panic, and a long one says how it stands"
)]

mod faulty;

use faulty::{Stack, crashes, races, signals, store};

const STACK: Stack = Stack::Embedded;

#[test]
fn every_round_of_kills_ends_as_the_oracle_says() {
    crashes::every_round_ends_as_the_oracle_says(STACK, 101);
}

#[test]
fn of_two_resumes_one_goes_on() {
    races::of_two_resumes_one_goes_on(STACK, 102);
}

#[test]
fn of_two_runs_each_store_has_one_winner() {
    races::of_two_runs_each_store_has_one_winner(STACK, 103);
}

#[test]
fn a_run_is_taken_over_on_another_machine() {
    races::a_run_is_taken_over_on_another_machine(STACK, 104);
}

#[test]
fn an_engine_told_to_stop_says_how_to_go_on() {
    signals::an_engine_told_to_stop_says_how_to_go_on(STACK, 105);
}

#[test]
fn a_faulty_store_costs_time_and_no_row() {
    store::a_faulty_store_costs_time_and_no_row(STACK, 106);
}

#[test]
fn answers_that_are_lost_double_nothing() {
    store::answers_that_are_lost_double_nothing(STACK, 107);
}

#[test]
fn a_store_that_only_throttles_ends_the_run_in_words() {
    store::a_store_that_only_throttles_ends_the_run_in_words(STACK, 108);
}
