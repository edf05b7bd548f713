//! Tests over the simulated network.

mod remote;
mod rig;
mod router;
mod sim;
