//! Groups of rows that several nodes hold in common, by consensus.
//!
//! A group is a log of entries that a majority of its voters have on their disks, and the rows that come of applying it. Its log
//! entries, its vote and its rows are records in the voter's segment log and share its flushes (engine/FORMAT-groups.md).
//!
//! Invariant: what was acknowledged is in the log of a majority, durably, and every voter's rows are those of one prefix of it.
//! Invariant: openraft is known to this folder alone; nothing of it decides what bytes lie on a disk or go over the wire.
//! Invariant: where no group is opened, nothing of this runs.

mod back;
mod codec;
mod confirm;
mod count;
mod elect;
mod first;
mod give;
mod give_up;
mod group;
mod hand_over;
mod install;
mod judge;
pub mod limits;
mod log;
mod machine;
mod members;
mod network;
mod propose;
mod raft;
mod receive;
mod registry;
mod runtime;
mod sim;
mod snapshot;
mod split;
mod store;
mod territory;
#[cfg(test)]
mod tests;
mod types;

pub use back::TakeBack;
pub use give_up::{held, sweep};
pub use group::{Group, GroupOptions, GroupStatus, Leading, Office, Settings, StatusWatch};
pub use registry::Groups;
pub use runtime::{Runtime, Sleep};
pub use sim::SimRuntime;
pub use split::Split;
pub use types::{Entry, Expected, Failed, Given, GroupError, Guard, Outcome, Part, RowChange};
