//! The object layer over simulated disks.

mod changes;
pub(crate) mod cluster;
mod coded;
mod copies;
mod crash;
mod elsewhere;
mod eventual;
mod lost;
mod real;
mod reconstruct;
pub(crate) mod rig;
mod rules;
mod shelf;
