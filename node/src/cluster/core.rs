//! What both bodies of the transport share: identity, addresses, the service, and how a call is answered.
//!
//! Invariant: a refused peer is logged with its address and the reason where it is refused; the same again once a minute at most.
//! Invariant: work for a caller ends with the caller or with its deadline.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quarry_engine::net::limits::{MAX_DEADLINE, RECEIVE_WITHIN};
use quarry_engine::net::wire::{self, Message};
use quarry_engine::net::{CallLanes, Code, Failure, NetError, NodeId, Refusal, Request, Response, Service};
use quarry_engine::object::BoxFuture;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::frames::{FrameError, Place, Rooms};
use super::identity::Keeper;
use super::lives::{Life, Lives};
use super::said;
use crate::storage::random_bytes;

/// The caller's own clock ends a call; this one only when the caller's farewell was lost.
const LATE: Duration = Duration::from_secs(1);

/// Where nodes are reached.
#[derive(Debug, Default)]
pub struct AddressBook(RwLock<BTreeMap<NodeId, SocketAddr>>);

impl AddressBook {
    /// With these nodes.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Self {
        Self(RwLock::new(nodes.into_iter().collect()))
    }

    /// Where a node is reached.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<SocketAddr> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    /// Enters a node, or moves it.
    pub fn set(&self, node: NodeId, address: SocketAddr) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(node, address);
    }
}

/// What a body needs of its node.
#[derive(Clone)]
pub struct Parts {
    /// Whom it shows itself as.
    pub keeper: Arc<Keeper>,
    /// Where others are.
    pub book: Arc<AddressBook>,
    /// What answers calls.
    pub service: Arc<dyn Service>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("keeper", &self.keeper)
            .field("book", &self.book)
            .finish_non_exhaustive()
    }
}

/// The shared part of a body.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) parts: Parts,
    pub(super) rooms: Rooms,
    /// Of calls to others.
    lanes: CallLanes,
    pub(super) lives: Arc<Lives>,
    /// Of this process.
    pub(super) life: Life,
    local: NodeId,
    /// Casts may come from anywhere, a `Drop` on a foreign thread included.
    pub(super) runtime: Handle,
}

impl Core {
    /// To be called within a runtime. A peer may have so many connections.
    pub(super) fn new(parts: Parts, connections: usize) -> Self {
        let local = parts.keeper.current().node;
        let life = Life(u64::from_le_bytes(random_bytes()));
        let (rooms, lives) = (Rooms::new(connections), Arc::new(Lives::default()));
        let lanes = CallLanes::default();
        Self { parts, rooms, lanes, lives, life, local, runtime: Handle::current() }
    }

    /// Another body of the same process. Its calls have lanes and room of their own.
    pub(super) fn beside(&self, connections: usize) -> Self {
        let (rooms, lanes) = (self.rooms.beside(connections), CallLanes::default());
        let (lives, runtime) = (Arc::clone(&self.lives), self.runtime.clone());
        Self { parts: self.parts.clone(), rooms, lanes, lives, life: self.life, local: self.local, runtime }
    }

    /// Runs a call whose result nobody wants.
    pub(super) fn cast(&self, call: BoxFuture<'static, Result<Response, NetError>>) {
        self.runtime.spawn(async move {
            if let Err(error) = call.await {
                tracing::debug!(%error, "cast");
            }
        });
    }

    pub(super) fn local(&self) -> NodeId {
        self.local
    }

    pub(super) fn address(&self, to: NodeId) -> Result<SocketAddr, NetError> {
        self.parts.book.get(to).ok_or(NetError::Unknown(to))
    }

    /// Runs a call to its end or its deadline.
    pub(super) async fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
        exchange: impl AsyncFnOnce(Message) -> Result<Response, NetError>,
    ) -> Result<Response, NetError> {
        let within = within.min(MAX_DEADLINE);
        let calling = async {
            self.address(to)?;
            let _place = self.lanes.enter(to, &request).await?;
            exchange(wire::encode_request(request, within)?).await
        };
        timeout(within, calling).await.unwrap_or(Err(NetError::Deadline(to)))
    }

    /// The answer to what came, as a message. `None` when the caller has gone (`gone` is ready) or waits no longer.
    pub(super) async fn answer(
        &self,
        from: NodeId,
        received: (Result<Request, wire::WireError>, Duration),
        gone: impl Future<Output = ()>,
    ) -> Option<Message> {
        let (request, within) = received;
        let response = match request {
            Ok(request) => {
                let work = timeout(within + LATE, self.parts.service.handle(from, request));
                let (mut work, mut gone) = (pin!(work), pin!(gone));
                tokio::select! {
                    response = &mut work => response.ok()?,
                    () = &mut gone => return None,
                }
            }
            Err(error) => bad_request(&error),
        };
        match wire::encode_response(response) {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::error!(peer = %from, %error, "encode answer");
                wire::encode_response(bad_request(&error)).ok()
            }
        }
    }
}

fn bad_request(error: &wire::WireError) -> Response {
    Response::Failed(Failure::new(Code::BadRequest, error.to_string()))
}

/// Waits for a request no longer than one may take.
pub(super) async fn receive(
    reading: impl Future<Output = Result<(Result<Request, wire::WireError>, Duration, Place), FrameError>>,
) -> Result<(Result<Request, wire::WireError>, Duration, Place), FrameError> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    timeout(RECEIVE_WITHIN, reading).await.unwrap_or_else(|_| Err(late().into()))
}

/// Why a handshake is given up that says nothing.
pub(super) const TOO_LONG: &str = "it takes too long";

/// The line about a peer that was not let in.
pub(super) fn log_refusal(peer: SocketAddr, why: Refusal) {
    if let Some(held_back) = said::due(peer.ip(), &format!("refuse: {why}")) {
        tracing::warn!(%peer, held_back, "refuse node: {why}");
    }
}

/// The line about a node that was called and is not the right one.
pub(super) fn log_called(to: NodeId, address: SocketAddr, why: Refusal) {
    if let Some(held_back) = said::due(address.ip(), &format!("call {to}: {why}")) {
        tracing::warn!(node = %to, %address, held_back, "do not call node: {why}");
    }
}

/// The line about a handshake that did not come to its end.
pub(super) fn log_handshake(peer: SocketAddr, why: &dyn std::fmt::Display) {
    let why = why.to_string();
    if let Some(held_back) = said::due(peer.ip(), &why) {
        tracing::info!(%peer, held_back, "end handshake: {why}");
    }
}
