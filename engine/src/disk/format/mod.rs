//! On-disk structures (engine/FORMAT.md): encoded and decoded here, by hand, little-endian, each with a version.

pub mod bytes;
pub mod record;
