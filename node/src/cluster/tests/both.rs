//! QUIC with TCP beside it: what goes over which.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::block::{Fence, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NetError, NodeId, Request, Response, Service, Transport, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use tokio::runtime::Runtime;

use super::rig::{A, B, CLUSTER, LONG, any_port, authority, identity, runtime};
use crate::cluster::authority::Authority;
use crate::cluster::listener::{self, Entrances};
use crate::cluster::tcp::Tcp;
use crate::cluster::{AddressBook, Both, Keeper, Parts, Quic, bind_tcp, start_both};

/// Answers pings, and members of volumes.
struct Member;

impl Service for Member {
    fn handle(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(match request {
            Request::Ping { payload } => Response::Pong { payload },
            _ => Response::Volume(VolumeAnswer::Done),
        }))
    }
}

fn confirm() -> Request {
    let (device, volume, call) = (DeviceId([1; 16]), VolumeId([2; 16]), VolumeCall::Confirm);
    Request::Volume { device, volume, fence: Fence::default(), session: 1, call }
}

struct Node {
    net: Both,
    quic: Quic,
    book: Arc<AddressBook>,
    runtime: Runtime,
}

fn parts(authority: &Authority, node: NodeId) -> Parts {
    let keeper = Arc::new(Keeper::new(identity(authority, node)));
    Parts { keeper, book: Arc::default(), service: Arc::new(Member) }
}

fn node(authority: &Authority, node: NodeId) -> (Node, std::net::SocketAddr) {
    let (runtime, parts) = (runtime(), parts(authority, node));
    let book = Arc::clone(&parts.book);
    let started = {
        let _inside = runtime.enter();
        // The port that UDP was given may be another's for TCP.
        (0..16).find_map(|_| start_both(parts.clone(), any_port()).ok())
    };
    let (both, quic, address): (Both, Quic, _) = started.unwrap();
    (Node { net: both, quic, book, runtime }, address)
}

impl Node {
    fn asks(&self, request: Request, within: Duration) -> Result<Response, NetError> {
        self.runtime.block_on(self.net.call(B, request, within))
    }

    fn pings(&self, within: Duration) -> bool {
        let answer = self.asks(Request::Ping { payload: Bytes::from_static(b"ping") }, within);
        matches!(answer, Ok(Response::Pong { .. }))
    }

    /// Has volumes' calls go over TCP as soon as they can.
    fn until_tcp(&self) -> bool {
        let began = Instant::now();
        while !self.net.uses_tcp(B) && began.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.net.uses_tcp(B)
    }

    fn is_told(&self, within: Duration) -> bool {
        matches!(self.asks(confirm(), within), Ok(Response::Volume(VolumeAnswer::Done)))
    }
}

#[test]
fn calls_about_volumes_go_over_tcp_and_others_over_quic() {
    let authority = authority(CLUSTER);
    let ((a, _), (b, address)) = (node(&authority, A), node(&authority, B));
    a.book.set(B, address);
    assert!(a.pings(LONG) && a.is_told(LONG) && a.until_tcp());
    b.runtime.block_on(b.quic.close());
    assert!(!a.pings(Duration::from_millis(500)));
    assert!(a.is_told(LONG), "TCP is there");
}

#[test]
fn who_is_not_reached_over_tcp_is_called_over_quic() {
    let authority = authority(CLUSTER);
    let (a, _) = node(&authority, A);
    let (runtime, parts) = (runtime(), parts(&authority, B));
    let quic = {
        let _inside = runtime.enter();
        Quic::start(parts, any_port()).unwrap()
    };
    a.book.set(B, quic.address().unwrap());
    assert!(a.is_told(LONG) && a.is_told(LONG));
    runtime.block_on(quic.close());
    assert!(!a.is_told(Duration::from_millis(500)), "nobody is there");
}

/// Each call about a volume tried for a second: of more than three times as many as go to a device at a time the last were over before they
/// were sent.
#[test]
fn no_call_waits_for_a_peer_that_lets_no_tcp_through() {
    let authority = authority(CLUSTER);
    let ((a, _), runtime) = (node(&authority, A), runtime());
    // It accepts nothing: what connects waits for the first word of a handshake.
    let (quic, _silent) = {
        let _inside = runtime.enter();
        let listens = || {
            let quic = Quic::start(parts(&authority, B), any_port()).ok()?;
            let silent = std::net::TcpListener::bind(quic.address().ok()?).ok()?;
            Some((quic, silent))
        };
        (0..16).find_map(|_| listens()).unwrap()
    };
    a.book.set(B, quic.address().unwrap());
    assert!(a.is_told(LONG), "QUIC is connected");
    let within = Duration::from_millis(2500);
    let calls: Vec<_> = (0..100).map(|_| a.runtime.spawn(a.net.call(B, confirm(), within))).collect();
    for call in calls {
        let answer = a.runtime.block_on(call).unwrap();
        assert!(matches!(answer, Ok(Response::Volume(VolumeAnswer::Done))), "{answer:?}");
    }
}

#[test]
fn a_node_that_stops_to_listen_takes_no_calls_of_connections_that_it_had() {
    let authority = authority(CLUSTER);
    let ((a, _), runtime) = (node(&authority, A), runtime());
    let (quic, listening) = {
        let _inside = runtime.enter();
        let listens = || {
            let (parts, join) = (parts(&authority, B), None);
            let keeper = Arc::clone(&parts.keeper);
            let quic = Quic::start(parts, any_port()).ok()?;
            let (listener, _) = bind_tcp(quic.address().ok()?).ok()?;
            let entrances = Entrances { keeper, calls: Some(Tcp::beside(&quic).shared()), join };
            Some((quic, tokio::spawn(listener::run(listener, entrances))))
        };
        (0..16).find_map(|_| listens()).unwrap()
    };
    a.book.set(B, quic.address().unwrap());
    assert!(a.is_told(LONG) && a.until_tcp() && a.is_told(LONG));
    listening.abort();
    assert!(runtime.block_on(listening).unwrap_err().is_cancelled());
    runtime.block_on(quic.close());
    assert!(!a.is_told(Duration::from_millis(500)), "its connections are served still");
}
