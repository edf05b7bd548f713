//! The node: HTTP APIs and the command line over the engine. Thin: no storage rule lives here.

pub mod config;
