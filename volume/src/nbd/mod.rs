//! The NBD protocol of a server, pure: bytes in, actions out. No socket, clock or task.
//!
//! The protocol is that of the NBD project's document, fixed newstyle, with structured replies and the extension for
//! extended headers. A [`Handshake`] agrees on [`Terms`]; a [`Session`] serves requests on them.
//!
//! Invariant: no input makes this panic, and [`limits`] bounds all that an input makes it keep.
//! Invariant: how the bytes are cut on their way changes nothing.
//! Invariant: a flaw in a request gets the error that the protocol names, and the connection goes on; it ends only
//! where the protocol says so, or where the next request cannot be found.

mod export;
mod fields;
mod handshake;
pub mod limits;
mod options;
mod outbox;
mod replies;
mod request;
mod session;
mod wire;

#[cfg(test)]
#[path = "tests/cuts_tests.rs"]
mod cuts_tests;

pub use export::{Context, Export, Style, Terms};
pub use handshake::{Demand, Ending, Handshake, Listed, Purpose, Tls};
pub use outbox::Outbox;
pub use replies::{Extent, Outcome, Part};
pub use request::Command;
pub use session::{Action, Session, Ticket, Violation};
pub use wire::{Errno, OptionError, allocation, difference};
