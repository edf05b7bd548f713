//! Calls over QUIC, and those about volumes over TCP beside it.
//!
//! Who writes to a volume with several members waits for a call to each of them. Over QUIC such a call is eight system calls to send it and to
//! confirm what was sent, and as much work of this process again; over TCP it is two, and the kernel does the rest: half of the
//! processor for a lone write (bench/README.md). Calls about volumes have room of their own at the peer, too, so that a stream of large
//! writes keeps no other call waiting.
//!
//! Invariant: a call is sent once. What could not be sent at all over TCP, for nobody is there or lets it through, goes over QUIC.
//! Invariant: no call waits to find out whether TCP reaches a peer: a task of its own does, and calls go over QUIC meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quarry_engine::net::{NetError, NodeId, Request, Response, Transport};
use quarry_engine::object::BoxFuture;

use super::quic::Quic;
use super::tcp::Tcp;

/// How long a peer that TCP did not reach is not tried over it again.
const AGAIN: Duration = Duration::from_secs(5);

/// Both bodies of the transport; clones share everything.
#[derive(Debug, Clone)]
pub struct Both {
    quic: Quic,
    tcp: Tcp,
    peers: Arc<Mutex<HashMap<NodeId, Peer>>>,
}

/// How calls about volumes go to a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Way {
    /// Over QUIC: nobody knows yet whether TCP reaches it.
    #[default]
    Unknown,
    /// Over QUIC, while that is found out.
    Asked,
    Tcp,
    /// Over QUIC: TCP did not reach it then.
    Quic(Instant),
}

#[derive(Debug, Default)]
struct Peer {
    way: Way,
    /// It answered the last call over QUIC.
    answers: bool,
    /// The log has a line about it.
    said: bool,
}

impl Both {
    /// QUIC, with TCP beside it: [`Tcp::beside`].
    #[must_use]
    pub fn new(quic: Quic, tcp: Tcp) -> Self {
        Self { quic, tcp, peers: Arc::default() }
    }

    /// Whether calls about volumes go over TCP to a peer.
    #[cfg(test)]
    pub(crate) fn uses_tcp(&self, to: NodeId) -> bool {
        self.peers().get(&to).is_some_and(|peer| peer.way == Way::Tcp)
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call about a volume goes over TCP; begins to find out whether others can, where it is time to.
    fn goes_over_tcp(&self, to: NodeId) -> bool {
        let answered = {
            let mut peers = self.peers();
            let peer = peers.entry(to).or_default();
            match peer.way {
                Way::Tcp => return true,
                Way::Asked => return false,
                Way::Quic(since) if since.elapsed() < AGAIN => return false,
                Way::Unknown | Way::Quic(_) => peer.way = Way::Asked,
            }
            peer.answers
        };
        let this = self.clone();
        self.quic.core().runtime.spawn(async move {
            let reached = this.tcp.reach(to).await;
            this.found(to, reached, answered);
        });
        false
    }

    /// Takes note of whether TCP reaches a peer; `answered`: QUIC did when that was asked.
    fn found(&self, to: NodeId, reached: Result<(), NetError>, answered: bool) {
        let mut peers = self.peers();
        let peer = peers.entry(to).or_default();
        match reached {
            Ok(()) => (peer.way, peer.said) = (Way::Tcp, false),
            Err(error) => {
                peer.way = Way::Quic(Instant::now());
                if answered && peer.answers && !std::mem::replace(&mut peer.said, true) {
                    tracing::warn!(
                        node = %to,
                        %error,
                        "node is not reached over TCP: volumes on it are slower; let TCP through as well as UDP"
                    );
                }
            }
        }
    }

    async fn over_tcp(self, to: NodeId, request: Request, within: Duration) -> Result<Response, NetError> {
        let began = Instant::now();
        match self.tcp.call(to, request.clone(), within).await {
            Err(NetError::Unreachable { .. }) => {
                self.peers().entry(to).or_default().way = Way::Quic(Instant::now());
                let left = within.saturating_sub(began.elapsed());
                self.over_quic(to, request, left).await
            }
            answer => answer,
        }
    }

    async fn over_quic(self, to: NodeId, request: Request, within: Duration) -> Result<Response, NetError> {
        let answer = self.quic.call(to, request, within).await;
        self.peers().entry(to).or_default().answers = answer.is_ok();
        answer
    }
}

impl Transport for Both {
    fn local(&self) -> NodeId {
        self.quic.local()
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        if !matches!(request, Request::Volume { .. }) {
            return self.quic.call(to, request, within);
        }
        let this = self.clone();
        if self.goes_over_tcp(to) {
            Box::pin(this.over_tcp(to, request, within))
        } else {
            Box::pin(this.over_quic(to, request, within))
        }
    }

    fn cast(&self, to: NodeId, request: Request) {
        self.quic.cast(to, request);
    }

    fn name(&self) -> &'static str {
        "quic"
    }
}
