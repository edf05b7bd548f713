//! The HTTP side of the node: listeners, dispatch by path, request ids, access log.
//!
//! Invariant: knows no storage rule and no API's rule; it hands a request with its caller to the API.
//! Invariant: connections, heads and idle times are bounded; a full listener waits, it does not grow.

mod body;
mod dispatch;
mod listener;
mod operators;
mod starting;
mod target;
mod trans_id;

#[cfg(test)]
mod tests;

pub(crate) use body::Received;
pub(crate) use dispatch::{Entrance, Front};
pub(crate) use listener::{Bounds, serve};
pub(crate) use starting::{Stage, Starting};
