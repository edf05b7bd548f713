//! Volumes with several members as their nodes look after them: a control group of three nodes, members on disks of their own, and heads at
//! either of two nodes.

mod back;
mod decide;
mod join;
mod rest;
mod rig;

use super::*;
