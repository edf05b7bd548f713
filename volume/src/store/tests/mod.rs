//! Volumes on simulated disks.

mod away;
mod cases;
mod crash;
mod devices;
mod encrypted;
mod forks;
mod frozen;
mod going;
mod kept;
mod lazy;
mod lineage;
mod ordered;
mod replicas;
mod rig;
mod threads;
