//! Tests of the log over the simulated disk, with a catalog of plain keys.

mod cleaning;
mod clock;
mod crash;
mod every_flush;
mod faults;
mod fixture;
mod flips;
mod ghosts;
mod kv;
mod leftovers;
mod log;
mod panics;
mod refusal;
