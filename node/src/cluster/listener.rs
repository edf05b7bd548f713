//! The TCP listener of the cluster: calls, when they go over TCP, and nodes that want to join.
//!
//! Invariant: what a connection is for is said in its first message (ALPN); nothing else is served on it.
//! Invariant: a connection that does not get to the point within [`HANDSHAKE_WITHIN`] is closed.
//! Invariant: what connections are served by ends with the listener: nothing is asked of disks that are about to be closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quarry_engine::net::limits::{HANDSHAKE_WITHIN, MAX_CONNECTIONS};
use quarry_engine::net::{NodeId, Refusal};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server};

use super::core::{TOO_LONG, log_handshake, log_refusal};
use super::identity::Keeper;
use super::join::Host;
use super::tcp::{self, Shared};
use super::tls::{self, Verdict};

/// Pause after a failed accept (out of descriptors): time for others to end.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What is behind the listener.
#[derive(Debug, Clone)]
pub(super) struct Entrances {
    pub(super) keeper: Arc<Keeper>,
    /// Calls over TCP: all, or those about volumes.
    pub(super) calls: Option<Arc<Shared>>,
    /// Joining, where the authority's key lies.
    pub(super) join: Option<Arc<Host>>,
}

/// Which of them a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Calls,
    Join,
}

/// Accepts for ever.
pub(super) async fn run(listener: TcpListener, entrances: Entrances) {
    let (room, mut served) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), JoinSet::new());
    loop {
        while served.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept connection of a node");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let entrances = entrances.clone();
        served.spawn(async move {
            entrances.admit(stream, peer).await;
            drop(place);
        });
    }
}

impl Entrances {
    async fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        match timeout(HANDSHAKE_WITHIN, self.greet(stream, peer)).await {
            Err(_) => log_handshake(peer, &TOO_LONG),
            Ok(Err(error)) => log_handshake(peer, &error),
            Ok(Ok(None)) => {}
            Ok(Ok(Some((stream, Purpose::Calls, Some(from))))) => {
                let Some(calls) = &self.calls else { return };
                if let Err(error) = calls.serve(stream, from).await {
                    tracing::debug!(%peer, %error, "serve calls");
                }
            }
            Ok(Ok(Some((stream, Purpose::Join, from)))) => {
                let Some(join) = &self.join else { return };
                Arc::clone(join).serve(stream, peer, from).await;
            }
            Ok(Ok(Some((_, Purpose::Calls, None)))) => log_refusal(peer, Refusal::NoCertificate),
        }
    }

    async fn greet(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> io::Result<Option<(server::TlsStream<TcpStream>, Purpose, Option<NodeId>)>> {
        tcp::prepare_called(&stream)?;
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let Some((purpose, (config, verdict))) = self.choose(&start)? else {
            log_handshake(peer, &"what it wants is not served here");
            return Ok(None);
        };
        let done = start.into_stream(Arc::new(config)).await;
        match (done, verdict.get()) {
            (_, Some(Err(why))) => {
                log_refusal(peer, why);
                Ok(None)
            }
            (Ok(stream), Some(Ok(from))) => Ok(Some((stream, purpose, Some(from)))),
            (Ok(stream), None) => Ok(Some((stream, purpose, None))),
            (Err(error), _) if is_no_certificate(&error) => {
                log_refusal(peer, Refusal::NoCertificate);
                Ok(None)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The settings for what the client asks for.
    fn choose(
        &self,
        start: &StartHandshake<TcpStream>,
    ) -> io::Result<Option<(Purpose, (ServerConfig, Verdict))>> {
        let hello = start.client_hello();
        let asks = |protocol: &[u8]| hello.alpn().is_some_and(|mut asked| asked.any(|one| one == protocol));
        let own = self.keeper.current();
        let (purpose, made) = if asks(tls::CALLS) && self.calls.is_some() {
            (Purpose::Calls, tls::server(own))
        } else if asks(tls::JOIN) && self.join.is_some() {
            (Purpose::Join, tls::join_server(own))
        } else {
            return Ok(None);
        };
        made.map(|made| Some((purpose, made))).map_err(io::Error::other)
    }
}

fn is_no_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::NoCertificatesPresented))
}
