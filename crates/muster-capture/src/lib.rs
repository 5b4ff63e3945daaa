//! Runs the drivers' capture sides into the repository.
