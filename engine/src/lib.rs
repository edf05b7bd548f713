//! The disk engine and the object layer of Quarry.
//!
//! Knows no HTTP, no NBD, no QUIC.

pub mod block;
pub mod catalog;
pub mod clock;
pub mod consensus;
pub mod disk;
pub mod index;
pub mod io;
pub mod net;
pub mod object;
pub mod sync;
pub mod work;
