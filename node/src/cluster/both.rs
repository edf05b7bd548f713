//! Calls over QUIC, and those about volumes over TCP beside it.
//!
//! Who writes to a volume with several members waits for a call to each of them. Over QUIC such a call is eight system calls to send it and to
//! confirm what was sent, and as much work of this process again; over TCP it is two, and the kernel does the rest: half of the
//! processor for a lone write (bench/README.md). Calls about volumes have room of their own at the peer, too, so that a stream of large
//! writes keeps no other call waiting.
//!
//! Invariant: a call is sent once. What could not be sent at all over TCP, for nobody is there or lets it through, goes over QUIC.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quarry_engine::net::{NetError, NodeId, Request, Response, Transport};
use quarry_engine::object::BoxFuture;

use super::quic::Quic;
use super::tcp::Tcp;

/// How long a peer that answers over QUIC alone is not tried over TCP again.
const AGAIN: Duration = Duration::from_secs(30);

/// Both bodies of the transport; clones share everything.
#[derive(Debug, Clone)]
pub struct Both {
    quic: Quic,
    tcp: Tcp,
    /// Peers that TCP does not reach, and since when.
    without: Arc<Mutex<HashMap<NodeId, Instant>>>,
}

impl Both {
    /// QUIC, with TCP beside it: [`Tcp::beside`].
    #[must_use]
    pub fn new(quic: Quic, tcp: Tcp) -> Self {
        Self { quic, tcp, without: Arc::default() }
    }

    fn without(&self) -> MutexGuard<'_, HashMap<NodeId, Instant>> {
        self.without.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_over_tcp(&self, to: NodeId, request: &Request) -> bool {
        let is_known = || self.without().get(&to).is_some_and(|since| since.elapsed() < AGAIN);
        matches!(request, Request::Volume { .. }) && !is_known()
    }

    async fn ask(self, to: NodeId, request: Request, within: Duration) -> Result<Response, NetError> {
        let began = Instant::now();
        match self.tcp.call(to, request.clone(), within).await {
            Err(NetError::Unreachable { reason, .. }) => {
                let left = within.saturating_sub(began.elapsed());
                let answer = self.quic.call(to, request, left).await;
                if answer.is_ok() && self.without().insert(to, Instant::now()).is_none() {
                    tracing::warn!(
                        node = %to,
                        reason,
                        "node is not reached over TCP: volumes on it are slower; let TCP through as well as UDP"
                    );
                }
                answer
            }
            answer => answer,
        }
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
        if self.goes_over_tcp(to, &request) {
            Box::pin(self.clone().ask(to, request, within))
        } else {
            self.quic.call(to, request, within)
        }
    }

    fn cast(&self, to: NodeId, request: Request) {
        self.quic.cast(to, request);
    }

    fn name(&self) -> &'static str {
        "quic"
    }
}
