//! Whole-cluster simulation: real nodes over simulated drives, network and clocks, from one seed.
//!
//! First a safety phase: clients at all nodes, background work, and everything that goes wrong with machines and networks; every
//! answer is judged by the oracle. Then a healing phase: no more trouble, and everything must be there, alike, and in its place.
//!
//! Invariant: equal seeds give equal histories, shown by the hash of what happened.

mod assembly;
mod board;
mod fleeting;
mod healing;
mod history;
mod invariants;
mod keeper;
mod lag;
pub(crate) mod log;
pub(crate) mod machine;
mod oracle;
mod place;
mod plant;
mod profile;
mod register;
mod returns;
mod rings;
mod trouble;
mod volume;
mod world;

pub(crate) use assembly::locked;
pub use history::{Failure, Summary, history, history_with};
pub use log::LINES;
pub use plant::Plant;
