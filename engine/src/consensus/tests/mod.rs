//! Groups on simulated disks.

mod cluster;
mod codec;
mod crash;
mod history;
mod rig;
mod suite;
