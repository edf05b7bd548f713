//! Placement: partitions to devices. Pure; knows nobody.
//!
//! Invariant: equal inputs give equal rings, byte for byte, on every machine.
//! Invariant: no partition has two replicas on one device.
//! Invariant: a lookup is an array index: no hashing, searching or allocating.

mod build;
mod builder;
mod device;
mod diff;
mod format;
mod handoff;
mod hash;
mod table;

pub use build::{BuildError, Plan, build};
pub use builder::{
    BUILDER_FORMAT_VERSION, Builder, BuilderDecodeError, Change, EditError, Event, Health, InvalidBuilder,
    Load, MAX_HISTORY, MAX_LABEL, MAX_MIN_PART_HOURS, MAX_VERSION, Member, Overload, Parts, RebalanceError,
    Rebalanced, Settings, decode_builder, encode_builder,
};
pub use device::{Class, Device};
pub use diff::{Diff, OtherPartPower, diff};
pub use format::{DecodeError, FORMAT_VERSION, decode, encode};
pub use handoff::Handoffs;
pub use hash::{PathHash, partition_of, path_hash};
pub use table::{InvalidRing, MAX_DEVICES, MAX_PART_POWER, MAX_REPLICAS, Replicas, Ring};
