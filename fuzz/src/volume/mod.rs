//! Volumes with several members: the real head and the real members over simulated logs, network and time, from one seed.
//!
//! First a safety phase: a client writes, reads, flushes and takes snapshots while members lose their power, flushes fail, messages
//! are lost, come twice or late, and one head follows another that does not know it yet. Then a healing phase: everything must be
//! there, and all members alike.
//!
//! Invariant: equal seeds give equal histories, shown by the hash of what happened.

mod driver;
mod history;
#[cfg(test)]
mod losses;
mod oracle;
mod plant;
mod site;
mod world;

pub use history::{Failure, Summary, history, history_with};
pub use plant::Plant;
