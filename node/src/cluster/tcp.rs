//! The transport over TCP and TLS, for networks that do not carry UDP: a pool of connections to each peer, one call at a
//! time on each.
//!
//! Invariant: a call has a connection to itself; dropped before its answer, it closes it, and the peer drops the work.
//! Invariant: at most [`CALLS_PER_PEER`] connections go to a peer; further calls wait for one.
//! Invariant: a connection is used again only when nothing is left to be read on it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use quarry_engine::net::limits::{
    CALLS_PER_PEER, CONNECTIONS_PER_PEER, HANDSHAKE_WITHIN, KEEP_ALIVE, RECEIVE_WITHIN, SILENCE,
};
use quarry_engine::net::wire::Message;
use quarry_engine::net::{NetError, NodeId, Refusal, Request, Response, Transport};
use quarry_engine::object::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client, server};

use super::core::{Core, Parts, log_called, receive};
use super::frames::{self, FrameError};
use super::lives::Life;
use super::quic::Quic;
use super::tls;

/// A connection that was not used for so long is closed by the caller.
const IDLE: Duration = Duration::from_secs(60);
/// How long a peer may take until it is connected, where there is another way.
const CONNECTS_BESIDE: Duration = Duration::from_secs(1);
/// Pause between two looks whether who waits to be served has hung up.
const HUNG_UP: Duration = Duration::from_millis(100);
/// The same by the called side, later: so that no call meets a connection that is being closed.
const IDLE_CALLED: Duration = Duration::from_secs(90);

const _: () = assert!(IDLE_CALLED.as_secs() > IDLE.as_secs() + SILENCE.as_secs());

/// The transport over TCP and TLS; clones share everything.
#[derive(Debug, Clone)]
pub struct Tcp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) core: Core,
    /// How long a peer may take until it is connected.
    connects_within: Duration,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

#[derive(Debug)]
struct Peer {
    room: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    stream: client::TlsStream<TcpStream>,
    generation: u64,
    address: SocketAddr,
    since: Instant,
}

impl Tcp {
    /// The calling side; the called side is a listener that is given [`Tcp::shared`].
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self::of(Core::new(parts, CONNECTIONS_PER_PEER), HANDSHAKE_WITHIN)
    }

    /// One that carries some of the calls of a process whose others go over QUIC: a peer that it does not reach soon is called so.
    #[must_use]
    pub fn beside(quic: &Quic) -> Self {
        Self::of(quic.core().beside(CONNECTIONS_PER_PEER), CONNECTS_BESIDE)
    }

    fn of(core: Core, connects_within: Duration) -> Self {
        Self { shared: Arc::new(Shared { core, connects_within, peers: Mutex::default() }) }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Finds out whether a peer is reached; the connection waits for the next call then.
    pub(super) async fn reach(&self, to: NodeId) -> Result<(), NetError> {
        let shared = &self.shared;
        let (address, peer) = (shared.core.address(to)?, shared.peer(to));
        let generation = shared.core.parts.keeper.generation();
        let stream = shared.connect(to, address).await?;
        peer.idle().push(Idle { stream, generation, address, since: Instant::now() });
        Ok(())
    }
}

impl Transport for Tcp {
    fn local(&self) -> NodeId {
        self.shared.core.local()
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let exchange = async |message| shared.exchange(to, message).await;
            shared.core.call(to, request, within, exchange).await
        })
    }

    fn cast(&self, to: NodeId, request: Request) {
        self.shared.core.cast(self.call(to, request, RECEIVE_WITHIN));
    }

    fn name(&self) -> &'static str {
        "tcp"
    }
}

/// Small messages leave at once, and a peer that is gone is found out.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE)?;
    let probes = SILENCE.as_secs() / KEEP_ALIVE.as_secs();
    sockopt::set_tcp_keepcnt(stream, u32::try_from(probes).unwrap_or(u32::MAX))?;
    Ok(())
}

/// For the called side: keeping alive does not see that a peer has gone while an answer to it is under way, and as long as its
/// connections stand, its next life waits ([`super::lives`]). A caller always reads its answers, so a full window is no excuse.
pub(super) fn prepare_called(stream: &TcpStream) -> io::Result<()> {
    prepare(stream)?;
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, silence)?;
    Ok(())
}

// The calling side.

impl Peer {
    fn new() -> Self {
        Self { room: Semaphore::new(CALLS_PER_PEER), idle: Mutex::default() }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// Neither closed nor with anything left on it.
    fn is_usable(&self, generation: u64, address: SocketAddr) -> bool {
        let fresh = self.generation == generation && self.address == address && self.since.elapsed() < IDLE;
        let mut byte = [0];
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (tcp, _) = self.stream.get_ref();
        fresh && tcp.poll_peek(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
    }
}

impl Shared {
    fn peer(&self, to: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(to).or_insert_with(|| Arc::new(Peer::new())))
    }

    async fn exchange(&self, to: NodeId, message: Message) -> Result<Response, NetError> {
        let (address, peer) = (self.core.address(to)?, self.peer(to));
        let _room = peer.room.acquire().await.map_err(|_| NetError::Closed)?;
        let generation = self.core.parts.keeper.generation();
        let usable = {
            let mut idle = peer.idle();
            std::iter::from_fn(|| idle.pop()).find(|one| one.is_usable(generation, address))
        };
        let mut stream = match usable {
            Some(idle) => idle.stream,
            None => self.connect(to, address).await?,
        };
        let exchanged = async {
            frames::write(&mut stream, message).await?;
            frames::read_response(&mut stream).await
        };
        match exchanged.await {
            Ok(response) => {
                let mut idle = peer.idle();
                // Those that were used last are used again; the others are let go.
                idle.retain(|one| one.since.elapsed() < IDLE);
                idle.push(Idle { stream, generation, address, since: Instant::now() });
                Ok(response)
            }
            Err(FrameError::Wire(error)) => Err(error.into()),
            Err(FrameError::Stream(error)) => Err(why_lost(to, &error)),
        }
    }

    async fn connect(
        &self,
        to: NodeId,
        address: SocketAddr,
    ) -> Result<client::TlsStream<TcpStream>, NetError> {
        let unreachable = |reason: String| NetError::Unreachable { to, reason };
        let identity = self.core.parts.keeper.current();
        let (config, verdict) = tls::client(identity, to).map_err(|e| unreachable(e.to_string()))?;
        let name = ServerName::try_from(self.core.life.name()).map_err(|e| unreachable(e.to_string()))?;
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            prepare(&stream)?;
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        let connected = timeout(self.connects_within, connecting).await;
        if let Some(Err(why)) = verdict.get() {
            log_called(to, address, why);
            return Err(NetError::Refused { to, why });
        }
        match connected {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => match why_lost(to, &error) {
                NetError::Lost { reason, .. } => Err(unreachable(reason)),
                other => Err(other),
            },
            Err(_) => Err(unreachable("it does not answer".to_owned())),
        }
    }
}

/// Waits until a caller has closed its side, also where it said something before.
async fn hung_up(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(HUNG_UP).await,
            _ => return,
        }
    }
}

/// What a broken stream means for a call.
fn why_lost(to: NodeId, error: &io::Error) -> NetError {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match alert {
        Some(rustls::Error::AlertReceived(_)) => NetError::Refused { to, why: Refusal::ByPeer },
        _ => NetError::Lost { to, reason: error.to_string() },
    }
}

// The called side.

impl Shared {
    /// Serves the calls of a peer, one after the other, until it closes.
    pub(super) async fn serve(
        &self,
        mut stream: server::TlsStream<TcpStream>,
        from: NodeId,
    ) -> Result<(), FrameError> {
        let address = stream.get_ref().0.peer_addr()?;
        let Some(life) = Life::of_name(stream.get_ref().1.server_name()) else {
            tracing::warn!(peer = %from, "refuse connection: it does not say which life of the node it is of");
            return Ok(());
        };
        let room = self.core.rooms.of(from);
        let Ok(_place) = Arc::clone(&room.connections).try_acquire_owned() else {
            tracing::warn!(peer = %from, "refuse connection: the node has too many");
            return Ok(());
        };
        let entered = tokio::select! {
            entered = self.core.lives.enter(from, life, address) => entered,
            // It waits no longer: whoever comes next does not stand behind it.
            () = hung_up(stream.get_ref().0) => return Ok(()),
        };
        let Ok(_alive) = entered else { return Ok(()) };
        loop {
            let Ok(begun) = timeout(IDLE_CALLED, frames::read_fixed(&mut stream)).await else {
                return Ok(());
            };
            let fixed = match begun {
                Ok(fixed) => fixed,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let received = receive(frames::read_request(&mut stream, fixed, &room)).await?;
            let (request, within, _place) = received;
            let gone = async {
                // A caller says nothing more before it has its answer: whatever comes, the connection is at its end.
                let _end = stream.read(&mut [0]).await;
            };
            let Some(message) = self.core.answer(from, (request, within), gone).await else { return Ok(()) };
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            timeout(RECEIVE_WITHIN, frames::write(&mut stream, message)).await.map_err(late)??;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt;

    use super::*;

    /// A node lost its power while an answer to it was under way: the kernel sent the answer again for a quarter of an hour,
    /// and the node's next life was refused as a copy until the writer gave up.
    #[tokio::test]
    async fn a_caller_that_hangs_up_is_found_out_whether_it_said_something_or_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for said in [&b""[..], b"something"] {
            let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (called, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut caller, said).await.unwrap();
            let soon = Duration::from_millis(300);
            assert!(timeout(soon, hung_up(&called)).await.is_err(), "it is still there");
            drop(caller);
            timeout(Duration::from_secs(10), hung_up(&called)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_found_out_before_its_next_life_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (called, _) = listener.accept().await.unwrap();
        prepare_called(&called).unwrap();
        let found = Duration::from_millis(sockopt::tcp_user_timeout(&called).unwrap().into());
        assert_eq!(found, SILENCE);
    }
}
