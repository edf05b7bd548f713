//! Groups on simulated disks.

mod back;
mod cluster;
mod codec;
mod confirm;
mod crash;
mod elect;
mod history;
mod leaving;
mod rig;
mod split;
mod suite;
