//! On-disk structures (engine/FORMAT.md): encoded and decoded here, by hand, little-endian, each with a version.
//!
//! Invariant: decoding any bytes whatever ends in a value or a typed error, never a panic.

pub mod batch;
pub mod bytes;
pub mod record;
pub mod segment;
pub mod sums;
pub mod superblock;
