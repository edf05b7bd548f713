//! The object layer over simulated disks.

mod changes;
mod crash;
mod rig;
mod rules;
