//! The transport seam: calls from node to node, and what a node answers.
//!
//! Invariant: a call ends by its deadline, whatever the peer does or leaves undone.
//! Invariant: messages are the closed enums of [`Request`] and [`Response`]; their bytes are made in one module.
//! Invariant: nothing here opens a socket, reads a clock or draws a random number; `node` brings the bodies that do.
//! Invariant: a call to the own node is neither encoded nor sent ([`Router`]).

pub mod conformance;
mod handles;
mod lanes;
mod late;
pub mod limits;
mod message;
mod node_service;
mod remote;
mod router;
mod serve;
mod sim;
#[cfg(test)]
pub(crate) mod tests;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use lanes::{CallLanes, CallPlace};
pub use late::LateService;
pub use message::{
    Announcement, Ballot, BlockWrite, Code, ConsensusAnswer, ConsensusCall, Failure, Handle, ListedVolume,
    OpenedObject, Position, Request, Response, TurnFields, VolumeAnswer, VolumeCall, Wish,
};
pub use node_service::NodeService;
pub use remote::Remote;
pub use router::Router;
pub(crate) use router::{first, once_more};
pub use serve::{MonotonicClock, ReplicaService};
pub use sim::{SimFaults, SimNet, SimNode};

use crate::object::BoxFuture;
use wire::WireError;

/// Identity of a node: random when its certificate is made, and in that certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 16]);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::str::FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadNodeId)?;
        Ok(Self(bytes))
    }
}

/// A text that is no node's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: 32 hex digits")]
pub struct BadNodeId;

/// Calls to nodes of the cluster.
///
/// Contract (checked by [`conformance`] over every body):
/// - a call ends by its deadline: connecting, waiting for room, sending and waiting for the answer all count;
/// - dropping the future of a call cancels it: the peer's work is dropped too, unless it has ended;
/// - an error other than [`NetError::Lost`] and [`NetError::Deadline`] says that the request was not handled; these two
///   leave it open. No body sends a request twice on its own, but a simulated network may deliver it twice;
/// - no more than [`limits::CALLS_PER_PEER`] calls of one node and [`limits::INBOUND_BYTES`] of their requests are in the
///   hands of a peer's [`Service`]; further ones wait on the caller's side (back-pressure);
/// - calls to one peer do not wait for one another's answers, but for room: consensus has room of its own, and what may wait
///   long at the peer has bounds below the rest, so that what ends the wait gets through ([`limits::CALLS_BUT_CONSENSUS`] and the
///   following);
/// - a peer that went away and came back is reached again without anybody's help.
pub trait Transport: Send + Sync {
    /// The own node.
    fn local(&self) -> NodeId;
    /// Ask `to` and wait for its answer, no longer than `within`.
    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>>;
    /// Send without waiting for anything: the answer is dropped, and so is an error. Best effort.
    fn cast(&self, to: NodeId, request: Request);
    /// Name of the body, for logs: `quic`, `tcp`, `sim`, `router`.
    fn name(&self) -> &'static str;
}

/// What a node answers.
pub trait Service: Send + Sync {
    /// The answer to a request of `from`, whose identity the transport has checked. Dropped when the caller goes away or
    /// its deadline is over. May be called twice for one request.
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response>;
}

/// Resolves when so much time has passed; the node hands in the real one, a simulation its own.
pub type Timer = Arc<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// Why a peer and a node do not talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// It showed no certificate.
    #[error("it shows no certificate")]
    NoCertificate,
    /// Its certificate is not from this cluster's authority, or is damaged.
    #[error("its certificate was not made by this cluster's authority")]
    Untrusted,
    /// Its certificate's time is over, or has not begun.
    #[error("its certificate is expired or not yet valid; renew it, and look at the clocks of both machines")]
    Expired,
    /// Its certificate names no node of Quarry.
    #[error("its certificate names no node")]
    Nameless,
    /// It belongs to another cluster.
    #[error("it belongs to another cluster")]
    OtherCluster,
    /// It is not the node that was called.
    #[error("it is another node than the one that was called; look at the address")]
    OtherNode,
    /// It has the identity of this very node.
    #[error("it has this node's own identity: a data directory was copied; join the copy anew")]
    OwnIdentity,
    /// Another process with its identity is connected.
    #[error(
        "another machine with its identity is connected: a data directory was copied; join the copy anew"
    )]
    Twice,
    /// It refused this node; its own log says why.
    #[error("it refuses this node's certificate; its log says why")]
    ByPeer,
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// No address is known for it.
    #[error("node {0} is not known here")]
    Unknown(NodeId),
    /// It could not be connected to.
    #[error("connect to node {to}: {reason}")]
    Unreachable {
        /// Which node.
        to: NodeId,
        /// What the network said.
        reason: String,
    },
    /// One of the two does not accept the other.
    #[error("node {to} is refused: {why}")]
    Refused {
        /// Which node.
        to: NodeId,
        /// Why.
        why: Refusal,
    },
    /// The deadline came first. The request may have been handled.
    #[error("node {0} did not answer in time")]
    Deadline(NodeId),
    /// The connection broke. The request may have been handled.
    #[error("lost node {to}: {reason}")]
    Lost {
        /// Which node.
        to: NodeId,
        /// What the network said.
        reason: String,
    },
    /// The message is over a limit, or the answer is not one.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This node's transport is closed.
    #[error("transport is closed")]
    Closed,
}
