//! Quarry's random tests: inputs for every parser, and histories of whole stores, each from a seed.
//!
//! Invariant: equal seeds give equal runs; a failure prints the line that reproduces it.
//! Invariant: nothing here is part of what is shipped.

pub mod store;
