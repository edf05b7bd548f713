//! The node: HTTP APIs and the command line over the engine. Thin: no storage rule lives here.

mod auth;
mod block;
mod cinder;
mod claim;
pub mod cli;
pub mod cluster;
pub mod config;
mod control;
mod durable_file;
mod hidden;
mod http;
mod logging;
mod metrics;
pub mod node;
mod panics;
mod papers;
pub mod qcow2;
mod remote;
pub mod status;
mod storage;
pub mod swift;
pub mod swift_ring;
mod workers;
