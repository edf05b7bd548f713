//! Volumes on simulated disks.

mod cases;
mod crash;
mod devices;
mod encrypted;
mod going;
mod lineage;
mod rig;
mod threads;
