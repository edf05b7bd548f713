//! The object layer over simulated disks.

mod changes;
pub(crate) mod cluster;
mod copies;
mod crash;
mod real;
pub(crate) mod rig;
mod rules;
