//! The object layer over simulated disks.

mod changes;
mod crash;
pub(crate) mod rig;
mod rules;
