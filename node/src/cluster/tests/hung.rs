//! Peers that accept and never answer, or stop reading, cost their caller its deadline and no more.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::net::limits::MAX_PAYLOAD;
use quarry_engine::net::{NetError, NodeId, Request};

use super::rig::{A, B, BOTH, CLUSTER, Echo, LONG, TestNode, authority, identity, pair, runtime};
use crate::cluster::core::Core;
use crate::cluster::lives::Life;
use crate::cluster::quic::CONNECTIONS;
use crate::cluster::{AddressBook, Keeper, Parts, tls};
use crate::config::Carrier;

const WITHIN: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_millis(1500);

fn held_to_deadline(node: &TestNode, payload: usize) {
    let begun = Instant::now();
    let call = node.net.call(B, Request::Ping { payload: Bytes::from(vec![1; payload]) }, WITHIN);
    let ended = node.runtime().block_on(call);
    let took = begun.elapsed();
    assert_eq!(ended, Err(NetError::Deadline(B)));
    assert!(took >= WITHIN && took < WITHIN + GRACE, "{took:?}");
}

fn caller(carrier: Carrier, silent: SocketAddr) -> TestNode {
    let node = TestNode::new(carrier, identity(&authority(CLUSTER), A), Arc::new(Echo));
    node.knows(B, silent);
    node
}

#[test]
fn a_port_that_never_says_anything() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    held_to_deadline(&caller(Carrier::Quic, udp.local_addr().unwrap()), 10);
    // The kernel accepts; nobody speaks TLS.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    held_to_deadline(&caller(Carrier::Tcp, tcp.local_addr().unwrap()), 10);
}

/// A peer with the right certificate that accepts, and never reads or answers.
fn deaf(carrier: Carrier) -> (TestNode, tokio::runtime::Runtime) {
    let authority = authority(CLUSTER);
    let (runtime, deaf) = (runtime(), Arc::new(identity(&authority, B)));
    let address = runtime.block_on(async {
        let (config, _) = tls::server(deaf).unwrap();
        match carrier {
            Carrier::Quic => {
                let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
                let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
                let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
                let address = endpoint.local_addr().unwrap();
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    while let Some(incoming) = endpoint.accept().await {
                        kept.push(incoming.await);
                    }
                });
                address
            }
            Carrier::Tcp => {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        kept.push(acceptor.accept(stream).await);
                    }
                });
                address
            }
        }
    });
    let node = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
    node.knows(B, address);
    (node, runtime)
}

#[test]
fn a_peer_that_accepts_and_never_answers() {
    for carrier in BOTH {
        let (node, _runtime) = deaf(carrier);
        held_to_deadline(&node, 10);
        held_to_deadline(&node, MAX_PAYLOAD);
    }
}

#[test]
fn many_calls_to_a_deaf_peer_all_end_in_time() {
    for carrier in BOTH {
        let (node, _runtime) = deaf(carrier);
        let begun = Instant::now();
        let calls: Vec<_> = (0..200)
            .map(|_| {
                let request = Request::Ping { payload: Bytes::from(vec![1; 1 << 20]) };
                node.runtime().spawn(node.net.call(B, request, WITHIN))
            })
            .collect();
        for call in calls {
            assert_eq!(node.runtime().block_on(call).unwrap(), Err(NetError::Deadline(B)), "{carrier}");
        }
        let took = begun.elapsed();
        assert!(took < WITHIN + 2 * GRACE, "{carrier}: {took:?}");
    }
}

#[test]
fn a_hung_peer_does_not_hold_up_calls_to_others() {
    for carrier in BOTH {
        let (_, a, b) = pair(carrier);
        let hung = quarry_engine::net::NodeId([0xd; 16]);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        a.knows(
            hung,
            if carrier == Carrier::Quic { silent.local_addr() } else { listener.local_addr() }.unwrap(),
        );
        let waiting = a.runtime().spawn(a.net.call(hung, Request::Ping { payload: Bytes::new() }, LONG));
        let begun = Instant::now();
        assert!(a.ping(B, LONG).is_ok() && begun.elapsed() < WITHIN);
        waiting.abort();
        assert_eq!(b.address, a.book.get(B).unwrap());
    }
}

/// Story: the deadline that a request carries is the backstop for callers whose farewell was lost. Were it exact, the peer
/// would hang up on the very moment at which the caller gives up, and the caller would be told of a lost connection.
#[test]
fn the_called_side_waits_a_little_longer_than_the_caller() {
    struct Never;
    impl quarry_engine::net::Service for Never {
        fn handle(
            &self,
            _: quarry_engine::net::NodeId,
            _: Request,
        ) -> quarry_engine::object::BoxFuture<'static, quarry_engine::net::Response> {
            Box::pin(std::future::pending())
        }
    }
    runtime().block_on(async {
        let keeper = Arc::new(Keeper::new(identity(&authority(CLUSTER), A)));
        let core =
            Core::new(Parts { keeper, book: Arc::new(AddressBook::default()), service: Arc::new(Never) }, 1);
        let begun = Instant::now();
        let request = Request::Ping { payload: Bytes::new() };
        let answer = core.answer(B, (Ok(request), Duration::from_millis(100)), std::future::pending()).await;
        assert!(answer.is_none() && begun.elapsed() > Duration::from_millis(500));
    });
}

/// Each connection may fill its window with bytes that nobody reads: with as many as TCP needs for its calls, one node could
/// fill 2.5 GiB of another's memory over QUIC.
#[test]
fn a_peer_has_few_connections_over_quic() {
    let (authority, _a, b) = pair(Carrier::Quic);
    runtime().block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = Arc::new(identity(&authority, NodeId([0xc; 16])));
        let mut kept = Vec::new();
        for _ in 0..=CONNECTIONS {
            let (config, _) = tls::client(own.clone(), B).unwrap();
            let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            kept.push(endpoint.connect_with(config, b.address, &Life(1).name()).unwrap().await.unwrap());
        }
        let begun = Instant::now();
        let closed = loop {
            let closed: Vec<_> = kept.iter().filter_map(quinn::Connection::close_reason).collect();
            if !closed.is_empty() {
                break closed;
            }
            assert!(begun.elapsed() < LONG, "none is closed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let [quinn::ConnectionError::ApplicationClosed(close)] = &closed[..] else { panic!("{closed:?}") };
        assert_eq!(u64::from(close.error_code), 2, "too many connections");
    });
}
