//! Volumes on simulated disks.

mod cases;
mod crash;
mod devices;
mod encrypted;
mod lineage;
mod rig;
mod threads;
