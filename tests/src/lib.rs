//! Whole-system tests; see the `tests` folder beside this one.
