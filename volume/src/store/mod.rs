//! Volumes on the engine: one member on one disk for now, behind the decisions that several will take.
//!
//! Invariant: what was answered is durable and applied; what was read is never lost.

mod device;
mod error;
mod label;
mod seat;
mod serve;
#[cfg(test)]
mod tests;
mod volumes;

pub use device::{Device, Piece, Stretch};
pub use error::VolumeError;
pub use label::{BadLabel, Label, MAX_DESCRIPTION, MAX_NAME, SnapshotLabel, is_name};
pub use seat::{Seat, Snapshot};
pub use volumes::{Volume, Volumes};
