//! Quarry's random tests: inputs for every parser, and histories of whole stores, clusters and volumes, each from a seed.
//!
//! Invariant: equal seeds give equal runs; a failure prints the line that reproduces it.
//! Invariant: nothing here is part of what is shipped.

pub mod blocks;
pub mod cluster;
pub mod inputs;
pub mod store;
pub mod volume;

/// The words of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without words"))
}
