//! Volumes on simulated disks.

mod cases;
mod crash;
mod devices;
mod rig;
mod threads;
