//! Groups on simulated disks.

mod back;
mod cluster;
mod codec;
mod confirm;
mod crash;
mod elect;
mod first;
mod history;
mod leaving;
mod members;
mod rig;
mod split;
mod suite;
