//! Tests over the simulated network.

mod remote;
pub(crate) mod rig;
mod router;
mod sim;
