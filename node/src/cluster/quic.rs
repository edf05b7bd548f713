//! The transport over QUIC: one connection to each peer, one stream for each call.
//!
//! Invariant: a call that is dropped resets its stream, and the peer drops the work.
//! Invariant: a peer opens no more streams than calls are allowed; further calls wait where they come from.
//! Invariant: after a renewal of the certificate, new calls go over a new connection; the old one ends with its last call.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::net::limits::{
    CALLS_PER_PEER, CONNECTIONS_PER_PEER, HANDSHAKE_WITHIN, INBOUND_BYTES_ALL, KEEP_ALIVE, MAX_CONNECTIONS,
    RECEIVE_WITHIN, SILENCE,
};
use quarry_engine::net::wire::Message;
use quarry_engine::net::{NetError, NodeId, Refusal, Request, Response, Transport};
use quarry_engine::object::BoxFuture;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectError, Connection, ConnectionError, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

use super::core::{Core, Parts, TOO_LONG, log_called, log_handshake, log_refusal, receive};
use super::frames::{self, FrameError};
use super::identity::Identity;
use super::lives::Life;
use super::tls::{self, Verdict};

/// Bytes of one call that may be under way unread.
const STREAM_WINDOW: usize = 512 << 10;
/// Bytes of all calls that may be under way unread. Were it less than that of all streams together, streams that wait for room
/// could fill it and keep the bytes of those that have room from coming: neither would end.
const CONNECTION_WINDOW: usize = CALLS_PER_PEER * STREAM_WINDOW;
/// Bytes that were sent to a peer and not acknowledged.
const SEND_WINDOW: u64 = 16 << 20;

/// Connections that a peer may have: one carries all calls, the others are those of before a renewal or a break. Each may fill its
/// windows, beside what is in the hands of the service.
pub(super) const CONNECTIONS: usize = 8;
const _: () =
    assert!(CONNECTIONS * CONNECTION_WINDOW <= INBOUND_BYTES_ALL && CONNECTIONS < CONNECTIONS_PER_PEER);

/// Bytes that the kernel is asked to keep for a socket.
const SOCKET_BUFFER: usize = 8 << 20;

/// From so many connections on, who wants another must first show that it hears what is sent to its address.
const PROVE_ADDRESS: usize = MAX_CONNECTIONS / 2;

/// Said when a node stops.
const BYE: VarInt = VarInt::from_u32(0);
/// Said to a call that is no longer wanted.
const DROPPED: VarInt = VarInt::from_u32(1);
/// Said when a peer has too many connections.
const CROWDED: VarInt = VarInt::from_u32(2);
/// Said when another life of the peer is connected.
const TWICE: VarInt = VarInt::from_u32(3);
/// Codes of connection errors that are TLS alerts.
const ALERTS: std::ops::Range<u64> = 0x100..0x200;
/// The alert for a client without a certificate (RFC 8446, certificate_required).
const NO_CERTIFICATE: u64 = 0x100 + 116;
/// How long connections may take to end when a node stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// The transport over QUIC; clones share everything.
#[derive(Debug, Clone)]
pub struct Quic {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Core,
    endpoint: Endpoint,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

/// The connection to a peer, and for which renewal and address it was made. Locked while it is being made: others that
/// call the same peer wait for it, no longer than their own deadlines.
#[derive(Debug, Default)]
struct Peer(AsyncMutex<Option<(Connection, u64, SocketAddr)>>);

impl Quic {
    /// Listens on `address` and serves until closed. To be called within a runtime.
    pub fn start(parts: Parts, address: SocketAddr) -> io::Result<Self> {
        let identity = parts.keeper.current();
        let (server, _) = server_config(Arc::clone(&identity))?;
        let socket = std::net::UdpSocket::bind(address)?;
        widen(&socket);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(endpoint_config(&identity), Some(server), socket, runtime)?;
        let core = Core::new(parts, CONNECTIONS);
        let shared = Arc::new(Shared { core, endpoint, peers: Mutex::default() });
        tokio::spawn(accept(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    pub(super) fn core(&self) -> &Core {
        &self.shared.core
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Ends all calls and connections.
    pub async fn close(&self) {
        self.shared.endpoint.close(BYE, b"stopping");
        // A peer that does not hear the farewell finds out by itself.
        let _late = timeout(FAREWELL, self.shared.endpoint.wait_idle()).await;
    }
}

/// A restarted node knows by its key which connections of before it must reset, so that its peers do not have to wait until
/// they are silent for too long.
fn endpoint_config(identity: &Identity) -> quinn::EndpointConfig {
    let derive = |what: &str| blake3::derive_key(what, identity.key.secret_der());
    let reset = derive("quarry quic stateless reset v1");
    let ids = derive("quarry quic connection ids v1");
    let id = ids.first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
    let mut config =
        quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id)));
    config
}

/// Asks for room for what comes while this process does not run. The kernel gives less to those who may not have it.
fn widen(socket: &std::net::UdpSocket) {
    use rustix::net::sockopt;
    let forced = sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER);
    let asked = forced.or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER));
    let sent = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER);
    if let Err(error) = asked.and(sent) {
        tracing::debug!(%error, "widen socket");
    }
}

fn transport_config() -> Arc<quinn::TransportConfig> {
    let number = |n: usize| VarInt::from_u32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut config = quinn::TransportConfig::default();
    config.max_concurrent_bidi_streams(number(CALLS_PER_PEER));
    config.max_concurrent_uni_streams(number(0));
    config.datagram_receive_buffer_size(None);
    config.stream_receive_window(number(STREAM_WINDOW));
    config.receive_window(number(CONNECTION_WINDOW));
    config.send_window(SEND_WINDOW);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.max_idle_timeout(quinn::IdleTimeout::try_from(SILENCE).ok());
    Arc::new(config)
}

fn server_config(identity: Arc<Identity>) -> io::Result<(quinn::ServerConfig, Verdict)> {
    let (tls, verdict) = tls::server(identity).map_err(io::Error::other)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport_config());
    config.migration(false);
    Ok((config, verdict))
}

fn client_config(identity: Arc<Identity>, to: NodeId) -> io::Result<(quinn::ClientConfig, Verdict)> {
    let (tls, verdict) = tls::client(identity, to).map_err(io::Error::other)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config());
    Ok((config, verdict))
}

impl Transport for Quic {
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
        "quic"
    }
}

// The calling side.

impl Shared {
    async fn exchange(&self, to: NodeId, message: Message) -> Result<Response, NetError> {
        let connection = self.connection(to).await?;
        let answered = exchange_on(&connection, to, message).await;
        if let Err(NetError::Refused { .. }) = &answered {
            // Said to this call: the next one tries again.
            self.forget(to, &connection).await;
        }
        answered
    }

    fn peer(&self, to: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(to).or_default())
    }

    async fn forget(&self, to: NodeId, gone: &Connection) {
        let peer = self.peer(to);
        let mut slot = peer.0.lock().await;
        if slot.as_ref().is_some_and(|(connection, ..)| connection.stable_id() == gone.stable_id()) {
            *slot = None;
        }
    }

    async fn connection(&self, to: NodeId) -> Result<Connection, NetError> {
        let address = self.core.address(to)?;
        let peer = self.peer(to);
        let generation = self.core.parts.keeper.generation();
        let mut slot = peer.0.lock().await;
        if let Some((connection, made, at)) = slot.as_ref()
            && (*made, *at) == (generation, address)
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        // What it replaces ends when its last call does; but nobody may have been calling when the peer said why not.
        let before = slot.take().and_then(|(connection, ..)| connection.close_reason());
        if let Some(NetError::Refused { why, .. }) = before.map(|reason| why_lost(to, &reason)) {
            return Err(NetError::Refused { to, why });
        }
        let connection = self.connect(to, address).await?;
        *slot = Some((connection.clone(), generation, address));
        Ok(connection)
    }

    async fn connect(&self, to: NodeId, address: SocketAddr) -> Result<Connection, NetError> {
        let unreachable = |reason: String| NetError::Unreachable { to, reason };
        let identity = self.core.parts.keeper.current();
        let (config, verdict) = client_config(identity, to).map_err(|e| unreachable(e.to_string()))?;
        let connecting = {
            // Connections live as long as the node, not as long as whoever called first.
            let _inside = self.core.runtime.enter();
            self.endpoint.connect_with(config, address, &self.core.life.name())
        };
        let connecting = connecting.map_err(|e| match e {
            ConnectError::EndpointStopping => NetError::Closed,
            other => unreachable(other.to_string()),
        })?;
        let connected = timeout(HANDSHAKE_WITHIN, connecting).await;
        if let Some(Err(why)) = verdict.get() {
            log_called(to, address, why);
            return Err(NetError::Refused { to, why });
        }
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => match why_lost(to, &error) {
                NetError::Lost { reason, .. } => Err(unreachable(reason)),
                other => Err(other),
            },
            Err(_) => Err(unreachable("it does not answer".to_owned())),
        }
    }
}

/// One call on a connection.
async fn exchange_on(connection: &Connection, to: NodeId, message: Message) -> Result<Response, NetError> {
    let lost = |error: &dyn std::fmt::Display| match connection.close_reason() {
        Some(reason) => why_lost(to, &reason),
        None => NetError::Lost { to, reason: error.to_string() },
    };
    let (send, mut recv) = connection.open_bi().await.map_err(|e| why_lost(to, &e))?;
    let mut sending = Sending(Some(send));
    if let Some(send) = &mut sending.0 {
        send.write_all_chunks(&mut message.into_chunks()).await.map_err(|e| lost(&e))?;
        send.finish().map_err(|e| lost(&e))?;
    }
    let response = match frames::read_response(&mut recv).await {
        Ok(response) => response,
        Err(FrameError::Wire(error)) => return Err(error.into()),
        Err(FrameError::Stream(error)) => return Err(lost(&error)),
    };
    // Its end comes with it. Dropped without having seen it, a stream is stopped, which costs packets.
    recv.read_to_end(0).await.map_err(|e| lost(&e))?;
    drop(sending.0.take());
    Ok(response)
}

/// The own half of a call's stream; dropped before the answer is there, it calls the request back.
struct Sending(Option<SendStream>);

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(mut send) = self.0.take() {
            // Refused when all of it has arrived; then dropping the other half tells the peer.
            let _arrived = send.reset(DROPPED);
        }
    }
}

/// What the end of a connection means for a call.
fn why_lost(to: NodeId, error: &ConnectionError) -> NetError {
    match error {
        ConnectionError::ConnectionClosed(close) if ALERTS.contains(&u64::from(close.error_code)) => {
            NetError::Refused { to, why: Refusal::ByPeer }
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == TWICE => {
            NetError::Refused { to, why: Refusal::Twice }
        }
        ConnectionError::LocallyClosed => NetError::Closed,
        other => NetError::Lost { to, reason: other.to_string() },
    }
}

// The called side.

/// Which life of its node a peer said that it is.
fn life_of(connection: &Connection) -> Option<Life> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    Life::of_name(data.server_name.as_deref())
}

/// What is done with who wants a connection.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Admit,
    /// Asked to come again with what was sent to its address.
    Prove,
    Refuse,
}

/// Packets whose sender's address is forged can begin handshakes, and each takes a connection until its time is over. They
/// cannot come again, so they never get more than half of the connections.
fn judge(open: usize, proven: bool) -> Admission {
    if open >= MAX_CONNECTIONS {
        Admission::Refuse
    } else if open >= PROVE_ADDRESS && !proven {
        Admission::Prove
    } else {
        Admission::Admit
    }
}

async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let proven = incoming.remote_address_validated();
        match judge(shared.endpoint.open_connections(), proven) {
            Admission::Admit => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.admit(incoming).await });
            }
            Admission::Prove => {
                // Refused to those alone who have proven it.
                let _asked = incoming.retry();
            }
            Admission::Refuse => {
                tracing::warn!(peer = %incoming.remote_address(), "refuse connection: too many are open");
                incoming.refuse();
            }
        }
    }
}

impl Shared {
    async fn admit(self: Arc<Self>, incoming: Incoming) {
        let address = incoming.remote_address();
        let (config, verdict) = match server_config(self.core.parts.keeper.current()) {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "show certificate");
                return incoming.refuse();
            }
        };
        let connected = match incoming.accept_with(Arc::new(config)) {
            Ok(connecting) => timeout(HANDSHAKE_WITHIN, connecting).await,
            Err(error) => Ok(Err(error)),
        };
        match (connected, verdict.get()) {
            (Ok(Ok(connection)), Some(Ok(from))) => self.serve(connection, from).await,
            (_, Some(Err(why))) => log_refusal(address, why),
            (Ok(Err(ConnectionError::TransportError(error))), None)
                if u64::from(error.code) == NO_CERTIFICATE =>
            {
                log_refusal(address, Refusal::NoCertificate);
            }
            (Ok(Err(error)), _) => log_handshake(address, &error),
            (Err(_), _) => log_handshake(address, &TOO_LONG),
            (Ok(Ok(connection)), None) => connection.close(BYE, b"nobody was judged"),
        }
    }

    async fn serve(self: Arc<Self>, connection: Connection, from: NodeId) {
        let Some(life) = life_of(&connection) else {
            tracing::warn!(peer = %from, "refuse connection: it does not say which life of the node it is of");
            return connection.close(BYE, b"no life");
        };
        let entering = self.core.lives.enter(from, life, connection.remote_address());
        let entered = tokio::select! {
            entered = entering => entered,
            _ = connection.closed() => return,
        };
        let _alive = match entered {
            Ok(alive) => alive,
            Err(_) => return connection.close(TWICE, b"another life is connected"),
        };
        let room = self.core.rooms.of(from);
        let Ok(_place) = Arc::clone(&room.connections).try_acquire_owned() else {
            tracing::warn!(peer = %from, "refuse connection: the node has too many");
            return connection.close(CROWDED, b"too many connections");
        };
        // Streams are limited, and so are these tasks.
        while let Ok((send, recv)) = connection.accept_bi().await {
            let (shared, room) = (Arc::clone(&self), Arc::clone(&room));
            tokio::spawn(async move {
                if let Err(error) = shared.serve_call(send, recv, from, &room).await {
                    tracing::debug!(peer = %from, %error, "serve call");
                }
            });
        }
    }

    async fn serve_call(
        &self,
        mut send: SendStream,
        mut recv: RecvStream,
        from: NodeId,
        room: &frames::Room,
    ) -> Result<(), FrameError> {
        let reading = async {
            let fixed = frames::read_fixed(&mut recv).await?;
            let request = frames::read_request(&mut recv, fixed, room).await?;
            recv.read_to_end(0).await.map_err(io::Error::other)?;
            Ok(request)
        };
        let (request, within, _place) = match receive(reading).await {
            Ok(received) => received,
            Err(error) => {
                let _closed = send.reset(DROPPED);
                return Err(error);
            }
        };
        let stopped = send.stopped();
        let gone = async move { drop(stopped.await) };
        let Some(message) = self.core.answer(from, (request, within), gone).await else {
            let _closed = send.reset(DROPPED);
            return Ok(());
        };
        let mut chunks = message.into_chunks();
        let writing = timeout(RECEIVE_WITHIN, send.write_all_chunks(&mut chunks)).await;
        writing.map_err(io::Error::from)?.map_err(io::Error::from)?;
        // The stream may have been stopped meanwhile.
        let _stopped = send.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_addresses_get_half_of_the_connections_at_most() {
        let table = [
            (0, false, Admission::Admit),
            (PROVE_ADDRESS - 1, false, Admission::Admit),
            (PROVE_ADDRESS, false, Admission::Prove),
            (PROVE_ADDRESS, true, Admission::Admit),
            (MAX_CONNECTIONS - 1, true, Admission::Admit),
            (MAX_CONNECTIONS, true, Admission::Refuse),
            (MAX_CONNECTIONS, false, Admission::Refuse),
        ];
        for (open, proven, wanted) in table {
            assert_eq!(judge(open, proven), wanted, "{open} {proven}");
        }
    }
}
