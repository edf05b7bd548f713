//! Tests of the log over the simulated disk, with a catalog of plain keys.

mod crash;
mod kv;
mod log;
