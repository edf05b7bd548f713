//! Volumes on the engine: one member on one disk for now, behind the decisions that several will take.
//!
//! Invariant: what was flushed, or read, is durable and applied, and never lost; what was written later may be, from its end on.

mod copy;
mod device;
mod error;
mod going;
mod label;
mod lineage;
mod members;
mod overlay;
mod promise;
mod replica;
mod seat;
mod serve;
mod tail;
#[cfg(test)]
mod tests;
mod volumes;

pub use device::{Device, Piece, Stretch};
pub use error::VolumeError;
pub use label::{BadLabel, Label, MAX_DESCRIPTION, MAX_NAME, Parent, SnapshotLabel, is_name};
pub use members::Members;
pub use seat::{Seat, Snapshot};
pub use tail::Placed;
pub use volumes::{Volume, Volumes};
