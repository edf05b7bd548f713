//! Whole-store simulation: the real object layer, catalog and disk core over a simulated drive, index and clock, from one seed.
//!
//! First a safety phase: several clients at once, background work, crashes and faults, every answer judged by the oracle. Then
//! a healing phase: no more faults, and everything must be there, agree, and work again.
//!
//! Invariant: equal seeds give equal histories, shown by the hash of what happened.

pub mod clients;
mod faults;
mod healing;
mod history;
pub mod model;
pub mod oracle;
mod plan;
mod plant;
pub mod world;

pub use history::{Failure, Summary, history};
pub use plant::Plant;
