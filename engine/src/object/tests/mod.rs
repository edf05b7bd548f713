//! The object layer over simulated disks.

mod changes;
mod crash;
mod real;
pub(crate) mod rig;
mod rules;
