//! The control group: which nodes and disks the cluster has, and the ring over them.

mod plan;
mod state;
